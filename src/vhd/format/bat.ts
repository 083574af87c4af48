import { paddedBytes, VHD_SECTOR_SIZE } from "./units.ts";

/** The BAT entry of a block that is not allocated. */
export const DD_BLK_UNUSED = 0xffff_ffff;
/** Entries in a sector of the BAT. */
export const BAT_ENTRIES_PER_SECTOR = VHD_SECTOR_SIZE / 4;

/** Bytes of a BAT of `entries` entries in the file. */
export function batBytes(entries: number): number {
  return paddedBytes(entries * 4);
}

/** The sector of the BAT that holds a block's entry, counted from the BAT's first sector. */
export function batSectorOf(block: number): number {
  return Math.floor(block / BAT_ENTRIES_PER_SECTOR);
}

/** Decodes `entries` entries into sector numbers in the machine's byte order. */
export function decodeBat(bytes: Uint8Array, entries: number): Uint32Array {
  const bat = new Uint32Array(entries);
  const view = new DataView(bytes.buffer, bytes.byteOffset, entries * 4);
  for (let i = 0; i < entries; i++) bat[i] = view.getUint32(i * 4);
  return bat;
}

/** A BAT in memory, and the rest of its last sector. */
export interface BatTable {
  readonly bat: Uint32Array;
  /**
   * The content of the file behind the last entry, up to the end of the sector: entries that belong
   * to no block, or another structure; zeros past the end of the file.
   */
  readonly batPadding: Uint32Array;
}

/**
 * Encodes one sector of a BAT into memory. All writers encode BAT entries here. The rest of the
 * last sector stays as it was read, as it may belong to another structure.
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

/** Encodes a BAT as whole sectors. */
export function encodeBat(table: BatTable): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(batBytes(table.bat.length));
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length; at += VHD_SECTOR_SIZE) {
    putBatSector(table, at / VHD_SECTOR_SIZE, view, at);
  }
  return bytes;
}

/**
 * The unused entries behind `entries` entries, up to the end of their last sector, in a table of
 * `declared` entries.
 */
export function unusedPadding(entries: number, declared: number): Uint32Array {
  const inSector = Math.ceil(entries / BAT_ENTRIES_PER_SECTOR) * BAT_ENTRIES_PER_SECTOR - entries;
  return new Uint32Array(Math.min(inSector, Math.max(0, declared - entries))).fill(DD_BLK_UNUSED);
}

/** The number of allocated blocks. */
export function allocatedBlocks(bat: Uint32Array): number {
  let used = 0;
  for (let i = 0; i < bat.length; i++) if (bat[i] !== DD_BLK_UNUSED) used++;
  return used;
}
