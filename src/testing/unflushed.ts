import type { SparseBytes } from "./sparse_bytes.ts";

const SECTOR_BYTES = 512;

/** A part of a write that is in flight: its data is in I/O memory. */
export interface Segment {
  readonly memorySector: number;
  readonly count: number;
}

/** A change of a file that a power cut may undo. */
export interface Change {
  readonly kind: "write" | "punch" | "truncate";
  readonly offsetBytes: number;
  readonly endBytes: number;
  /** The new bytes of a write; the segments of a write in flight; otherwise null: zeros. */
  readonly bytes: Uint8Array<ArrayBuffer> | readonly Segment[] | null;
  /** The length of the file after the change. */
  readonly sizeBytes: number;
}

/** What a power cut keeps of a change: all, nothing, or the sectors (counted from its first). */
export type Kept = boolean | ((sector: number) => boolean);

/** What a power cut keeps of the changes of a file. */
export interface Cut {
  /** The length is the one after so many changes. Truncations beyond them are lost. */
  readonly lengths: number;
  keeps(index: number): Kept;
}

/** The length of the file after the first `count` changes. */
function lengthAfter(
  changes: readonly Change[],
  { count, startBytes }: { count: number; startBytes: number },
): number {
  return count === 0 ? startBytes : changes[count - 1].sizeBytes;
}

/** The indexes of the changes that change the length. */
export function lengthChanges(changes: readonly Change[], startBytes: number): number[] {
  return [...changes.keys()].filter((i) =>
    changes[i].sizeBytes !== lengthAfter(changes, { count: i, startBytes })
  );
}

/** Applies the surviving changes to durable content; returns the length of the file. */
export function applyCut(
  content: SparseBytes,
  changes: readonly Change[],
  { cut, startBytes }: { cut: Cut; startBytes: number },
): number {
  const sizeBytes = lengthAfter(changes, { count: cut.lengths, startBytes });
  let longest = startBytes;
  for (const [i, change] of changes.entries()) {
    longest = Math.max(longest, change.sizeBytes);
    // Truncations survive in order and as a whole. A freed range survives like any other change.
    if (change.kind === "truncate") {
      if (i < cut.lengths) content.zero(change.offsetBytes, change.endBytes);
    } else applyKept(content, change, cut.keeps(i));
  }
  content.zero(sizeBytes, Math.max(longest, sizeBytes));
  return sizeBytes;
}

function applyKept(content: SparseBytes, change: Change, kept: Kept): void {
  const { offsetBytes, endBytes } = change;
  if (kept === false) return;
  if (kept === true) return applyRange(content, change, { from: offsetBytes, to: endBytes });
  const first = Math.floor(offsetBytes / SECTOR_BYTES);
  const end = Math.ceil(endBytes / SECTOR_BYTES);
  for (let sector = first; sector < end;) {
    const start = sector;
    while (sector < end && kept(sector - first)) sector++;
    if (sector > start) {
      const from = Math.max(offsetBytes, start * SECTOR_BYTES);
      applyRange(content, change, { from, to: Math.min(endBytes, sector * SECTOR_BYTES) });
    }
    sector++;
  }
}

/** Applies a part of a change; of a write in flight, whole sectors. */
function applyRange(
  content: SparseBytes,
  { offsetBytes, bytes }: Change,
  { from, to }: { from: number; to: number },
): void {
  if (bytes === null) return content.zero(from, to);
  if (bytes instanceof Uint8Array) {
    return content.write(bytes.subarray(from - offsetBytes, to - offsetBytes), from);
  }
  let sector = offsetBytes / SECTOR_BYTES;
  for (const { memorySector, count } of bytes) {
    const start = Math.max(sector, from / SECTOR_BYTES);
    const end = Math.min(sector + count, to / SECTOR_BYTES);
    if (start < end) content.writeSectors(memorySector + start - sector, start, end - start);
    sector += count;
  }
}
