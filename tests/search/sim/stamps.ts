/**
 * Sectors that contain their own number and the stamp of the change that wrote them, so that a
 * sector that is misplaced or torn is recognised.
 *
 * @module
 */

/** Bytes of a sector. */
export const SECTOR_BYTES = 512;
const WORDS = SECTOR_BYTES / 4;

/** Writes stamped sectors to memory. */
export function stamp(
  words: Uint32Array,
  { sector, count, value }: { sector: number; count: number; value: number },
): void {
  words.fill(value, 0, count * WORDS);
  if (value === 0) return;
  for (let i = 0; i < count; i++) {
    words[i * WORDS] = (sector + i) >>> 0;
    words[i * WORDS + 1] = Math.floor((sector + i) / 0x1_0000_0000);
  }
}

/** New bytes of stamped sectors. */
export function stamped(sector: number, count: number, value: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(count * WORDS);
  stamp(words, { sector, count, value });
  return new Uint8Array(words.buffer);
}

/** The stamp of sector `index` of some sectors; 0 for zeros; a text about any other content. */
export function stampAt(words: Uint32Array, index: number, sector: number): number | string {
  const at = index * WORDS;
  const value = words[at + WORDS - 1];
  let same = true;
  for (let i = at + 2; i < at + WORDS; i++) same &&= words[i] === value;
  const place = words[at] + words[at + 1] * 0x1_0000_0000;
  if (same && place === (value === 0 ? 0 : sector)) return value;
  return same ? `sector ${place} (stamp ${value})` : "a torn or foreign sector";
}
