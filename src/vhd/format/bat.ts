import { paddedBytes, VHD_SECTOR_SIZE } from "./units.ts";

/** What a BAT entry holds for a block that is not allocated. */
export const DD_BLK_UNUSED = 0xffff_ffff;
/** Entries in a sector of the BAT. */
export const BAT_ENTRIES_PER_SECTOR = VHD_SECTOR_SIZE / 4;

/** Bytes that a BAT of `entries` takes up in the file. */
export function batBytes(entries: number): number {
  return paddedBytes(entries * 4);
}

/** The sector of the BAT that a block's entry is in, counted from the BAT's first. */
export function batSectorOf(block: number): number {
  return Math.floor(block / BAT_ENTRIES_PER_SECTOR);
}

/** Reads `entries` entries: sector numbers, in the machine's own byte order from here on. */
export function decodeBat(bytes: Uint8Array, entries: number): Uint32Array {
  const bat = new Uint32Array(entries);
  const view = new DataView(bytes.buffer, bytes.byteOffset, entries * 4);
  for (let i = 0; i < entries; i++) bat[i] = view.getUint32(i * 4);
  return bat;
}

/** A BAT as it is in memory, and what follows it in its last sector. */
export interface BatTable {
  readonly bat: Uint32Array;
  /**
   * What the file holds behind the last of these entries, up to the end of the sector: entries that
   * no block of the disk has, or something else; zeros where it ends.
   */
  readonly batPadding: Uint32Array;
}

/**
 * Writes one sector of a BAT into memory. This is the only place that encodes entries, for all
 * writers. What follows the last entry stays as it was read: it may be another structure's.
 *
 * @param sector The sector's number within the BAT.
 * @param view Receives 512 bytes at `at`.
 */
export function putBatSector(
  { bat, batPadding }: BatTable,
  sector: number,
  view: DataView,
  at: number,
): void {
  const first = sector * BAT_ENTRIES_PER_SECTOR;
  for (let i = 0; i < BAT_ENTRIES_PER_SECTOR; i++) {
    const index = first + i;
    const behind = index - bat.length;
    const value = behind < 0 ? bat[index] : behind < batPadding.length ? batPadding[behind] : 0;
    view.setUint32(at + i * 4, value);
  }
}

/** Writes a BAT as whole sectors. */
export function encodeBat(table: BatTable): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(batBytes(table.bat.length));
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length; at += VHD_SECTOR_SIZE) {
    putBatSector(table, at / VHD_SECTOR_SIZE, view, at);
  }
  return bytes;
}

/** What follows `entries` entries in their last sector of a table of `declared`: unused ones. */
export function unusedPadding(entries: number, declared: number): Uint32Array {
  const inSector = Math.ceil(entries / BAT_ENTRIES_PER_SECTOR) * BAT_ENTRIES_PER_SECTOR - entries;
  return new Uint32Array(Math.min(inSector, Math.max(0, declared - entries))).fill(DD_BLK_UNUSED);
}

/** How many blocks are allocated. */
export function allocatedBlocks(bat: Uint32Array): number {
  let used = 0;
  for (let i = 0; i < bat.length; i++) if (bat[i] !== DD_BLK_UNUSED) used++;
  return used;
}
