import { ImageFormatError } from "../../files/format_error.ts";
import type { StorageFile } from "../../files/storage.ts";

const PART_BYTES = 1 << 20;

/**
 * Reads a table of the file. What lies past the end of the file is an error, as a table that was made
 * is in the file whole.
 *
 * @param field Which field of the header says that it is there, for the error.
 * @throws {ImageFormatError}
 */
export function readTable(
  file: StorageFile,
  { field, fieldOffset, offsetBytes, lengthBytes }: {
    field: string;
    fieldOffset: number;
    offsetBytes: number;
    lengthBytes: number;
  },
): Uint8Array<ArrayBuffer> {
  if (lengthBytes > 0 && offsetBytes >= file.sizeBytes()) {
    throw new ImageFormatError(file.path, "QCOW2", {
      field,
      offsetBytes: fieldOffset,
      value: String(offsetBytes),
      problem: "lies past the end of the file",
    });
  }
  const bytes = new Uint8Array(lengthBytes);
  for (let at = 0; at < lengthBytes; at += PART_BYTES) {
    const part = bytes.subarray(at, Math.min(lengthBytes, at + PART_BYTES));
    // The last cluster of a file may be cut: what is missing reads as zeros.
    file.readAt(part, offsetBytes + at);
  }
  return bytes;
}
