import { paddedBytes, VHD_SECTOR_SIZE } from "./units.ts";

/** What a BAT entry holds for a block that is not allocated. */
export const DD_BLK_UNUSED = 0xffff_ffff;

/** Entries in a sector of the BAT. */
export const BAT_ENTRIES_PER_SECTOR = VHD_SECTOR_SIZE / 4;

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

/**
 * Writes a BAT of `entries` entries as whole sectors. Entries behind the end of `bat` are unused;
 * what is left of the last sector is zero.
 */
export function encodeBat(bat: Uint32Array, entries = bat.length): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(batBytes(entries));
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < entries; i++) view.setUint32(i * 4, i < bat.length ? bat[i] : DD_BLK_UNUSED);
  return bytes;
}

/** Writes the sector of a BAT that begins with the entry `first`; missing entries are unused. */
export function encodeBatSector(bat: Uint32Array, first: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(VHD_SECTOR_SIZE).fill(0xff);
  const view = new DataView(bytes.buffer);
  const count = Math.min(BAT_ENTRIES_PER_SECTOR, bat.length - first);
  for (let i = 0; i < count; i++) view.setUint32(i * 4, bat[first + i]);
  return bytes;
}

/** How many blocks are allocated. */
export function allocatedBlocks(bat: Uint32Array): number {
  let used = 0;
  for (let i = 0; i < bat.length; i++) if (bat[i] !== DD_BLK_UNUSED) used++;
  return used;
}
