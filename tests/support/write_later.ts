/**
 * Writes to an image whose data reaches the file later, and in another order.
 *
 * @module
 */
import type { StorageFile } from "../../src/files/storage.ts";
import type { PutBytes } from "../../src/images/kind.ts";

/** Calls `write` with what keeps the bytes, and then writes these, the last ones first. */
export function writeLater<T>(file: StorageFile, write: (put: PutBytes) => T): T {
  const kept: [Uint8Array<ArrayBuffer>, number][] = [];
  const result = write((bytes, offsetBytes) => void kept.push([bytes, offsetBytes]));
  for (const [bytes, offsetBytes] of kept.reverse()) file.writeAt(bytes, offsetBytes);
  return result;
}
