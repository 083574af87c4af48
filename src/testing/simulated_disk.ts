import { Errno, SystemError } from "../../ffi/errno.ts";
import { memoryAddress, memoryWindow } from "../../ffi/memory.ts";
import { IOVEC_BYTES } from "../../ffi/sockets.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import { normalizePath } from "../files/paths.ts";
import type {
  FileIdentity,
  FileLocation,
  OpenMode,
  PathStatus,
  Storage,
  StorageFile,
} from "../files/storage.ts";
import { type CompletionSink, type DiskBackend, IoKind } from "../queue/backend.ts";
import type { DiskFile, DiskFileOptions, DiskFiles } from "../queue/disk_files.ts";
import { Random } from "./random.ts";
import { SimulatedFile } from "./simulated_file.ts";

const CAPACITY = 512;
const BATCH = 256;
const NOTHING = -1;
const SECTOR_BYTES = 512;
const MOST_IOVECS = 64;
/** Where the queue's lists of iovecs are: among the first that takes I/O memory. */
const WINDOW_BYTES = 2 ** 31 - 1;

/** How a simulated disk behaves. */
export interface SimulatedDiskOptions {
  readonly seed: number;
  /** Longest time that an operation takes, milliseconds; 0: all end in the turn they start. */
  readonly latencyMs?: number;
  /** Whether `cutPower` will be called. */
  readonly powerCuts?: boolean;
}

/** Says how an operation ends: 0 for well, or an error number. */
export type FaultInjector = (
  kind: IoKind,
  file: number,
  sector: number,
  count: number,
) => number;

/**
 * A disk in memory: files by name, operations that end in an order that only the seed knows, on the
 * scheduler's clock; errors and power cuts on demand. The engine runs on it as on a real disk.
 */
export class SimulatedDisk implements DiskBackend, DiskFiles {
  readonly capacity = CAPACITY;
  readonly batch = BATCH;
  readonly storage: Storage;
  /** Asked when an operation ends. */
  fault: FaultInjector | null = null;
  /** Error number of every attempt to change a file's length; 0: they go well. */
  lengthFault = 0;
  /** Operations that have ended. */
  ended = 0;
  readonly #scheduler: Scheduler;
  readonly #random: Random;
  readonly #latencyMs: number;
  readonly #powerCuts: boolean;
  readonly #files: Map<string, SimulatedFile>;
  readonly #open: (SimulatedFile | null)[] = [];
  readonly #kinds = new Uint8Array(CAPACITY);
  readonly #fileNumbers = new Int32Array(CAPACITY);
  readonly #sectors = new Int32Array(CAPACITY);
  readonly #counts = new Int32Array(CAPACITY);
  readonly #memory = new Int32Array(CAPACITY);
  /** Iovecs are the caller's until `submit` only: they are kept here, by operation. */
  readonly #iovecCounts = new Uint16Array(CAPACITY);
  readonly #iovecs = new Int32Array(CAPACITY * 2 * MOST_IOVECS);
  readonly #memoryView = new DataView(memoryWindow(WINDOW_BYTES).buffer);
  readonly #ios = new Int32Array(CAPACITY).fill(NOTHING);
  readonly #dueMs = new Float64Array(CAPACITY);
  #underWay = 0;
  #timer = 0;
  #timerMs = 0;
  readonly #wake = (): void => {
    this.#timer = 0;
  };

  constructor(
    scheduler: Scheduler,
    options: SimulatedDiskOptions,
    files = new Map<string, SimulatedFile>(),
  ) {
    this.#scheduler = scheduler;
    this.#files = files;
    this.#random = new Random(options.seed);
    this.#latencyMs = options.latencyMs ?? 0;
    this.#powerCuts = options.powerCuts ?? false;
    this.storage = new SimulatedStorage(this.#files, () => new SimulatedFile(this.#powerCuts));
  }

  // ---- files ------------------------------------------------------------------------------

  open(path: string, { readOnly }: DiskFileOptions): DiskFile {
    const file = this.#files.get(normalizePath(this.storage, path));
    if (file === undefined) throw new SystemError(Errno.ENOENT, `Cannot open ${path}`);
    const opened = new OpenSimulatedFile(path, this.#open.length, file, {
      lengthFault: () => this.lengthFault,
      onClose: () => {
        this.#open[opened.file] = null;
        if (file.lockedBy === opened) file.lockedBy = null;
      },
    });
    if (!readOnly) {
      if (file.lockedBy !== null) {
        throw new SystemError(Errno.EBUSY, `Cannot open ${path} for writing: it is being served`);
      }
      file.lockedBy = opened;
    }
    this.#open.push(file);
    return opened;
  }

  register(_file: number): void {}

  /** A file answers nothing for so long, and then all that it was asked. */
  hang(path: string, forMs: number): void {
    const file = this.#files.get(normalizePath(this.storage, path));
    if (file === undefined) throw new SystemError(Errno.ENOENT, `Cannot find ${path}`);
    file.hangsUntilMs = this.#scheduler.nowMs() + forMs;
    for (let i = 0; i < CAPACITY; i++) {
      if (this.#ios[i] === NOTHING || this.#open[this.#fileNumbers[i]] !== file) continue;
      this.#dueMs[i] = Math.max(this.#dueMs[i], file.hangsUntilMs);
    }
  }

  /**
   * The power fails: what was not synced is lost in part, and nothing is under way any more.
   * Returns the disk as the machine finds it when it starts again, with another scheduler.
   */
  cutPower(scheduler: Scheduler, options: SimulatedDiskOptions): SimulatedDisk {
    for (let i = 0; i < CAPACITY; i++) {
      if (this.#ios[i] === NOTHING) continue;
      // What was under way may have reached the disk in part.
      if (this.#kinds[i] === IoKind.Write) this.#move(i);
      this.#ios[i] = NOTHING;
    }
    this.#underWay = 0;
    this.#open.fill(null);
    for (const file of this.#files.values()) file.cutPower(this.#random);
    return new SimulatedDisk(scheduler, options, this.#files);
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
    let place = this.#random.below(CAPACITY);
    while (this.#ios[place] !== NOTHING) place = (place + 1) % CAPACITY;
    this.#ios[place] = io;
    this.#kinds[place] = kind;
    this.#fileNumbers[place] = file;
    this.#sectors[place] = sectors[io];
    this.#counts[place] = count;
    this.#memory[place] = memorySector;
    this.#iovecCounts[place] = iovecCount;
    if (iovecCount > 0) this.#keepIovecs(place, memorySector, iovecCount);
    const startMs = Math.max(this.#scheduler.nowMs(), this.#open[file]?.hangsUntilMs ?? 0);
    this.#dueMs[place] = startMs + this.#random.next() * this.#latencyMs;
    this.#underWay++;
  }

  #keepIovecs(place: number, memorySector: number, count: number): void {
    const view = this.#memoryView;
    const base = memoryAddress(0);
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
    const nowMs = this.#scheduler.nowMs();
    let count = 0;
    for (let i = 0; i < CAPACITY && this.#underWay > 0; i++) {
      if (this.#ios[i] === NOTHING || this.#dueMs[i] > nowMs) continue;
      count++;
      this.#finish(i, sink);
    }
    if (this.#underWay > 0) this.#wakeAtNext();
    return count;
  }

  #finish(place: number, sink: CompletionSink): void {
    const io = this.#ios[place];
    const kind = this.#kinds[place] as IoKind;
    const file = this.#fileNumbers[place];
    const errno = this.fault === null
      ? 0
      : this.fault(kind, file, this.#sectors[place], this.#counts[place]);
    const result = errno !== 0 ? -errno : this.#move(place);
    this.#ios[place] = NOTHING;
    this.#underWay--;
    this.ended++;
    sink.completed(io, result);
  }

  #move(place: number): number {
    const file = this.#open[this.#fileNumbers[place]];
    if (file === null || file === undefined) return -Errno.EBADF;
    const kind = this.#kinds[place];
    if (kind === IoKind.Sync) {
      file.sync();
      return 0;
    }
    const sector = this.#sectors[place];
    const segments = this.#iovecCounts[place];
    if (segments === 0) {
      return moveRange(file, kind, sector, this.#counts[place], this.#memory[place]);
    }
    let moved = 0;
    for (let i = 0; i < segments; i++) {
      const at = (place * MOST_IOVECS + i) * 2;
      const done = moved / SECTOR_BYTES;
      moved += moveRange(file, kind, sector + done, this.#iovecs[at + 1], this.#iovecs[at]);
    }
    return moved;
  }

  #wakeAtNext(): void {
    let nextMs = Infinity;
    for (let i = 0; i < CAPACITY; i++) {
      if (this.#ios[i] !== NOTHING) nextMs = Math.min(nextMs, this.#dueMs[i]);
    }
    // The timer for what hangs must not hold up what was asked since.
    if (this.#timer !== 0 && this.#timerMs <= nextMs) return;
    this.#scheduler.cancelTimer(this.#timer);
    this.#timerMs = nextMs;
    const delayMs = Math.max(0, nextMs - this.#scheduler.nowMs());
    this.#timer = this.#scheduler.addTimer(delayMs, this.#wake);
  }

  close(): void {
    for (const file of this.#files.values()) file.release();
    this.#files.clear();
  }
}

/** Moves sectors between a file and memory; returns bytes. */
function moveRange(
  file: SimulatedFile,
  kind: number,
  sector: number,
  count: number,
  memorySector: number,
): number {
  const offsetBytes = sector * SECTOR_BYTES;
  const lengthBytes = count * SECTOR_BYTES;
  if (kind === IoKind.Read) return file.read(memorySector, offsetBytes, lengthBytes);
  file.write(memorySector, offsetBytes, lengthBytes);
  return lengthBytes;
}

class OpenSimulatedFile implements DiskFile {
  readonly isBlockDevice = false;
  readonly cachedBecause = null;

  constructor(
    readonly path: string,
    readonly file: number,
    readonly content: SimulatedFile,
    readonly disk: { lengthFault: () => number; onClose: () => void },
  ) {}

  get identity(): FileIdentity {
    return this.content.identity;
  }

  sizeBytes(): number {
    return this.content.sizeBytes;
  }

  truncate(lengthBytes: number): void {
    const errno = this.disk.lengthFault();
    if (errno !== 0) throw new SystemError(errno, `Cannot change the length of ${this.path}`);
    this.content.truncate(lengthBytes);
  }

  punchHole(offsetBytes: number, lengthBytes: number): boolean {
    this.content.zero(offsetBytes, lengthBytes);
    return true;
  }

  allocatedRun(_offsetBytes: number, lengthBytes: number): number {
    return lengthBytes;
  }

  close(): void {
    this.disk.onClose();
  }
}

/** The same files for code that works on them offline. Paths are absolute; there are no links. */
class SimulatedStorage implements Storage {
  constructor(
    readonly files: Map<string, SimulatedFile>,
    readonly create: () => SimulatedFile,
  ) {}

  open(path: string, mode: OpenMode): StorageFile {
    const name = normalizePath(this, path);
    let file = this.files.get(name);
    if (mode === "create-new" && file !== undefined) {
      throw new SystemError(Errno.EEXIST, `Cannot create ${path}`);
    }
    if (file === undefined) {
      if (mode === "read" || mode === "write") {
        throw new SystemError(Errno.ENOENT, `Cannot open ${path}`);
      }
      file = this.create();
      this.files.set(name, file);
    } else if (mode === "create") file.truncate(0);
    return new OfflineFile(path, file);
  }

  realPath(path: string): string {
    this.#named(path);
    return normalizePath(this, path);
  }

  locate(path: string): FileLocation {
    return { ...this.#named(path).identity, realPath: normalizePath(this, path), kind: "file" };
  }

  status(path: string): PathStatus {
    return { kind: "file", sizeBytes: this.#named(path).sizeBytes, mtimeSeconds: 1_700_000_000 };
  }

  exists(path: string): boolean {
    return this.files.has(normalizePath(this, path));
  }

  workingDirectory(): string {
    return "/";
  }

  rename(from: string, to: string): void {
    this.files.set(normalizePath(this, to), this.#named(from));
    this.files.delete(normalizePath(this, from));
  }

  renameToNew(from: string, to: string): void {
    if (this.exists(to)) throw new SystemError(Errno.EEXIST, `Cannot rename ${from} to ${to}`);
    this.rename(from, to);
  }

  link(from: string, to: string): void {
    const file = this.#named(from);
    if (this.exists(to)) throw new SystemError(Errno.EEXIST, `Cannot link ${from} to ${to}`);
    this.files.set(normalizePath(this, to), file);
  }

  remove(path: string): void {
    const file = this.#named(path);
    this.files.delete(normalizePath(this, path));
    if (![...this.files.values()].includes(file)) file.release();
  }

  #named(path: string): SimulatedFile {
    const file = this.files.get(normalizePath(this, path));
    if (file === undefined) throw new SystemError(Errno.ENOENT, `Cannot find ${path}`);
    return file;
  }
}

class OfflineFile implements StorageFile {
  readonly isBlockDevice = false;

  constructor(readonly path: string, readonly content: SimulatedFile) {}

  get identity(): FileIdentity {
    return this.content.identity;
  }

  sizeBytes(): number {
    return this.content.sizeBytes;
  }

  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number {
    return this.content.readInto(into, offsetBytes);
  }

  writeAt(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    this.content.writeFrom(from, offsetBytes);
  }

  truncate(lengthBytes: number): void {
    this.content.truncate(lengthBytes);
  }

  sync(): void {
    this.content.sync();
  }

  close(): void {}
}
