import type { FileIdentity } from "../../ffi/files.ts";
import { PAGE_BYTES } from "./page_pool.ts";
import { memoryBytes, SparseBytes, wholeSectors } from "./sparse_bytes.ts";
import type { Survival } from "./survival.ts";

const SECTOR_BYTES = 512;
/** The largest size of a file (the limit of ext4 with blocks of 4 KiB). */
export const MOST_FILE_BYTES = 16 * 1024 ** 4;

let lastInode = 0;

/** A change that a power cut may undo. */
interface Change {
  readonly offsetBytes: number;
  readonly endBytes: number;
  /** The new bytes; null for zeros, of which there may be terabytes. */
  readonly bytes: Uint8Array<ArrayBuffer> | null;
  /** The length of the file after the change. */
  readonly sizeBytes: number;
}

/** The durable state of a file. */
interface Durable {
  content: SparseBytes;
  sizeBytes: number;
}

/**
 * A file of a simulated disk: its contents and, when power cuts are simulated, its durable state
 * and the changes that are not durable.
 */
export class SimulatedFile {
  readonly identity: FileIdentity;
  #content = new SparseBytes();
  #sizeBytes = 0;
  readonly #durable: Durable | null;
  #changes: Change[] = [];
  /** Number of open handles. */
  handles = 0;
  /** The handle that holds the lock, which every writer takes. */
  lockedBy: object | null = null;
  /** Queued operations on the file end no earlier than this time, on the clock of the caller. */
  hangsUntilMs = 0;

  /** @param powerCuts Whether `cutPower` will be called. */
  constructor(powerCuts: boolean, identity?: FileIdentity) {
    this.identity = identity ?? { device: 1, inode: ++lastInode };
    this.#durable = powerCuts ? { content: new SparseBytes(), sizeBytes: 0 } : null;
  }

  /**
   * An unlocked file with the same contents. Changes that are not durable here are not durable
   * there.
   */
  copy(): SimulatedFile {
    const copy = new SimulatedFile(this.#durable !== null, this.identity);
    copy.#content = this.#content.copy();
    copy.#sizeBytes = this.#sizeBytes;
    if (copy.#durable !== null && this.#durable !== null) {
      copy.#durable.content = this.#durable.content.copy();
      copy.#durable.sizeBytes = this.#durable.sizeBytes;
      copy.#changes = [...this.#changes];
    }
    return copy;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Pages of room that the file uses. */
  get pages(): number {
    return this.#content.pageCount;
  }

  /** The number of further pages that a range needs. */
  pagesMissing(offsetBytes: number, lengthBytes: number): number {
    const end = Math.ceil((offsetBytes + lengthBytes) / PAGE_BYTES);
    let missing = 0;
    for (let page = Math.floor(offsetBytes / PAGE_BYTES); page < end; page++) {
      if (!this.#content.has(page)) missing++;
    }
    return missing;
  }

  /**
   * The length of the run at an offset, at most `lengthBytes`: positive for data, negative for a
   * hole.
   */
  run(offsetBytes: number, lengthBytes: number): number {
    return this.#content.run(offsetBytes, lengthBytes);
  }

  #readable(offsetBytes: number, lengthBytes: number): number {
    return Math.max(0, Math.min(lengthBytes, this.#sizeBytes - offsetBytes));
  }

  /** Reads into I/O memory; returns bytes, fewer at the end of the file. */
  readSectors(memorySector: number, sector: number, count: number): number {
    const length = this.#readable(sector * SECTOR_BYTES, count * SECTOR_BYTES);
    const whole = wholeSectors(length);
    this.#content.readSectors(memorySector, sector, whole);
    const rest = length - whole * SECTOR_BYTES;
    if (rest > 0) {
      this.#content.read(memoryBytes(memorySector + whole, rest), (sector + whole) * SECTOR_BYTES);
    }
    return length;
  }

  /** Writes from I/O memory. */
  writeSectors(memorySector: number, sector: number, count: number): void {
    const offsetBytes = sector * SECTOR_BYTES;
    this.#content.writeSectors(memorySector, sector, count);
    this.#sizeBytes = Math.max(this.#sizeBytes, offsetBytes + count * SECTOR_BYTES);
    if (this.#durable === null) return;
    this.#note(offsetBytes, memoryBytes(memorySector, count * SECTOR_BYTES).slice());
  }

  /** Reads into ordinary memory; returns the number of bytes, fewer at the end of the file. */
  read(into: Uint8Array, offsetBytes: number): number {
    const length = this.#readable(offsetBytes, into.length);
    this.#content.read(into.subarray(0, length), offsetBytes);
    return length;
  }

  /** Writes from ordinary memory. */
  write(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    this.#content.write(from, offsetBytes);
    this.#sizeBytes = Math.max(this.#sizeBytes, offsetBytes + from.length);
    if (this.#durable !== null) this.#note(offsetBytes, from.slice());
  }

  #note(offsetBytes: number, bytes: Uint8Array<ArrayBuffer>): void {
    const endBytes = offsetBytes + bytes.length;
    this.#changes.push({ offsetBytes, endBytes, bytes, sizeBytes: this.#sizeBytes });
  }

  /** Sets the length; an added range reads as zeros. */
  truncate(sizeBytes: number): void {
    const before = this.#sizeBytes;
    if (sizeBytes < before) this.#content.zero(sizeBytes, before);
    this.#sizeBytes = sizeBytes;
    const change = { offsetBytes: sizeBytes, endBytes: Math.max(before, sizeBytes), sizeBytes };
    if (this.#durable !== null) this.#changes.push({ ...change, bytes: null });
  }

  /** Zeroes a range and frees its room. */
  punchHole(offsetBytes: number, lengthBytes: number): void {
    const endBytes = Math.min(this.#sizeBytes, offsetBytes + lengthBytes);
    if (endBytes <= offsetBytes) return;
    this.#content.zero(offsetBytes, endBytes);
    const change = { offsetBytes, endBytes, bytes: null, sizeBytes: this.#sizeBytes };
    if (this.#durable !== null) this.#changes.push(change);
  }

  /** Makes all changes durable. */
  sync(): void {
    const durable = this.#durable;
    if (durable === null || this.#changes.length === 0) return;
    const changed = new Set<number>();
    for (const { offsetBytes, endBytes, bytes } of this.#changes) {
      if (bytes === null) {
        for (const page of durable.content.pagesIn(offsetBytes, endBytes)) changed.add(page);
        continue;
      }
      const end = Math.ceil(endBytes / PAGE_BYTES);
      for (let page = Math.floor(offsetBytes / PAGE_BYTES); page < end; page++) changed.add(page);
    }
    for (const page of changed) durable.content.takePage(page, this.#content);
    durable.sizeBytes = this.#sizeBytes;
    this.#changes = [];
  }

  /** Cuts the power; the fault model of the disk defines what survives. */
  cutPower(survival: Survival): void {
    const durable = this.#durable;
    if (durable === null) throw new TypeError("This file does not simulate power cuts");
    const changes = this.#changes;
    this.#changes = [];
    // The length is the one after any of the changes, or the one before all of them.
    const kept = survival.below(changes.length + 1);
    const sizeBytes = kept === 0 ? durable.sizeBytes : changes[kept - 1].sizeBytes;
    const shares = survival.sharesOf(changes.length);
    let longest = durable.sizeBytes;
    for (const [i, change] of changes.entries()) {
      longest = Math.max(longest, change.sizeBytes);
      if (change.bytes === null) {
        // Truncations survive in order and as a whole. A freed range survives like any other
        // change.
        const isCut = change.offsetBytes === change.sizeBytes;
        if (isCut ? i < kept : survival.keeps(shares[i])) {
          durable.content.zero(change.offsetBytes, change.endBytes);
        }
      } else tear(durable.content, change.bytes, { change, survival, share: shares[i] });
    }
    durable.content.zero(sizeBytes, Math.max(longest, sizeBytes));
    durable.sizeBytes = sizeBytes;
    this.#content.release();
    this.#content = durable.content.copy();
    this.#sizeBytes = sizeBytes;
    this.hangsUntilMs = 0;
  }

  /** Frees the memory. */
  release(): void {
    this.#content.release();
    this.#durable?.content.release();
    this.#changes = [];
  }
}

/** Makes the surviving sectors of a write durable. */
function tear(
  content: SparseBytes,
  bytes: Uint8Array<ArrayBuffer>,
  { change, survival, share }: { change: Change; survival: Survival; share: number },
): void {
  if (share === 0) return;
  for (let at = change.offsetBytes; at < change.endBytes;) {
    const end = Math.min(change.endBytes, (Math.floor(at / SECTOR_BYTES) + 1) * SECTOR_BYTES);
    const from = at - change.offsetBytes;
    if (survival.keeps(share)) content.write(bytes.subarray(from, end - change.offsetBytes), at);
    at = end;
  }
}
