/**
 * The memory of another process, for tests that look for bytes which must not be there. Root may read
 * it.
 *
 * @module
 */
import { Buffer } from "node:buffer";

const PAGE_BYTES = 4096;
/** Bits of an entry of /proc/PID/pagemap: the page is in RAM, or in swap. */
const PRESENT_OR_SWAPPED = 0xc0;
const ENTRIES_AT_ONCE = 1 << 20;

/** A mapping of /proc/PID/smaps. */
export interface Mapping {
  readonly start: number;
  readonly end: number;
  readonly name: string;
  /** VmFlags, such as `lo` (locked) and `dd` (not dumped). */
  readonly flags: readonly string[];
}

/** The writable mappings of a process. */
export function writableMappings(pid: number): Mapping[] {
  const text = Deno.readTextFileSync(`/proc/${pid}/smaps`);
  const found = text.matchAll(
    /^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)\n(?:(?![0-9a-f]+-).*\n)*?VmFlags: (.*)$/gm,
  );
  return [...found].filter(([, , , access]) => access.startsWith("rw")).map(
    ([, start, end, , name, flags]) => ({
      start: parseInt(start, 16),
      end: parseInt(end, 16),
      name,
      flags: flags.trim().split(" "),
    }),
  );
}

/** Reads from an offset of a file of /proc; null when the kernel refuses. */
function readFrom(file: Deno.FsFile, offset: number, lengthBytes: number): Uint8Array | null {
  const bytes = new Uint8Array(lengthBytes);
  try {
    file.seekSync(BigInt(offset), Deno.SeekMode.Start);
    let done = 0;
    while (done < lengthBytes) {
      const got = file.readSync(bytes.subarray(done));
      if (got === null || got === 0) break;
      done += got;
    }
    return bytes.subarray(0, done);
  } catch {
    return null;
  }
}

/** The ranges of a mapping that have pages. */
function* usedRanges(pagemap: Deno.FsFile, { start, end }: Mapping): Generator<[number, number]> {
  for (let at = start; at < end; at += ENTRIES_AT_ONCE * PAGE_BYTES) {
    const pages = Math.min(ENTRIES_AT_ONCE, (end - at) / PAGE_BYTES);
    const entries = readFrom(pagemap, (at / PAGE_BYTES) * 8, pages * 8) ?? new Uint8Array(0);
    let from = -1;
    for (let page = 0; page <= pages; page++) {
      const used = page < pages && ((entries[page * 8 + 7] ?? 0) & PRESENT_OR_SWAPPED) !== 0;
      if (used && from < 0) from = page;
      if (used || from < 0) continue;
      yield [at + from * PAGE_BYTES, at + page * PAGE_BYTES];
      from = -1;
    }
  }
}

/** Where a process has these bytes in memory that it can write to: address and mapping of each place. */
export function findInMemory(
  pid: number,
  needles: readonly Uint8Array[],
): { readonly address: number; readonly mapping: Mapping }[] {
  using memory = Deno.openSync(`/proc/${pid}/mem`);
  using pagemap = Deno.openSync(`/proc/${pid}/pagemap`);
  const found: { address: number; mapping: Mapping }[] = [];
  for (const mapping of writableMappings(pid)) {
    for (const [start, end] of usedRanges(pagemap, mapping)) {
      const bytes = readFrom(memory, start, end - start);
      if (bytes === null) continue;
      const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      for (const needle of needles) {
        for (let at = buffer.indexOf(needle); at >= 0; at = buffer.indexOf(needle, at + 1)) {
          found.push({ address: start + at, mapping });
        }
      }
    }
  }
  return found;
}
