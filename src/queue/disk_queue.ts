/**
 * `src/queue`: disk I/O. The queue gathers the operations of one turn of the loop, merges neighbours,
 * hands them to its backend in one submission, and tells their owners of the ends. Files are numbers,
 * places on disk and in memory are sectors. It must not know formats, devices or clients.
 *
 * @module
 */
import { assert, assertShared, SharedStateError } from "../../ffi/assert.ts";
import { Errno } from "../../ffi/errno.ts";
import { Arena, isMemory } from "../../ffi/memory.ts";
import { IOVEC_BYTES, putIovec } from "../../ffi/sockets.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { Scheduler, TurnWork } from "../scheduler/scheduler.ts";
import { FileTraces, type SlotFinder } from "../trace/file_traces.ts";
import type { TraceRing } from "../trace/trace_ring.ts";
import type { TracedQueue } from "../trace/tracing.ts";
import { type CompletionSink, type DiskBackend, IoKind } from "./backend.ts";
import { FileHealth, isErrorOfPlace } from "./file_health.ts";

/** What started an operation, and is called at its end. */
export interface IoOwner {
  /**
   * An operation ended.
   *
   * @param token What the owner gave it at the start.
   * @param sectors Its whole length, also when it failed.
   * @param errno 0, or a positive error number.
   */
  ioDone(token: number, sectors: number, errno: number): void;
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
const SECTOR_BYTES = 512;
const MOST_SEGMENTS = 64;
/** Sectors that the iovecs of one group take. */
const IOVEC_SECTORS = MOST_SEGMENTS * IOVEC_BYTES / SECTOR_BYTES;
const MOST_MERGED_SECTORS = 2048;

const nobody: IoOwner = {
  ioDone(): void {
    throw new SharedStateError("An operation without an owner ended");
  },
};

/** The queue of a process; all its disks share it. */
export class DiskQueue implements CompletionSink, TurnWork, TracedQueue {
  /** The most operations that can be held at once. */
  readonly capacity: number;
  readonly statistics: QueueStatistics = { operations: 0, submitted: 0, batches: 0 };
  readonly #scheduler: Scheduler;
  readonly #backend: DiskBackend;
  readonly #owners: IoOwner[];
  readonly #tokens: Int32Array;
  readonly #kinds: Uint8Array;
  readonly #files: Int32Array;
  readonly #sectors: Float64Array;
  readonly #counts: Int32Array;
  readonly #memory: Int32Array;
  /** Next operation of a list: of the free ones, or of a merged group. */
  readonly #next: Int32Array;
  /** Of the first of a group: the next group that waits, the group's last, its sectors and count. */
  readonly #nextGroup: Int32Array;
  readonly #groupLast: Int32Array;
  readonly #groupSectors: Int32Array;
  readonly #groupCount: Uint16Array;
  /** Group that waits and may be merged with, by file: reads at 2 × file, writes after them. */
  #open = new Int32Array(128).fill(NONE);
  readonly #iovecs: Arena;
  #free = 0;
  #firstWaiting = NONE;
  #lastWaiting = NONE;
  #underWay = 0;
  /** Operations at the backend by file. */
  #underWayOf = new Int32Array(64);
  #available: number;
  /** Whether the next completion is the first of a batch. */
  #isFirst = false;
  /** By file: operations that went to the backend with another. */
  #mergesOf = new Float64Array(64);
  /** By file: operations that were started and have not ended. */
  #pendingOf = new Int32Array(64);
  /** By file: when there was one again after none, milliseconds. */
  #busySinceMs = new Float64Array(64);
  /** How the files' disks are. */
  readonly health: FileHealth;
  /** Records operations; null while no disk is traced. */
  #traces: FileTraces | null = null;
  /** By the first of a group: when the group was submitted, milliseconds. */
  readonly #submittedMs: Float64Array;
  /** By file: the disk that a fault of an owner of its operations ends. */
  readonly #faultsOf: (FaultOwner | undefined)[] = [];

  /** @param capacity How many operations can be held at once, over all files. */
  constructor(scheduler: Scheduler, backend: DiskBackend, capacity = 8192) {
    this.#scheduler = scheduler;
    this.#backend = backend;
    this.capacity = capacity;
    this.health = new FileHealth(scheduler.lastMs);
    this.#available = capacity;
    this.#owners = new Array<IoOwner>(capacity).fill(nobody);
    this.#tokens = new Int32Array(capacity);
    this.#kinds = new Uint8Array(capacity);
    this.#files = new Int32Array(capacity);
    this.#sectors = new Float64Array(capacity);
    this.#counts = new Int32Array(capacity);
    this.#memory = new Int32Array(capacity);
    this.#next = new Int32Array(capacity);
    this.#nextGroup = new Int32Array(capacity);
    this.#groupLast = new Int32Array(capacity);
    this.#groupSectors = new Int32Array(capacity);
    this.#groupCount = new Uint16Array(capacity);
    this.#submittedMs = new Float64Array(capacity);
    for (let i = 0; i < capacity; i++) this.#next[i] = i + 1 < capacity ? i + 1 : NONE;
    this.#iovecs = new Arena(backend.batch * IOVEC_SECTORS * SECTOR_BYTES);
    scheduler.addTurnWork(this);
  }

  /**
   * Makes a file known; call it once after opening one and before its first operation.
   *
   * @param faults The disk that ends when an owner of the file's operations throws. Once it has failed,
   * owners are not called any more.
   * @param isDirect Whether its operations go to the disk, past the page cache.
   */
  register(file: number, faults?: FaultOwner, isDirect = false): void {
    if (2 * file + 1 >= this.#open.length) {
      const larger = new Int32Array(4 * file + 4).fill(NONE);
      larger.set(this.#open);
      this.#open = larger;
      const underWayOf = new Int32Array(larger.length / 2);
      underWayOf.set(this.#underWayOf);
      this.#underWayOf = underWayOf;
      const mergesOf = new Float64Array(larger.length / 2);
      mergesOf.set(this.#mergesOf);
      this.#mergesOf = mergesOf;
      const pendingOf = new Int32Array(larger.length / 2);
      pendingOf.set(this.#pendingOf);
      this.#pendingOf = pendingOf;
      const busySinceMs = new Float64Array(larger.length / 2);
      busySinceMs.set(this.#busySinceMs);
      this.#busySinceMs = busySinceMs;
    }
    while (this.#faultsOf.length <= file) this.#faultsOf.push(undefined);
    this.#faultsOf[file] = faults;
    this.#mergesOf[file] = 0;
    this.#traces?.forget(file);
    this.health.register(file, isDirect);
    this.#backend.register(file);
  }

  /**
   * Sets room for `operations` aside, so that starting them cannot fail; false when there is not
   * enough just now. An owner holds room for all operations that it starts.
   *
   * @param held What the same holder has aside already: together no more than a quarter of what is
   * left for all, so that many disks that hang leave room for others.
   */
  reserve(operations: number, held = 0): boolean {
    if (operations > this.#available) return false;
    if (held > 0 && 4 * (held + operations) > this.#available) return false;
    this.#available -= operations;
    return true;
  }

  /** Gives such room back. */
  release(operations: number): void {
    this.#available += operations;
    assertShared(
      this.#available <= this.capacity,
      "More room of the disk queue came back than left",
    );
  }

  /** Reads `count` sectors from `sector` of a file on into I/O memory. */
  read(
    file: number,
    sector: number,
    count: number,
    memorySector: number,
    owner: IoOwner,
    token: number,
  ): void {
    this.#start(IoKind.Read, file, sector, count, memorySector, owner, token);
  }

  /** Writes from I/O memory, which must not change until the end. */
  write(
    file: number,
    sector: number,
    count: number,
    memorySector: number,
    owner: IoOwner,
    token: number,
  ): void {
    this.#start(IoKind.Write, file, sector, count, memorySector, owner, token);
  }

  /** Brings what was written, and has ended, to stable storage. */
  sync(file: number, owner: IoOwner, token: number): void {
    this.#start(IoKind.Sync, file, 0, 0, 0, owner, token);
  }

  #start(
    kind: IoKind,
    file: number,
    sector: number,
    count: number,
    memorySector: number,
    owner: IoOwner,
    token: number,
  ): void {
    if (kind !== IoKind.Sync) {
      assert(count > 0 && sector >= 0, "A disk operation has no place or no length");
      assert(isMemory(memorySector, count), "A disk operation goes beyond I/O memory");
    }
    const io = this.#free;
    assertShared(io !== NONE, "The disk queue is full: more was started than reserved");
    this.#free = this.#next[io];
    this.#owners[io] = owner;
    this.#tokens[io] = token;
    this.#kinds[io] = kind;
    this.#files[io] = file;
    this.#counts[io] = count;
    this.#sectors[io] = sector;
    this.#memory[io] = memorySector;
    this.#next[io] = NONE;
    if (this.#pendingOf[file]++ === 0) this.#busySinceMs[file] = this.#scheduler.lastMs[0];
    this.statistics.operations++;
    if (this.#traces !== null) this.#traces.started(io);
    if (kind === IoKind.Sync || !this.#merge(io)) {
      this.#append(io);
      if (kind !== IoKind.Sync) this.#open[2 * file + kind] = io;
    }
  }

  /** Adds an operation to the waiting group that it continues on disk, if there is one. */
  #merge(io: number): boolean {
    const group = this.#open[2 * this.#files[io] + this.#kinds[io]];
    if (group === NONE) return false;
    const sectors = this.#groupSectors[group] + this.#counts[io];
    if (
      this.#sectors[group] + this.#groupSectors[group] !== this.#sectors[io] ||
      sectors > MOST_MERGED_SECTORS || this.#groupCount[group] >= MOST_SEGMENTS
    ) return false;
    this.#next[this.#groupLast[group]] = io;
    this.#groupLast[group] = io;
    this.#groupSectors[group] = sectors;
    this.#groupCount[group]++;
    this.#mergesOf[this.#files[io]]++;
    return true;
  }

  #append(io: number): void {
    this.#groupLast[io] = io;
    this.#groupSectors[io] = this.#counts[io];
    this.#groupCount[io] = 1;
    this.#nextGroup[io] = NONE;
    if (this.#lastWaiting === NONE) this.#firstWaiting = io;
    else this.#nextGroup[this.#lastWaiting] = io;
    this.#lastWaiting = io;
  }

  /** Submits what the turn gathered and hands out what has finished. */
  endOfTurn(): boolean {
    const submitted = this.#submit();
    if (this.#underWay === 0) return submitted;
    this.#isFirst = true;
    return this.#backend.reap(this) > 0 || submitted;
  }

  #submit(): boolean {
    if (this.#firstWaiting === NONE) return false;
    const { batch, capacity } = this.#backend;
    let prepared = 0;
    let before = NONE;
    if (this.#traces !== null) this.#scheduler.nowMs();
    for (let group = this.#firstWaiting; group !== NONE && prepared < batch;) {
      const next = this.#nextGroup[group];
      const file = this.#files[group];
      const room = capacity - this.#underWay;
      if (room === 0) break;
      // A file has no more at the backend than half of what is left for the others: it may hang.
      if (2 * this.#underWayOf[file] >= room) before = group;
      else {
        if (before === NONE) this.#firstWaiting = next;
        else this.#nextGroup[before] = next;
        if (next === NONE) this.#lastWaiting = before;
        this.#underWay++;
        this.#underWayOf[file]++;
        this.#prepare(group, prepared++);
      }
      group = next;
    }
    if (prepared === 0) return false;
    this.statistics.submitted += prepared;
    this.statistics.batches++;
    this.#backend.submit();
    return true;
  }

  #prepare(group: number, position: number): void {
    const kind = this.#kinds[group];
    const file = this.#files[group];
    this.#submittedMs[group] = this.#scheduler.lastMs[0];
    if (kind !== IoKind.Sync && this.#open[2 * file + kind] === group) {
      this.#open[2 * file + kind] = NONE;
    }
    const segments = this.#groupCount[group] === 1 ? 1 : this.#gather(group, position);
    const memorySector = segments === 1
      ? this.#memory[group]
      : this.#iovecs.sector + position * IOVEC_SECTORS;
    this.#backend.prepare(
      kind as IoKind,
      file,
      this.#sectors,
      this.#groupSectors[group],
      memorySector,
      segments === 1 ? 0 : segments,
      group,
    );
  }

  /** Lists a group's memory as iovecs, joined where adjacent; returns how many there are. */
  #gather(group: number, position: number): number {
    const start = position * IOVEC_SECTORS * SECTOR_BYTES;
    let count = 0;
    let memory = this.#memory[group];
    let sectors = 0;
    for (let io = group; io !== NONE; io = this.#next[io]) {
      if (this.#memory[io] !== memory + sectors) {
        this.#putIovec(start + count++ * IOVEC_BYTES, memory, sectors);
        memory = this.#memory[io];
        sectors = 0;
      }
      sectors += this.#counts[io];
    }
    this.#putIovec(start + count++ * IOVEC_BYTES, memory, sectors);
    return count;
  }

  #putIovec(at: number, memorySector: number, sectors: number): void {
    putIovec(this.#iovecs.view, at, memorySector, 0, sectors * SECTOR_BYTES);
  }

  /** Splits the result of a group among its operations. */
  completed(group: number, told: number): void {
    // All answers of a batch come at the same time, as far as anyone is told.
    if (this.#isFirst) this.#scheduler.nowMs();
    this.#isFirst = false;
    const file = this.#files[group];
    const faults = this.#faultsOf[file];
    this.#underWay--;
    this.#underWayOf[file]--;
    const kind = this.#kinds[group];
    const sectors = this.#groupSectors[group];
    this.health.took(file, this.#submittedMs, group);
    const result = kind === IoKind.Sync ? this.health.syncResult(file, told) : told;
    if (result === sectors * SECTOR_BYTES) {
      this.health.succeeded(file, kind, sectors, this.#sectors, group);
    } else this.health.failed(file, kind, result);
    const mayDivide = result < 0 && this.#groupCount[group] > 1 && faults?.failed !== true;
    if (mayDivide && isErrorOfPlace(-result)) return this.#startSingly(group);
    let left = result / SECTOR_BYTES;
    // A transfer that ended early: owners that did not get all of it may try again. The kernel writes
    // as much as there is room for, and says that there is no more only the next time.
    const early = kind === IoKind.Write ? Errno.ENOSPC : Errno.EIO;
    for (let io = group; io !== NONE;) {
      const next = this.#next[io];
      const count = this.#counts[io];
      const errno = result < 0 ? -result : left >= count ? 0 : early;
      left -= count;
      if (this.#traces !== null) this.#traces.ended(file, group, io, errno);
      const owner = this.#owners[io];
      this.#owners[io] = nobody;
      this.#next[io] = this.#free;
      this.#free = io;
      this.#pendingOf[file]--;
      if (faults === undefined) owner.ioDone(this.#tokens[io], count, errno);
      else if (!faults.failed) this.#tell(owner, this.#tokens[io], count, errno, faults);
      io = next;
    }
  }

  /** Starts each operation of a group again: the place of one cannot be used, and others can. */
  #startSingly(group: number): void {
    for (let io = group; io !== NONE;) {
      const next = this.#next[io];
      this.#next[io] = NONE;
      this.#append(io);
      io = next;
    }
  }

  /** Tells an owner; what it throws keeps no other operation of the batch from ending. */
  #tell(owner: IoOwner, token: number, count: number, errno: number, faults: FaultOwner): void {
    try {
      owner.ioDone(token, count, errno);
    } catch (error) {
      this.#scheduler.contain(error, faults);
    }
  }

  trace(file: number, ring: TraceRing, finder: SlotFinder, layer: number): void {
    this.#traces ??= new FileTraces(this.#scheduler.lastMs, {
      kinds: this.#kinds,
      sectors: this.#sectors,
      counts: this.#counts,
      memory: this.#memory,
      submittedMs: this.#submittedMs,
    });
    this.#traces.add(file, ring, finder, layer);
  }

  untrace(ring: TraceRing): void {
    this.#traces?.remove(ring);
    if (this.#traces?.isEmpty === true) this.#traces = null;
  }

  /** Operations on a file that were started and have not ended. */
  pendingOf(file: number): number {
    return this.#pendingOf[file];
  }

  /** Since when there have been operations on a file that have not ended; of before when there are none. */
  busySinceMs(file: number): number {
    return this.#busySinceMs[file];
  }

  /** How long operations on a file took of late, milliseconds. */
  meanMs(file: number): number {
    return this.health.meanMs(file);
  }

  /** When an operation on a file ended last; -Infinity when none did. */
  endedMs(file: number): number {
    return this.health.endedMs(file);
  }

  /** Operations on a file that went to the backend with another, since it was made known. */
  mergesOf(file: number): number {
    return this.#mergesOf[file];
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
