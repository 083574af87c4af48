/**
 * Disk I/O: operations gathered over one turn of the loop, neighbours merged, handed to the
 * backend in one submission, completions reaped in a batch and given back one by one. It knows
 * files as numbers and memory as addresses; of formats, devices and clients it knows nothing.
 *
 * @module
 */
import { Errno } from "../../ffi/errno.ts";
import { Arena } from "../../ffi/memory.ts";
import { IOVEC_BYTES, putIovec } from "../../ffi/sockets.ts";
import type { Scheduler, TurnWork } from "../scheduler/scheduler.ts";
import { type CompletionSink, type DiskBackend, IoKind } from "./backend.ts";

/** Who started an operation. */
export interface IoOwner {
  /**
   * An operation ended.
   *
   * @param token What the owner gave it at the start.
   * @param lengthBytes Its whole length, also when it failed.
   * @param errno 0, or a positive error number.
   */
  ioDone(token: number, lengthBytes: number, errno: number): void;
}

/** Counts of a queue since it was made. */
export interface QueueStatistics {
  /** Operations started by owners. */
  operations: number;
  /** Operations that went to the backend, after merging. */
  submitted: number;
  /** Submissions. */
  batches: number;
}

const NONE = -1;
const MOST_SEGMENTS = 64;
const MOST_MERGED_BYTES = 1 << 20;

const nobody: IoOwner = {
  ioDone(): void {
    throw new Error("An operation without an owner ended");
  },
};

/** The queue of a process; all its disks share it. */
export class DiskQueue implements CompletionSink, TurnWork {
  /** The most operations that can be held at once. */
  readonly capacity: number;
  readonly statistics: QueueStatistics = { operations: 0, submitted: 0, batches: 0 };
  readonly #scheduler: Scheduler;
  readonly #backend: DiskBackend;
  readonly #owners: IoOwner[];
  readonly #tokens: Int32Array;
  readonly #kinds: Uint8Array;
  readonly #files: Int32Array;
  readonly #lengths: Uint32Array;
  readonly #offsets: Float64Array;
  readonly #addresses: Float64Array;
  /** Next operation of a list: of the free ones, or of a merged group. */
  readonly #next: Int32Array;
  /** Of the first of a group: the next group that waits, the group's last, its bytes and count. */
  readonly #nextGroup: Int32Array;
  readonly #groupLast: Int32Array;
  readonly #groupBytes: Uint32Array;
  readonly #groupCount: Uint16Array;
  /** Group that waits and may be merged with, by file: reads at 2 × file, writes after them. */
  #open = new Int32Array(128).fill(NONE);
  readonly #iovecs: Arena;
  #free = 0;
  #firstWaiting = NONE;
  #lastWaiting = NONE;
  #underWay = 0;
  #available: number;

  /** @param capacity How many operations can be held at once, over all files. */
  constructor(scheduler: Scheduler, backend: DiskBackend, capacity = 8192) {
    this.#scheduler = scheduler;
    this.#backend = backend;
    this.capacity = capacity;
    this.#available = capacity;
    this.#owners = new Array<IoOwner>(capacity).fill(nobody);
    this.#tokens = new Int32Array(capacity);
    this.#kinds = new Uint8Array(capacity);
    this.#files = new Int32Array(capacity);
    this.#lengths = new Uint32Array(capacity);
    this.#offsets = new Float64Array(capacity);
    this.#addresses = new Float64Array(capacity);
    this.#next = new Int32Array(capacity);
    this.#nextGroup = new Int32Array(capacity);
    this.#groupLast = new Int32Array(capacity);
    this.#groupBytes = new Uint32Array(capacity);
    this.#groupCount = new Uint16Array(capacity);
    for (let i = 0; i < capacity; i++) this.#next[i] = i + 1 < capacity ? i + 1 : NONE;
    this.#iovecs = new Arena(backend.batch * MOST_SEGMENTS * IOVEC_BYTES);
    scheduler.addTurnWork(this);
  }

  /** Makes a file known; call it once after opening one and before its first operation. */
  register(file: number): void {
    if (2 * file + 1 >= this.#open.length) {
      const larger = new Int32Array(4 * file + 4).fill(NONE);
      larger.set(this.#open);
      this.#open = larger;
    }
    this.#backend.register(file);
  }

  /**
   * Sets room for `operations` aside, so that starting them cannot fail; false when there is not
   * enough just now. Whoever starts operations holds at least as much room.
   */
  reserve(operations: number): boolean {
    if (operations > this.#available) return false;
    this.#available -= operations;
    return true;
  }

  /** Gives such room back. */
  release(operations: number): void {
    this.#available += operations;
  }

  /** Reads into memory. */
  read(
    file: number,
    offsetBytes: number,
    lengthBytes: number,
    address: number,
    owner: IoOwner,
    token: number,
  ): void {
    this.#start(IoKind.Read, file, offsetBytes, lengthBytes, address, owner, token);
  }

  /** Writes from memory, which must not change until the end. */
  write(
    file: number,
    offsetBytes: number,
    lengthBytes: number,
    address: number,
    owner: IoOwner,
    token: number,
  ): void {
    this.#start(IoKind.Write, file, offsetBytes, lengthBytes, address, owner, token);
  }

  /** Brings what was written, and has ended, to stable storage. */
  sync(file: number, owner: IoOwner, token: number): void {
    this.#start(IoKind.Sync, file, 0, 0, 0, owner, token);
  }

  #start(
    kind: IoKind,
    file: number,
    offsetBytes: number,
    lengthBytes: number,
    address: number,
    owner: IoOwner,
    token: number,
  ): void {
    const io = this.#free;
    if (io === NONE) throw new Error("The disk queue is full: more was started than reserved");
    this.#free = this.#next[io];
    this.#owners[io] = owner;
    this.#tokens[io] = token;
    this.#kinds[io] = kind;
    this.#files[io] = file;
    this.#lengths[io] = lengthBytes;
    this.#offsets[io] = offsetBytes;
    this.#addresses[io] = address;
    this.#next[io] = NONE;
    this.statistics.operations++;
    if (kind === IoKind.Sync || !this.#merge(io)) this.#append(io);
  }

  /** Adds an operation to the waiting group that it continues on disk, if there is one. */
  #merge(io: number): boolean {
    const group = this.#open[2 * this.#files[io] + this.#kinds[io]];
    if (group === NONE) return false;
    const bytes = this.#groupBytes[group] + this.#lengths[io];
    if (
      this.#offsets[group] + this.#groupBytes[group] !== this.#offsets[io] ||
      bytes > MOST_MERGED_BYTES || this.#groupCount[group] >= MOST_SEGMENTS
    ) return false;
    this.#next[this.#groupLast[group]] = io;
    this.#groupLast[group] = io;
    this.#groupBytes[group] = bytes;
    this.#groupCount[group]++;
    return true;
  }

  #append(io: number): void {
    this.#groupLast[io] = io;
    this.#groupBytes[io] = this.#lengths[io];
    this.#groupCount[io] = 1;
    this.#nextGroup[io] = NONE;
    if (this.#lastWaiting === NONE) this.#firstWaiting = io;
    else this.#nextGroup[this.#lastWaiting] = io;
    this.#lastWaiting = io;
    if (this.#kinds[io] !== IoKind.Sync) this.#open[2 * this.#files[io] + this.#kinds[io]] = io;
  }

  /** Submits what the turn gathered and hands out what has finished. */
  endOfTurn(): boolean {
    const submitted = this.#submit();
    if (this.#underWay === 0) return submitted;
    return this.#backend.reap(this) > 0 || submitted;
  }

  #submit(): boolean {
    if (this.#firstWaiting === NONE) return false;
    const room = Math.min(this.#backend.batch, this.#backend.capacity - this.#underWay);
    let prepared = 0;
    while (this.#firstWaiting !== NONE && prepared < room) {
      const group = this.#firstWaiting;
      this.#firstWaiting = this.#nextGroup[group];
      this.#prepare(group, prepared++);
    }
    if (this.#firstWaiting === NONE) this.#lastWaiting = NONE;
    if (prepared === 0) return false;
    this.#underWay += prepared;
    this.statistics.submitted += prepared;
    this.statistics.batches++;
    this.#backend.submit();
    return true;
  }

  #prepare(group: number, position: number): void {
    const kind = this.#kinds[group];
    const file = this.#files[group];
    if (kind !== IoKind.Sync && this.#open[2 * file + kind] === group) {
      this.#open[2 * file + kind] = NONE;
    }
    const bytes = this.#groupBytes[group];
    const offset = this.#offsets[group];
    const segments = this.#groupCount[group] === 1 ? 1 : this.#gather(group, position);
    if (segments === 1) {
      this.#backend.prepare(
        kind as IoKind,
        file,
        offset,
        bytes,
        this.#addresses[group],
        0,
        group,
      );
    } else {
      const address = this.#iovecs.address + position * MOST_SEGMENTS * IOVEC_BYTES;
      this.#backend.prepare(kind as IoKind, file, offset, bytes, address, segments, group);
    }
  }

  /** Lists a group's memory as iovecs, joined where adjacent; returns how many there are. */
  #gather(group: number, position: number): number {
    const start = position * MOST_SEGMENTS * IOVEC_BYTES;
    let count = 0;
    let address = this.#addresses[group];
    let length = 0;
    for (let io = group; io !== NONE; io = this.#next[io]) {
      if (this.#addresses[io] !== address + length) {
        putIovec(this.#iovecs.view, start + count++ * IOVEC_BYTES, address, length);
        address = this.#addresses[io];
        length = 0;
      }
      length += this.#lengths[io];
    }
    putIovec(this.#iovecs.view, start + count++ * IOVEC_BYTES, address, length);
    return count;
  }

  /** Splits the result of a group among its operations. */
  completed(group: number, result: number): void {
    this.#underWay--;
    let left = result;
    for (let io = group; io !== NONE;) {
      const next = this.#next[io];
      const length = this.#lengths[io];
      // A transfer that ends early: whoever got less than all of it tries again.
      const errno = result < 0 ? -result : left >= length ? 0 : Errno.EIO;
      left -= length;
      const owner = this.#owners[io];
      this.#owners[io] = nobody;
      this.#next[io] = this.#free;
      this.#free = io;
      owner.ioDone(this.#tokens[io], length, errno);
      io = next;
    }
  }

  /** Whether nothing waits and nothing is under way. */
  get idle(): boolean {
    return this.#underWay === 0 && this.#firstWaiting === NONE;
  }

  /** Releases the backend; the queue must be idle. */
  close(): void {
    this.#scheduler.removeTurnWork(this);
    this.#backend.close();
    this.#iovecs.release();
  }
}
