import type { FileIdentity } from "../../ffi/files.ts";
import { PAGE_BYTES } from "./page_pool.ts";
import { memoryBytes, SparseBytes, wholeSectors } from "./sparse_bytes.ts";
import type { Survival } from "./survival.ts";
import { applyCut, type Change, type Cut, type Segment } from "./unflushed.ts";

const SECTOR_BYTES = 512;
/** The largest size of a file (the limit of ext4 with blocks of 4 KiB). */
export const MOST_FILE_BYTES = 16 * 1024 ** 4;

/** What makes a file a block device. */
export interface BlockDevice {
  readonly sizeBytes: number;
  /** Chooses what the device held before it was in use; null: zeros. */
  readonly garbage: number | null;
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
  readonly device: BlockDevice | null;
  #content: SparseBytes;
  #sizeBytes: number;
  readonly #durable: Durable | null;
  #changes: Change[] = [];
  /** Number of open handles. */
  handles = 0;
  /** The handle that holds the lock, which every writer takes. */
  lockedBy: object | null = null;
  /** Queued operations on the file end no earlier than this time, on the clock of the caller. */
  hangsUntilMs = 0;

  /** @param powerCuts Whether `cutPower` will be called. */
  constructor(powerCuts: boolean, identity: FileIdentity, device: BlockDevice | null) {
    this.identity = identity;
    this.device = device;
    const garbage = device?.garbage ?? null;
    const sizeBytes = device?.sizeBytes ?? 0;
    this.#content = new SparseBytes(garbage);
    this.#sizeBytes = sizeBytes;
    this.#durable = powerCuts ? { content: new SparseBytes(garbage), sizeBytes } : null;
  }

  /**
   * An unlocked file with the same contents. Changes that are not durable here are not durable
   * there.
   */
  copy(): SimulatedFile {
    const copy = new SimulatedFile(this.#durable !== null, this.identity, this.device);
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
    return this.device === null ? this.#content.pageCount : 0;
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
    if (this.device !== null) return lengthBytes;
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
    const { sizeBytes } = this;
    this.#changes.push({ kind: "write", offsetBytes, endBytes, bytes, sizeBytes });
  }

  /** Sets the length; an added range reads as zeros. */
  truncate(sizeBytes: number): void {
    const before = this.#sizeBytes;
    if (sizeBytes < before) this.#content.zero(sizeBytes, before);
    this.#sizeBytes = sizeBytes;
    if (this.#durable === null) return;
    const range = { offsetBytes: sizeBytes, endBytes: Math.max(before, sizeBytes) };
    this.#changes.push({ kind: "truncate", ...range, bytes: null, sizeBytes });
  }

  /** Flips a bit of the data at rest. */
  rot(bit: number): void {
    const byte = new Uint8Array(1);
    const offsetBytes = Math.floor(bit / 8);
    for (const content of [this.#content, this.#durable?.content]) {
      content?.read(byte, offsetBytes);
      byte[0] ^= 1 << bit % 8;
      content?.write(byte, offsetBytes);
    }
  }

  /** Zeroes a range and frees its room. */
  punchHole(offsetBytes: number, lengthBytes: number): void {
    const endBytes = Math.min(this.#sizeBytes, offsetBytes + lengthBytes);
    if (endBytes <= offsetBytes) return;
    this.#content.zero(offsetBytes, endBytes);
    if (this.#durable === null) return;
    const { sizeBytes } = this;
    this.#changes.push({ kind: "punch", offsetBytes, endBytes, bytes: null, sizeBytes });
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
    const durable = this.#recorded();
    const changes = this.#changes;
    this.#changes = [];
    const cut = randomCut(changes.length, survival);
    durable.sizeBytes = applyCut(durable.content, changes, { cut, startBytes: durable.sizeBytes });
    this.#content.release();
    this.#content = durable.content.copy();
    this.#sizeBytes = durable.sizeBytes;
    this.hangsUntilMs = 0;
  }

  #recorded(): Durable {
    if (this.#durable === null) throw new TypeError("This file does not simulate power cuts");
    return this.#durable;
  }

  /** The changes that a power cut may undo, and the length before them. */
  get unflushed(): { readonly changes: readonly Change[]; readonly startBytes: number } {
    return { changes: this.#changes, startBytes: this.#recorded().sizeBytes };
  }

  /** A write that is in flight, as a change after `before` (null: after all that were made). */
  writeInFlight(
    { offsetBytes, segments, before }: {
      offsetBytes: number;
      segments: readonly Segment[];
      before: Change | null;
    },
  ): Change {
    const sectors = segments.reduce((sum, { count }) => sum + count, 0);
    const endBytes = offsetBytes + sectors * SECTOR_BYTES;
    const sizeBytes = Math.max(before?.sizeBytes ?? this.#sizeBytes, endBytes);
    return { kind: "write", offsetBytes, endBytes, bytes: segments, sizeBytes };
  }

  /**
   * Another file: this one as a power cut leaves it. This file does not change.
   *
   * @param changes The unflushed changes, and then those that are in flight.
   */
  afterCut(changes: readonly Change[], cut: Cut, powerCuts: boolean): SimulatedFile {
    const durable = this.#recorded();
    const file = new SimulatedFile(powerCuts, this.identity, this.device);
    file.#content = durable.content.copy();
    const { sizeBytes: startBytes } = durable;
    file.#sizeBytes = applyCut(file.#content, changes, { cut, startBytes });
    if (file.#durable !== null) {
      file.#durable.content = file.#content.copy();
      file.#durable.sizeBytes = file.#sizeBytes;
    }
    return file;
  }

  /** Frees the memory. */
  release(): void {
    this.#content.release();
    this.#durable?.content.release();
    this.#changes = [];
  }
}

/** Draws what a power cut keeps of the changes of one file. */
export function randomCut(changes: number, survival: Survival): Cut {
  // The length is the one after any of the changes, or the one before all of them.
  const lengths = survival.below(changes + 1);
  const shares = survival.sharesOf(changes);
  return {
    lengths,
    keeps: (index) => {
      const share = shares[index];
      return share === 0 || share === 1 ? share === 1 : () => survival.keeps(share);
    },
  };
}
