/**
 * Compares what a disk holds with what it is to hold.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import type { Random } from "../../../src/testing/random.ts";
import type { VhdChain } from "../../../src/vhd/image/chain.ts";
import { readRange } from "../../../src/vhd/image/read.ts";
import { SECTOR_BYTES, stamped } from "../sim/stamps.ts";
import type { Content } from "./content.ts";

/** A range of sectors. */
export interface Range {
  readonly sector: number;
  readonly count: number;
}

/** Reads sectors of a disk. */
export type Reader = (range: Range) => Uint8Array;

/** The bytes of a range. */
export function bytesOf(content: Content, { sector, count }: Range): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(count * SECTOR_BYTES);
  for (let i = 0; i < count; i++) {
    const stamp = content.at(sector + i);
    if (stamp !== 0) bytes.set(stamped(sector + i, 1, stamp), i * SECTOR_BYTES);
  }
  return bytes;
}

/** Disks up to this size are read in full. */
const READ_IN_FULL = 4096;
const LONGEST = 512;

/**
 * Ranges that show what a disk holds: all of a small one; of a larger one its ends, what was
 * written with a sector before and behind it, what is around the `edges`, and some of the rest.
 */
export function rangesOf(random: Random, content: Content, edges: readonly number[] = []): Range[] {
  const { sectors } = content;
  const wanted: Range[] = [];
  if (sectors <= READ_IN_FULL) wanted.push({ sector: 0, count: sectors });
  else {
    wanted.push({ sector: 0, count: 4 }, { sector: sectors - 4, count: 4 });
    for (const { sector, count } of content.runs()) {
      const first = Math.max(0, sector - 1);
      wanted.push({ sector: first, count: Math.min(sectors - first, count + 2) });
    }
    for (const edge of edges) {
      const first = Math.max(0, Math.min(sectors, edge) - 10);
      wanted.push({ sector: first, count: Math.min(sectors - first, 50) });
    }
    for (let i = 0; i < 4; i++) {
      const sector = random.below(0x7fff_ffff) % (sectors - 300);
      wanted.push({ sector, count: 1 + random.below(300) });
    }
  }
  return wanted.flatMap(({ sector, count }) => {
    const parts: Range[] = [];
    for (let done = 0; done < count; done += LONGEST) {
      parts.push({ sector: sector + done, count: Math.min(LONGEST, count - done) });
    }
    return parts;
  });
}

/**
 * Compares ranges of a disk.
 *
 * @throws {Error} for the first sector that differs.
 */
export function compareRanges(
  what: string,
  content: Content,
  { ranges, read }: { ranges: readonly Range[]; read: Reader },
): void {
  for (const range of ranges) {
    const wanted = bytesOf(content, range);
    const got = read(range);
    if (Buffer.compare(got, wanted) === 0) continue;
    throw new Error(`${what}: ${difference(content, range, got)}`);
  }
}

function difference(content: Content, { sector, count }: Range, got: Uint8Array): string {
  for (let i = 0; i < count; i++) {
    const part = got.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
    const range = { sector: sector + i, count: 1 };
    if (Buffer.compare(part, bytesOf(content, range)) === 0) continue;
    const words = new Uint32Array(part.slice().buffer);
    return `sector ${sector + i} is to hold stamp ${content.at(sector + i)}, ` +
      `and holds sector ${words[0]} of stamp ${words[127]}`;
  }
  return `${got.length} bytes were read instead of ${count * SECTOR_BYTES}`;
}

/** Compares what the offline reader reads of an open chain with its content. */
export function compareOffline(
  random: Random,
  chain: VhdChain,
  { path, content }: { path: string; content: Content },
): void {
  compareRanges(`offline, ${path}`, content, {
    ranges: rangesOf(random, content),
    read: ({ sector, count }) => {
      const bytes = new Uint8Array(count * SECTOR_BYTES);
      readRange(chain, bytes, sector * SECTOR_BYTES);
      return bytes;
    },
  });
}
