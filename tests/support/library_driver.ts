/**
 * A driver that does not use the disk queue. Its "library" is an asynchronous I/O context of the
 * kernel that belongs to one image. It takes few operations at a time, has its own completion queue
 * and signals an eventfd.
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
import type { FaultOwner } from "../../src/scheduler/faults.ts";
import type { FdHandler } from "../../src/scheduler/scheduler.ts";

/** The most operations that the library takes at once. */
export const LIBRARY_OPERATIONS = 8;

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

/** A driver with this type name, and the control of its images. */
export function libraryDriver(type: string): { driver: DriverType; control: LibraryControl } {
  const control: LibraryControl = {
    isHeld: false,
    throwNext: false,
    mostPending: 0,
    abandoned: 0,
    image: null,
  };
  const open = (spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver =>
    control.image = new LibraryImage(spec, { context, sink, control });
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
  readonly #fd: number;
  readonly #library = new AioContext(LIBRARY_OPERATIONS, LIBRARY_OPERATIONS);
  readonly #eventFd = createEventFd();
  /** By slot: the operation of its step. */
  readonly #command = new Uint8Array(REQUEST_SLOTS);
  readonly #sector = new Float64Array(REQUEST_SLOTS);
  readonly #count = new Int32Array(REQUEST_SLOTS);
  readonly #memory = new Int32Array(REQUEST_SLOTS);
  /** Slots that wait for room in the library, in a ring. */
  readonly #waiting = new Int32Array(REQUEST_SLOTS);
  #firstWaiting = 0;
  #waitingCount = 0;
  #isOpen = true;

  constructor(
    spec: ImageSpec,
    { context, sink, control }: {
      context: ImageContext;
      sink: RequestSink;
      control: LibraryControl;
    },
  ) {
    this.spec = spec;
    const { fd, status } = spec.readOnly ? openToRead(spec.path) : openToWrite(spec.path);
    this.#fd = fd;
    this.sectors = Math.floor(status.sizeBytes / SECTOR_BYTES);
    this.zeroSectors = context.zeros.sectors;
    this.fillSectors = context.zeros.sectors;
    this.#context = context;
    this.#sink = sink;
    this.#control = control;
    context.scheduler.watch(this.#eventFd, EPOLLIN | EPOLLET, this);
  }

  get faults(): FaultOwner {
    return this.#context.faults;
  }

  operationsFor(_sectors: number): number {
    return 0;
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.#start(IOCB_CMD_PREAD, slot, sector, count, memorySector);
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.#start(IOCB_CMD_PWRITE, slot, sector, count, memorySector);
  }

  zero(slot: number, sector: number, count: number): void {
    this.fill(slot, sector, count);
  }

  fill(slot: number, sector: number, count: number): void {
    this.#start(IOCB_CMD_PWRITE, slot, sector, count, this.#context.zeros.at);
  }

  discard(slot: number, _sector: number, count: number): void {
    this.#sink.pieceDone(slot, count, 0);
  }

  flush(slot: number): void {
    this.#start(IOCB_CMD_FDSYNC, slot, 0, 1, 0);
  }

  status(slot: number, _sector: number, count: number): void {
    this.#sink.extent(slot, count, true);
    this.#sink.statusDone(slot, 0);
  }

  #start(command: number, slot: number, sector: number, count: number, memorySector: number): void {
    this.#command[slot] = command;
    this.#sector[slot] = sector;
    this.#count[slot] = count;
    this.#memory[slot] = memorySector;
    this.#waiting[(this.#firstWaiting + this.#waitingCount++) % REQUEST_SLOTS] = slot;
    this.#context.deferral.add(this);
  }

  /** Called by the end-of-turn list. */
  runDeferred(): void {
    if (!this.#context.faults.failed) this.#submit();
  }

  /** Submits waiting operations while the library has room. */
  #submit(): void {
    while (this.#waitingCount > 0 && this.pending < LIBRARY_OPERATIONS) {
      const slot = this.#waiting[this.#firstWaiting];
      this.#firstWaiting = (this.#firstWaiting + 1) % REQUEST_SLOTS;
      this.#waitingCount--;
      const command = this.#command[slot];
      const isSync = command === IOCB_CMD_FDSYNC;
      const lengthBytes = isSync ? 0 : this.#count[slot] * SECTOR_BYTES;
      const memory = isSync ? 0 : this.#memory[slot];
      const library = this.#library;
      library.prepare(command, this.#fd, memory, lengthBytes, this.#sector, this.#eventFd, slot);
      this.pending++;
    }
    this.#control.mostPending = Math.max(this.#control.mostPending, this.pending);
    const prepared = this.#library.prepared;
    const taken = prepared === 0 ? 0 : this.#library.submit(0);
    this.#library.clear();
    if (taken !== prepared) {
      throw new SystemError(Errno.EIO, "The library took less than it has to");
    }
  }

  ready(_events: number): void {
    if (!this.#control.isHeld) this.takeCompletions();
  }

  /** Ends the requests of completed operations and submits waiting ones. */
  takeCompletions(): void {
    const library = this.#library;
    for (let left = library.completions(); left > 0; left--) {
      const slot = library.completionData(0);
      const result = library.completionResult(0);
      library.consume(1);
      this.pending--;
      if (this.#control.throwNext) {
        this.#control.throwNext = false;
        throw new Error("A fault of the driver");
      }
      const isWhole = this.#command[slot] === IOCB_CMD_FDSYNC ||
        result === this.#count[slot] * SECTOR_BYTES;
      this.#sink.pieceDone(slot, this.#count[slot], result < 0 ? -result : isWhole ? 0 : Errno.EIO);
    }
    if (this.#waitingCount > 0) this.#context.deferral.add(this);
  }

  close(done: Done): void {
    this.#release();
    done(null);
  }

  abandon(): void {
    this.#control.abandoned++;
    this.#release();
  }

  #release(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#context.scheduler.unwatch(this.#eventFd);
    closeFile(this.#eventFd);
    this.#library.close();
    closeFile(this.#fd);
  }
}
