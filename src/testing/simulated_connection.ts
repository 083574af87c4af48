import { assertShared } from "../../ffi/assert.ts";
import { memoryAddress, memoryWindow } from "../../ffi/memory.ts";
import { IOVEC_BYTES } from "../../ffi/sockets.ts";
import { normalizePath } from "../files/paths.ts";
import type { Storage } from "../files/storage.ts";
import { type CompletionSink, type DiskBackend, IoKind } from "../queue/backend.ts";
import type { CachedFile, DiskFile, DiskFileOptions, DiskFiles } from "../queue/disk_files.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import type { DiskQueue } from "../queue/disk_queue.ts";
import type { Misdeed, OperationKind } from "./disk_operation.ts";
import type { DiskState } from "./disk_state.ts";
import { OpenDiskFile } from "./open_disk_file.ts";
import { noteOrigins, QueueOrigins } from "./origins.ts";
import type { OperationInFlight } from "./photograph.ts";
import { Random } from "./random.ts";
import type { SimulatedFile } from "./simulated_file.ts";
import type { Segment } from "./unflushed.ts";

const NOTHING = -1;
const SECTOR_BYTES = 512;
const MOST_IOVECS = 64;
/**
 * Size of the window that contains the iovec lists of the queue. The queue is among the first users
 * of I/O memory.
 */
const WINDOW_BYTES = 2 ** 31 - 1;
/** Created once: the runtime counts each view of memory as if the view owned that memory. */
let memoryView: DataView | null = null;
const KIND_NAMES: Record<IoKind, OperationKind> = ["read", "write", "sync"];

/** Options of a connection to a simulated disk. */
export interface ConnectionOptions {
  /**
   * Longest duration of an operation in milliseconds; 0: every operation ends in the turn it starts
   * in.
   */
  readonly latencyMs?: number;
  /** The limit of operations in flight; 512 by default. */
  readonly capacity?: number;
}

/**
 * A simulated disk as the queue of one process sees it: files, and operations that end on the clock
 * of the process's scheduler in an order that depends only on the seed. An operation takes effect
 * when it ends. No operation allocates memory unless the disk has a hook or records unflushed
 * changes.
 */
export class SimulatedConnection implements DiskBackend, DiskFiles {
  readonly capacity: number;
  readonly batch: number;
  readonly storage: Storage;
  readonly #disk: DiskState;
  readonly #scheduler: Scheduler;
  readonly #random: Random;
  readonly #latencyMs: number;
  readonly #boot: number;
  #alive = true;
  readonly #open: (OpenDiskFile | null)[] = [];
  readonly #kinds: Uint8Array;
  readonly #files: Int32Array;
  readonly #sectors: Float64Array;
  readonly #counts: Int32Array;
  readonly #memory: Int32Array;
  /** The caller's iovecs are valid until `submit` only. They are copied here, by operation. */
  readonly #iovecCounts: Uint16Array;
  readonly #iovecs: Int32Array;
  readonly #ios: Int32Array;
  readonly #dueMs: Float64Array;
  /** Null unless the operations are traced. */
  #origins: QueueOrigins | null = null;
  readonly #from: (string | null)[] = [];
  /** How much longer an operation that starts at a sector takes, milliseconds; null: no longer. */
  delayOf: ((kind: OperationKind, sector: number) => number) | null = null;
  #underWay = 0;
  #timer = 0;
  #timerMs = 0;
  readonly #wake = (): void => {
    this.#timer = 0;
  };

  constructor(
    disk: DiskState,
    { storage, scheduler, options }: {
      storage: Storage;
      scheduler: Scheduler;
      options: ConnectionOptions;
    },
  ) {
    const { latencyMs = 0, capacity = 512 } = options;
    this.capacity = capacity;
    this.batch = capacity / 2;
    this.storage = storage;
    this.#disk = disk;
    this.#scheduler = scheduler;
    this.#random = new Random(disk.random.bits());
    this.#latencyMs = latencyMs;
    this.#boot = disk.boot;
    this.#kinds = new Uint8Array(capacity);
    this.#files = new Int32Array(capacity);
    this.#sectors = new Float64Array(capacity);
    this.#counts = new Int32Array(capacity);
    this.#memory = new Int32Array(capacity);
    this.#iovecCounts = new Uint16Array(capacity);
    this.#iovecs = new Int32Array(capacity * 2 * MOST_IOVECS);
    this.#ios = new Int32Array(capacity).fill(NOTHING);
    this.#dueMs = new Float64Array(capacity);
  }

  /** Whether the process is alive and the connection is open. */
  get isAlive(): boolean {
    return this.#alive;
  }

  #assertAlive(): void {
    assertShared(this.#alive, "A process that died uses its disk");
    this.#disk.assertAlive(this.#boot);
  }

  // ---- files ------------------------------------------------------------------------------

  open(path: string, options: DiskFileOptions): DiskFile {
    return this.#openFile(path, options);
  }

  openCached(path: string): CachedFile {
    return this.#openFile(path, { readOnly: false, direct: false });
  }

  #openFile(path: string, { readOnly, same }: DiskFileOptions): OpenDiskFile {
    this.#assertAlive();
    this.#disk.admit({ kind: "open", path, offsetBytes: 0, lengthBytes: 0, queued: true });
    const content = this.#disk.same(normalizePath(this.storage, path), same);
    const file = this.#open.length;
    const opened = new OpenDiskFile({
      path,
      file,
      content,
      readOnly,
      disk: this.#disk,
      onClose: () => this.#open[file] = null,
    });
    this.#open.push(opened);
    return opened;
  }

  /** Notes who calls the queue, for traces; does nothing unless the disk traces. */
  traceQueue(queue: DiskQueue): void {
    if (this.#disk.trace === null) return;
    this.#origins = new QueueOrigins();
    noteOrigins(queue, this.#origins);
  }

  register(file: number): void {
    assertShared(file < this.#open.length, "A file is registered that was not opened here");
  }

  /** Holds back all completions of a file for `forMs`. */
  hang(path: string, forMs: number): void {
    const content = this.#disk.named(normalizePath(this.storage, path));
    content.hangsUntilMs = this.#scheduler.nowMs() + forMs;
    for (let i = 0; i < this.capacity; i++) {
      if (this.#ios[i] === NOTHING || this.#open[this.#files[i]]?.content !== content) continue;
      this.#dueMs[i] = Math.max(this.#dueMs[i], content.hangsUntilMs);
    }
  }

  /**
   * Kills the process and releases its locks. Each of its operations in flight is executed or not,
   * because the kernel may already have it. Those of files that the end of the program has closed are not.
   */
  die(): void {
    if (!this.#alive) return;
    this.#alive = false;
    for (let i = 0; i < this.capacity; i++) {
      if (this.#ios[i] === NOTHING) continue;
      const isOpen = (this.#open[this.#files[i]] ?? null) !== null;
      if (this.#random.chance(0.5) && isOpen) this.#move(i);
      this.#ios[i] = NOTHING;
    }
    this.#underWay = 0;
    for (const file of this.#open) file?.close();
  }

  /** The writes and syncs that have not ended. A write has no more than there is room for. */
  get operationsInFlight(): OperationInFlight[] {
    const found: OperationInFlight[] = [];
    for (let place = 0; place < this.capacity && found.length < this.#underWay; place++) {
      const kind = this.#kinds[place];
      const file = this.#open[this.#files[place]]?.content;
      if (this.#ios[place] === NOTHING || kind === IoKind.Read || file === undefined) continue;
      const write = kind === IoKind.Sync ? null : this.#writeInFlight(place, file);
      if (write === null || write.segments.length > 0) found.push({ file, write });
    }
    return found;
  }

  #writeInFlight(
    place: number,
    file: SimulatedFile,
  ): { offsetBytes: number; segments: readonly Segment[] } {
    const offsetBytes = this.#sectors[place] * SECTOR_BYTES;
    let left = Math.floor(
      this.#disk.roomFor(file, offsetBytes, this.#counts[place] * SECTOR_BYTES) / SECTOR_BYTES,
    );
    const segments: Segment[] = [];
    const parts = Math.max(1, this.#iovecCounts[place]);
    for (let i = 0; i < parts && left > 0; i++) {
      const at = (place * MOST_IOVECS + i) * 2;
      const single = this.#iovecCounts[place] === 0;
      const memorySector = single ? this.#memory[place] : this.#iovecs[at];
      const count = Math.min(left, single ? this.#counts[place] : this.#iovecs[at + 1]);
      segments.push({ memorySector, count });
      left -= count;
    }
    return { offsetBytes, segments };
  }

  // ---- operations -------------------------------------------------------------------------

  prepare(
    kind: IoKind,
    file: number,
    sectors: Float64Array,
    count: number,
    memorySector: number,
    iovecCount: number,
    io: number,
  ): void {
    this.#assertAlive();
    let place = this.#random.below(this.capacity);
    while (this.#ios[place] !== NOTHING) place = (place + 1) % this.capacity;
    this.#ios[place] = io;
    if (this.#origins !== null) this.#from[place] = this.#origins.take(kind, file, sectors[io]);
    this.#kinds[place] = kind;
    this.#files[place] = file;
    this.#sectors[place] = sectors[io];
    this.#counts[place] = count;
    this.#memory[place] = memorySector;
    this.#iovecCounts[place] = iovecCount;
    if (iovecCount > 0) this.#keepIovecs(place, memorySector, iovecCount);
    const hangsUntilMs = this.#open[file]?.content.hangsUntilMs ?? 0;
    const startMs = Math.max(this.#scheduler.nowMs(), hangsUntilMs);
    const moreMs = this.delayOf?.(KIND_NAMES[kind], sectors[io]) ?? 0;
    this.#dueMs[place] = startMs + this.#random.next() * this.#latencyMs + moreMs;
    this.#underWay++;
  }

  #keepIovecs(place: number, memorySector: number, count: number): void {
    memoryView ??= new DataView(memoryWindow(WINDOW_BYTES).buffer);
    const view = memoryView;
    const base = memoryAddress(0);
    assertShared(count <= MOST_IOVECS, "More iovecs than an operation of the simulated disk keeps");
    for (let i = 0; i < count; i++) {
      const at = memorySector * SECTOR_BYTES + i * IOVEC_BYTES;
      const start = view.getUint32(at, true) + view.getUint32(at + 4, true) * 0x1_0000_0000;
      const kept = (place * MOST_IOVECS + i) * 2;
      this.#iovecs[kept] = (start - base) / SECTOR_BYTES;
      this.#iovecs[kept + 1] = view.getUint32(at + 8, true) / SECTOR_BYTES;
    }
  }

  submit(): void {}

  reap(sink: CompletionSink): number {
    this.#assertAlive();
    const nowMs = this.#scheduler.nowMs();
    let count = 0;
    for (let i = 0; i < this.capacity && this.#underWay > 0; i++) {
      if (this.#ios[i] === NOTHING || this.#dueMs[i] > nowMs) continue;
      count++;
      const result = this.#carryOut(i);
      const io = this.#ios[i];
      this.#ios[i] = NOTHING;
      this.#underWay--;
      sink.completed(io, result);
    }
    if (this.#underWay > 0) this.#wakeAtNext();
    return count;
  }

  #carryOut(place: number): number {
    const { beforeOperation, trace } = this.#disk;
    if (beforeOperation === null && trace === null) return this.#move(place);
    const kind = KIND_NAMES[this.#kinds[place] as IoKind];
    const verdict = this.#disk.verdict({
      kind,
      path: this.#open[this.#files[place]]?.path ?? "",
      offsetBytes: this.#sectors[place] * SECTOR_BYTES,
      lengthBytes: this.#counts[place] * SECTOR_BYTES,
      queued: true,
    }, this.#from[place] ?? null);
    if (verdict === 0) return this.#move(place);
    return typeof verdict === "number" ? -verdict : this.#misbehave(place, verdict);
  }

  #misbehave(place: number, misdeed: Misdeed): number {
    switch (misdeed.does) {
      case "lose":
        return this.#counts[place] * SECTOR_BYTES;
      case "misdirect":
        return this.#move(place, misdeed.offsetBytes / SECTOR_BYTES);
      case "rot":
        this.#open[this.#files[place]]?.content.rot(
          this.#sectors[place] * SECTOR_BYTES * 8 + misdeed.bit,
        );
        return this.#move(place);
      case "fail late":
        this.#move(place);
        return -misdeed.errno;
      case "shorten":
        return this.#move(place, this.#sectors[place], misdeed.lengthBytes / SECTOR_BYTES);
    }
  }

  /** Executes an operation: `most` sectors of it, at `sector`. */
  #move(place: number, sector = this.#sectors[place], most = this.#counts[place]): number {
    const file = this.#open[this.#files[place]];
    assertShared(file !== null && file !== undefined, "The disk queue uses a file that is closed");
    const kind = this.#kinds[place];
    if (kind === IoKind.Sync) {
      this.#disk.sync(file.content);
      return 0;
    }
    const segments = this.#iovecCounts[place];
    if (segments === 0) return file.move(kind, sector, most, this.#memory[place]);
    let moved = 0;
    for (let i = 0; i < segments && moved < most * SECTOR_BYTES; i++) {
      const at = (place * MOST_IOVECS + i) * 2;
      const done = moved / SECTOR_BYTES;
      const count = Math.min(this.#iovecs[at + 1], most - done);
      const result = file.move(kind, sector + done, count, this.#iovecs[at]);
      if (result < 0) return moved > 0 ? moved : result;
      moved += result;
      if (result < count * SECTOR_BYTES) break;
    }
    return moved;
  }

  #wakeAtNext(): void {
    let nextMs = Infinity;
    for (let i = 0; i < this.capacity; i++) {
      if (this.#ios[i] !== NOTHING) nextMs = Math.min(nextMs, this.#dueMs[i]);
    }
    // The timer of a delayed operation must not delay operations that were submitted later.
    if (this.#timer !== 0 && this.#timerMs <= nextMs) return;
    this.#scheduler.cancelTimer(this.#timer);
    this.#timerMs = nextMs;
    const delayMs = Math.max(0, nextMs - this.#scheduler.nowMs());
    this.#timer = this.#scheduler.addTimer(delayMs, this.#wake);
  }

  close(): void {
    const mayClose = this.#underWay === 0 || this.#disk.hookThrew;
    assertShared(mayClose, "The connection to a disk is closed with operations under way");
    this.#scheduler.cancelTimer(this.#timer);
    this.die();
  }
}
