/**
 * A driver that does not use the disk queue. Its "library" takes few operations at a time, has its
 * own completion queue and signals a descriptor: an asynchronous I/O context of the kernel that
 * belongs to one image, or one of a simulated disk.
 *
 * @module
 */
import { AioContext, IOCB_CMD_FDSYNC, IOCB_CMD_PREAD, IOCB_CMD_PWRITE } from "../../ffi/aio.ts";
import { createEventFd, EPOLLET, EPOLLIN } from "../../ffi/epoll.ts";
import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import type { Deferred } from "../../src/driver/deferral.ts";
import {
  type DriverType,
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  REQUEST_SLOTS,
  type RequestSink,
  SECTOR_BYTES,
} from "../../src/driver/driver.ts";
import { NAMES_FILE } from "../../src/driver/image_name.ts";
import { openToRead, openToWrite } from "../../src/files/open_file.ts";
import type { PieceTable } from "../../src/driver/pieces.ts";
import type { FaultOwner } from "../../src/scheduler/faults.ts";
import type { FdHandler } from "../../src/scheduler/scheduler.ts";
import {
  type ImageLibrary,
  LibraryCommand,
  type LibraryOperation,
} from "../../src/testing/simulated_library.ts";

/** The most operations that the library takes at once. */
export const LIBRARY_OPERATIONS = 8;

/** The token of the sync of a close, above those of slots. */
const CLOSE_TOKEN = REQUEST_SLOTS;

/** The state of the driver that a test can read and set. */
export interface LibraryControl {
  /** Whether completions stay in the library's queue. */
  isHeld: boolean;
  /** Whether the driver throws at the next completion. */
  throwNext: boolean;
  /** The most operations that were in flight in the library at once. */
  mostPending: number;
  abandoned: number;
  /** The image that was opened last. */
  image: LibraryImage | null;
}

/** Opens the library of an image. Throws `SystemError`. */
export type LibraryOpener = (spec: ImageSpec) => ImageLibrary;

/** How a library driver is made. */
export interface LibraryOptions {
  /** By default a context of the kernel on a real file. */
  readonly openLibrary?: LibraryOpener;
  /**
   * Whether calls wait in records of `pieces`, as they must below an image that splits requests; by
   * default by slot.
   */
  readonly usesPieces?: boolean;
}

/** A driver with this type name, and the control of its images. */
export function libraryDriver(
  type: string,
  { openLibrary = (spec) => new KernelLibrary(spec), usesPieces = false }: LibraryOptions = {},
): { driver: DriverType; control: LibraryControl } {
  const control: LibraryControl = {
    isHeld: false,
    throwNext: false,
    mostPending: 0,
    abandoned: 0,
    image: null,
  };
  const open = (spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver =>
    control.image = new LibraryImage(spec, {
      context,
      sink,
      control,
      library: openLibrary(spec),
      usesPieces,
    });
  return {
    control,
    driver: {
      type,
      where: "FILE",
      summary: "A raw file, by a library of its own",
      named: () => NAMES_FILE,
      open,
    },
  };
}

class LibraryImage implements ImageDriver, FdHandler, Deferred {
  readonly spec: ImageSpec;
  readonly sectors: number;
  readonly parent = null;
  readonly zeroSectors: number;
  readonly fillSectors: number;
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  deferred = false;
  pending = 0;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #control: LibraryControl;
  readonly #library: ImageLibrary;
  readonly #usesPieces: boolean;
  /** The calls by token, where they are not pieces: a token is a slot. */
  readonly #calls: PieceTable | CallsBySlot;
  /** Tokens of calls that wait for room in the library. */
  readonly #waiting: number[] = [];
  #closing: Done | null = null;
  #isOpen = true;

  constructor(
    spec: ImageSpec,
    { context, sink, control, library, usesPieces }: {
      context: ImageContext;
      sink: RequestSink;
      control: LibraryControl;
      library: ImageLibrary;
      usesPieces: boolean;
    },
  ) {
    this.spec = spec;
    this.#library = library;
    this.#usesPieces = usesPieces;
    this.#calls = usesPieces ? context.pieces : new CallsBySlot();
    this.sectors = Math.floor(library.sizeBytes / SECTOR_BYTES);
    this.zeroSectors = context.zeros.sectors;
    this.fillSectors = context.zeros.sectors;
    this.#context = context;
    this.#sink = sink;
    this.#control = control;
    context.scheduler.watch(library.fd, EPOLLIN | EPOLLET, this);
  }

  get faults(): FaultOwner {
    return this.#context.faults;
  }

  operationsFor(_sectors: number): number {
    return this.#usesPieces ? 1 : 0;
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.#start(LibraryCommand.Read, slot, sector, count, memorySector);
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.#start(LibraryCommand.Write, slot, sector, count, memorySector);
  }

  zero(slot: number, sector: number, count: number): void {
    this.fill(slot, sector, count);
  }

  fill(slot: number, sector: number, count: number): void {
    this.#start(LibraryCommand.Write, slot, sector, count, this.#context.zeros.at);
  }

  discard(slot: number, _sector: number, count: number): void {
    this.#sink.pieceDone(slot, count, 0);
  }

  flush(slot: number): void {
    this.#start(LibraryCommand.Sync, slot, 0, 1, 0);
  }

  status(slot: number, _sector: number, count: number): void {
    this.#sink.extent(slot, count, true);
    this.#sink.statusDone(slot, 0);
  }

  #start(
    command: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
  ): void {
    this.#waiting.push(this.#calls.take(command, slot, sector, count, memorySector));
    this.#context.deferral.add(this);
  }

  /** Called by the end-of-turn list. */
  runDeferred(): void {
    if (!this.#context.faults.failed) this.#submit();
  }

  /** Submits waiting operations while the library has room. */
  #submit(): void {
    const operations: LibraryOperation[] = [];
    const { kind, sector, count, memory } = this.#calls;
    while (this.#waiting.length > 0 && this.pending < LIBRARY_OPERATIONS) {
      const token = this.#waiting.splice(0, 1)[0];
      operations.push({
        command: kind[token],
        token,
        sector: sector[token],
        count: count[token],
        memorySector: memory[token],
      });
      this.pending++;
    }
    this.#control.mostPending = Math.max(this.#control.mostPending, this.pending);
    if (operations.length > 0) this.#library.submit(operations);
  }

  ready(_events: number): void {
    if (!this.#control.isHeld) this.takeCompletions();
  }

  /** Ends the requests of completed operations and submits waiting ones. */
  takeCompletions(): void {
    const library = this.#library;
    for (let left = library.completions(); left > 0; left--) {
      const { token, errno } = library.take();
      this.pending--;
      if (this.#control.throwNext) {
        this.#control.throwNext = false;
        throw new Error("A fault of the driver");
      }
      // No request is under way beside a close.
      if (this.#closing !== null) return this.#closed(this.#closing, errno);
      const slot = this.#calls.slot[token];
      const count = this.#calls.count[token];
      this.#calls.give(token);
      this.#sink.pieceDone(slot, count, errno);
    }
    if (this.#waiting.length > 0) this.#context.deferral.add(this);
  }

  /** What was written is durable when it ends. */
  close(done: Done): void {
    if (this.spec.readOnly) return this.#closed(done, 0);
    this.#closing = done;
    this.pending++;
    const nothing = { sector: 0, count: 0, memorySector: 0 };
    this.#library.submit([{ command: LibraryCommand.Sync, token: CLOSE_TOKEN, ...nothing }]);
  }

  #closed(done: Done, errno: number): void {
    this.#closing = null;
    this.#release();
    done(errno === 0 ? null : new SystemError(errno, `Cannot close ${this.spec.path}`));
  }

  abandon(): void {
    this.#control.abandoned++;
    this.#release();
  }

  #release(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#context.scheduler.unwatch(this.#library.fd);
    this.#library.close();
  }
}

/** Calls of requests of which each has one at a time. */
class CallsBySlot {
  readonly kind = new Uint8Array(REQUEST_SLOTS);
  readonly slot = Int32Array.from({ length: REQUEST_SLOTS }, (_, slot) => slot);
  readonly sector = new Float64Array(REQUEST_SLOTS);
  readonly count = new Int32Array(REQUEST_SLOTS);
  readonly memory = new Int32Array(REQUEST_SLOTS);

  take(kind: number, slot: number, sector: number, count: number, memorySector: number): number {
    this.kind[slot] = kind;
    this.sector[slot] = sector;
    this.count[slot] = count;
    this.memory[slot] = memorySector;
    return slot;
  }

  give(_token: number): void {}
}

const COMMANDS = [IOCB_CMD_PREAD, IOCB_CMD_PWRITE, IOCB_CMD_FDSYNC];

/** A library that is an asynchronous I/O context of the kernel, on a real file. */
class KernelLibrary implements ImageLibrary {
  readonly fd = createEventFd();
  readonly sizeBytes: number;
  readonly #file: number;
  readonly #context = new AioContext(LIBRARY_OPERATIONS, LIBRARY_OPERATIONS);
  /** By token, which is a slot: the bytes that its operation moves. */
  readonly #lengths = new Float64Array(REQUEST_SLOTS + 1);
  readonly #sectors = new Float64Array(REQUEST_SLOTS + 1);

  constructor({ path, readOnly }: ImageSpec) {
    const { fd, status } = readOnly ? openToRead(path) : openToWrite(path);
    this.#file = fd;
    this.sizeBytes = status.sizeBytes;
  }

  submit(operations: readonly LibraryOperation[]): void {
    const context = this.#context;
    for (const { command, token, sector, count, memorySector } of operations) {
      const isSync = command === LibraryCommand.Sync;
      this.#lengths[token] = isSync ? 0 : count * SECTOR_BYTES;
      this.#sectors[token] = sector;
      const memory = isSync ? 0 : memorySector;
      const length = this.#lengths[token];
      context.prepare(COMMANDS[command], this.#file, memory, length, this.#sectors, this.fd, token);
    }
    const taken = context.submit(0);
    context.clear();
    if (taken !== operations.length) {
      throw new SystemError(Errno.EIO, "The library took less than it has to");
    }
  }

  completions(): number {
    return this.#context.completions();
  }

  take(): { readonly token: number; readonly errno: number } {
    const token = this.#context.completionData(0);
    const result = this.#context.completionResult(0);
    this.#context.consume(1);
    return { token, errno: result < 0 ? -result : result === this.#lengths[token] ? 0 : Errno.EIO };
  }

  close(): void {
    closeFile(this.fd);
    this.#context.close();
    closeFile(this.#file);
  }
}
