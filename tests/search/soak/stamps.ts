/**
 * The content of sectors: each one carries the number of its disk, its own number, and a generation
 * that is never used twice on a disk. So a sector says where it belongs and when it was written.
 *
 * @module
 */

export const SECTOR_BYTES = 512;
const WORDS = SECTOR_BYTES / 4;
const MAGIC = 0x51ab50a6;

/** The generation of a sector of zeros. */
export const ZEROS = 0;
/** What {@linkcode generationOf} returns for bytes that nobody wrote to this sector. */
export const FOREIGN = -1;

/** Fills sectors with a generation. */
export function stamp(
  into: Uint8Array<ArrayBuffer>,
  { disk, sector, generation }: { disk: number; sector: number; generation: number },
): void {
  const words = new Uint32Array(into.buffer, into.byteOffset, into.length / 4);
  for (let at = 0; at < words.length; at += 4) {
    words[at] = MAGIC ^ (at % WORDS);
    words[at + 1] = disk;
    words[at + 2] = sector + Math.floor(at / WORDS);
    words[at + 3] = generation;
  }
}

/** The generation of a sector; `FOREIGN` when it is neither zeros nor a whole stamp of this place. */
export function generationOf(
  words: Uint32Array,
  index: number,
  { disk, sector }: { disk: number; sector: number },
): number {
  const base = index * WORDS;
  const generation = words[base + 3];
  if (generation === ZEROS) {
    for (let at = 0; at < WORDS; at++) if (words[base + at] !== 0) return FOREIGN;
    return ZEROS;
  }
  for (let at = 0; at < WORDS; at += 4) {
    if (
      words[base + at] !== ((MAGIC ^ at) >>> 0) || words[base + at + 1] !== disk ||
      words[base + at + 2] !== sector || words[base + at + 3] !== generation
    ) return FOREIGN;
  }
  return generation;
}

/** The sectors as words; copies them when they are not aligned. */
export function wordsOf(data: Uint8Array): Uint32Array {
  const aligned = data.byteOffset % 4 === 0 ? data : data.slice();
  return new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.length / 4);
}

/** What a sector holds, for a report. */
export function describeSector(words: Uint32Array, index: number): string {
  const base = index * WORDS;
  const kinds = new Set<string>();
  for (let at = 0; at < WORDS && kinds.size < 4; at += 4) {
    const [magic, disk, sector, generation] = words.subarray(base + at, base + at + 4);
    if ((magic | disk | sector | generation) === 0) kinds.add("zeros");
    else if (magic === ((MAGIC ^ at) >>> 0)) {
      kinds.add(`generation ${generation} of sector ${sector} of disk ${disk}`);
    } else {
      const hex = [magic, disk, sector, generation].map((word) => word.toString(16));
      kinds.add(`other bytes (words ${hex.join(" ")})`);
    }
  }
  return [...kinds].join(", then ");
}
