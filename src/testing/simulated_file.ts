import type { FileIdentity } from "../../ffi/files.ts";
import { PAGE_BYTES } from "./page_pool.ts";
import { memoryBytes, SparseBytes, wholeSectors } from "./sparse_bytes.ts";
import type { Survival } from "./survival.ts";

const SECTOR_BYTES = 512;
/** A file cannot be longer (the limit of ext4 with blocks of 4 KiB). */
export const MOST_FILE_BYTES = 16 * 1024 ** 4;

let lastInode = 0;

/** A change that a power cut may undo. */
interface Change {
  readonly offsetBytes: number;
  readonly endBytes: number;
  /** Null for zeros, of which there may be terabytes. */
  readonly bytes: Uint8Array<ArrayBuffer> | null;
  /** How long the file was after it. */
  readonly sizeBytes: number;
}

/** What of a file is on stable storage. */
interface Durable {
  content: SparseBytes;
  sizeBytes: number;
}

/**
 * A file of a simulated disk: what it holds and, when power cuts are simulated, what of that is on
 * stable storage and which changes are not.
 */
export class SimulatedFile {
  readonly identity: FileIdentity;
  #content = new SparseBytes();
  #sizeBytes = 0;
  readonly #durable: Durable | null;
  #changes: Change[] = [];
  /** How many handles are open. */
  handles = 0;
  /** The handle that has its lock, which whoever writes takes. */
  lockedBy: object | null = null;
  /** The queue's operations on it end no earlier than that, by the clock of whoever asks. */
  hangsUntilMs = 0;

  /** @param powerCuts Whether `cutPower` will be called. */
  constructor(powerCuts: boolean, identity?: FileIdentity) {
    this.identity = identity ?? { device: 1, inode: ++lastInode };
    this.#durable = powerCuts ? { content: new SparseBytes(), sizeBytes: 0 } : null;
  }

  /** A file that holds the same, unlocked; what is not on stable storage here is not there. */
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

  /** Pages of room that it takes. */
  get pages(): number {
    return this.#content.pageCount;
  }

  /** How many pages more it would take to hold a range. */
  pagesMissing(offsetBytes: number, lengthBytes: number): number {
    const end = Math.ceil((offsetBytes + lengthBytes) / PAGE_BYTES);
    let missing = 0;
    for (let page = Math.floor(offsetBytes / PAGE_BYTES); page < end; page++) {
      if (!this.#content.has(page)) missing++;
    }
    return missing;
  }

  /** Data (positive) or a hole (negative) at an offset: for how many bytes, at most so many. */
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

  /** Reads into bytes anywhere; returns how many, fewer at the end of the file. */
  read(into: Uint8Array, offsetBytes: number): number {
    const length = this.#readable(offsetBytes, into.length);
    this.#content.read(into.subarray(0, length), offsetBytes);
    return length;
  }

  /** Writes bytes from anywhere. */
  write(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    this.#content.write(from, offsetBytes);
    this.#sizeBytes = Math.max(this.#sizeBytes, offsetBytes + from.length);
    if (this.#durable !== null) this.#note(offsetBytes, from.slice());
  }

  #note(offsetBytes: number, bytes: Uint8Array<ArrayBuffer>): void {
    const endBytes = offsetBytes + bytes.length;
    this.#changes.push({ offsetBytes, endBytes, bytes, sizeBytes: this.#sizeBytes });
  }

  /** Gives it another length; what it grows by reads as zeros. */
  truncate(sizeBytes: number): void {
    const before = this.#sizeBytes;
    if (sizeBytes < before) this.#content.zero(sizeBytes, before);
    this.#sizeBytes = sizeBytes;
    const change = { offsetBytes: sizeBytes, endBytes: Math.max(before, sizeBytes), sizeBytes };
    if (this.#durable !== null) this.#changes.push({ ...change, bytes: null });
  }

  /** Makes a range read as zeros and frees its room. */
  punchHole(offsetBytes: number, lengthBytes: number): void {
    const endBytes = Math.min(this.#sizeBytes, offsetBytes + lengthBytes);
    if (endBytes <= offsetBytes) return;
    this.#content.zero(offsetBytes, endBytes);
    const change = { offsetBytes, endBytes, bytes: null, sizeBytes: this.#sizeBytes };
    if (this.#durable !== null) this.#changes.push(change);
  }

  /** Everything that was changed is on stable storage now. */
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

  /** The power fails: see the fault model of the disk for what is left. */
  cutPower(survival: Survival): void {
    const durable = this.#durable;
    if (durable === null) throw new TypeError("This file does not simulate power cuts");
    const changes = this.#changes;
    this.#changes = [];
    // The file's length is the one after any of the changes, or the one before all.
    const kept = survival.below(changes.length + 1);
    const sizeBytes = kept === 0 ? durable.sizeBytes : changes[kept - 1].sizeBytes;
    const shares = survival.sharesOf(changes.length);
    let longest = durable.sizeBytes;
    for (const [i, change] of changes.entries()) {
      longest = Math.max(longest, change.sizeBytes);
      if (change.bytes === null) {
        // Files lose their ends in order, and whole; ranges are freed like any other change.
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

  /** Gives the memory back. */
  release(): void {
    this.#content.release();
    this.#durable?.content.release();
    this.#changes = [];
  }
}

/** Puts those sectors of a write on stable storage that outlast the power cut. */
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
