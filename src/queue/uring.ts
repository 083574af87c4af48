import {
  IORING_BY_THREAD,
  IORING_OP_READ,
  IORING_OP_READV,
  IORING_OP_WRITE,
  IORING_OP_WRITEV,
} from "../../ffi/uring.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import { type CompletionSink, type DiskBackend, IoKind } from "./backend.ts";
import { sharedUringLoop, type UringLoop, type UringUser } from "./uring_loop.ts";

const CAPACITY = 512;
const BATCH = 256;
const SECTOR_BYTES = 512;

/**
 * Files of the real system, by the io_uring that all users of the scheduler share. Files are descriptors.
 *
 * It is for disks past the page cache. The kernel gives writes to the page cache, and all I/O of memory
 * filesystems, to threads of its own. That costs twice the processor time of `LibaioBackend`.
 */
export class UringBackend implements DiskBackend, UringUser {
  readonly capacity = CAPACITY;
  readonly batch = BATCH;
  readonly #loop: UringLoop;
  readonly #tag: number;
  /**
   * Added to the operations of reads. Writes run on threads without it: the kernel cannot write to the page
   * cache without waiting, and gives the writes to a file to one thread. With it they run on several, of
   * which all but one spin on the lock of the file.
   */
  readonly #readFlags: number;
  /** Operations that ended, until they are reaped: number and result. */
  readonly #ended = new Int32Array(2 * CAPACITY);
  #endedCount = 0;

  /**
   * Throws `SystemError` where there is no io_uring; see `uringMissing`.
   *
   * @param threads All reads run on threads of the kernel, at most so many at once. Without it, those
   * run there that would have to wait.
   */
  constructor(scheduler: Scheduler, { threads }: { threads?: number } = {}) {
    this.#loop = sharedUringLoop(scheduler);
    this.#tag = this.#loop.add(this);
    this.#readFlags = threads === undefined ? 0 : IORING_BY_THREAD;
    if (threads !== undefined) this.#loop.limitThreads(threads);
  }

  register(_file: number): void {}

  prepare(
    kind: IoKind,
    file: number,
    sectors: Float64Array,
    count: number,
    memorySector: number,
    iovecCount: number,
    io: number,
  ): void {
    if (kind === IoKind.Sync) {
      this.#loop.prepareSync(file, io, this.#tag);
      return;
    }
    const vectored = iovecCount > 0;
    const opcode = kind === IoKind.Read
      ? (vectored ? IORING_OP_READV : IORING_OP_READ)
      : (vectored ? IORING_OP_WRITEV : IORING_OP_WRITE);
    const length = vectored ? iovecCount : count * SECTOR_BYTES;
    const operation = kind === IoKind.Read ? opcode | this.#readFlags : opcode;
    this.#loop.prepareTransfer(operation, file, memorySector, length, sectors, io, this.#tag);
  }

  submit(): void {
    this.#loop.submit();
  }

  /** A reap of another user of the ring may call this before `reap` does. */
  uringDone(io: number, result: number): void {
    const at = 2 * this.#endedCount++;
    this.#ended[at] = io;
    this.#ended[at + 1] = result;
  }

  /** Above 0 also when only completions of other users of the ring were told. */
  reap(sink: CompletionSink): number {
    const told = this.#loop.reap();
    const count = this.#endedCount;
    for (let i = 0; i < count; i++) sink.completed(this.#ended[2 * i], this.#ended[2 * i + 1]);
    this.#endedCount = 0;
    return told > count ? told : count;
  }

  close(): void {
    this.#loop.remove(this.#tag);
  }
}
