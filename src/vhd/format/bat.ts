import { paddedBytes } from "./units.ts";

/** What a BAT entry holds for a block that is not allocated. */
export const DD_BLK_UNUSED = 0xffff_ffff;

/** Bytes that a BAT of `entries` takes up in the file. */
export function batBytes(entries: number): number {
  return paddedBytes(entries * 4);
}

/** Reads `entries` entries: sector numbers, in the machine's own byte order from here on. */
export function decodeBat(bytes: Uint8Array, entries: number): Uint32Array {
  const bat = new Uint32Array(entries);
  const view = new DataView(bytes.buffer, bytes.byteOffset, entries * 4);
  for (let i = 0; i < entries; i++) bat[i] = view.getUint32(i * 4);
  return bat;
}

/** Writes a BAT as whole sectors; what is left of the last one is zero. */
export function encodeBat(bat: Uint32Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(batBytes(bat.length));
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < bat.length; i++) view.setUint32(i * 4, bat[i]);
  return bytes;
}

/** How many blocks are allocated. */
export function allocatedBlocks(bat: Uint32Array): number {
  let used = 0;
  for (let i = 0; i < bat.length; i++) if (bat[i] !== DD_BLK_UNUSED) used++;
  return used;
}
