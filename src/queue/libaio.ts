import {
  AioContext,
  IOCB_CMD_FDSYNC,
  IOCB_CMD_PREAD,
  IOCB_CMD_PREADV,
  IOCB_CMD_PWRITE,
  IOCB_CMD_PWRITEV,
} from "../../ffi/aio.ts";
import { createEventFd, EPOLLET, EPOLLIN } from "../../ffi/epoll.ts";
import { Errno } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import type { FdHandler, Scheduler } from "../scheduler/scheduler.ts";
import { type CompletionSink, type DiskBackend, IoKind } from "./backend.ts";

const CAPACITY = 512;
const BATCH = 256;

/**
 * Files of the real system, by the kernel's asynchronous I/O. A completion rings an eventfd, which
 * wakes the loop; the ring is then read without a call. Files are descriptors.
 */
export class LibaioBackend implements DiskBackend, FdHandler {
  readonly capacity = CAPACITY;
  readonly batch = BATCH;
  readonly #scheduler: Scheduler;
  readonly #context = new AioContext(CAPACITY, BATCH);
  readonly #eventFd = createEventFd();
  /** Operations that the kernel refused, until they are reaped: number and negative errno. */
  readonly #refused = new Int32Array(2 * CAPACITY);
  #refusedCount = 0;
  readonly #preparedIos = new Int32Array(BATCH);
  #first = 0;

  /** Throws `SystemError`. */
  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
    // Edge-triggered: the counter never has to be read back.
    scheduler.watch(this.#eventFd, EPOLLIN | EPOLLET, this);
  }

  /** The loop was woken; `reap` at the end of the turn does the rest. */
  ready(_events: number): void {}

  prepare(
    kind: IoKind,
    file: number,
    offsetBytes: number,
    lengthBytes: number,
    address: number,
    iovecCount: number,
    io: number,
  ): void {
    const vectored = iovecCount > 0;
    const opcode = kind === IoKind.Read
      ? (vectored ? IOCB_CMD_PREADV : IOCB_CMD_PREAD)
      : kind === IoKind.Write
      ? (vectored ? IOCB_CMD_PWRITEV : IOCB_CMD_PWRITE)
      : IOCB_CMD_FDSYNC;
    const length = vectored ? iovecCount : lengthBytes;
    this.#preparedIos[this.#context.prepared] = io;
    this.#context.prepare(opcode, file, address, length, offsetBytes, this.#eventFd, io);
  }

  submit(): void {
    const prepared = this.#context.prepared;
    while (this.#first < prepared) {
      const taken = this.#context.submit(this.#first);
      if (taken > 0) this.#first += taken;
      else if (taken === -Errno.EINTR) continue;
      else this.#refuse(this.#preparedIos[this.#first++], taken === 0 ? -Errno.EAGAIN : taken);
    }
    this.#first = 0;
    this.#context.clear();
  }

  #refuse(io: number, result: number): void {
    this.#refused[2 * this.#refusedCount] = io;
    this.#refused[2 * this.#refusedCount + 1] = result;
    this.#refusedCount++;
  }

  reap(sink: CompletionSink): number {
    let count = 0;
    while (this.#refusedCount > 0) {
      const at = 2 * --this.#refusedCount;
      count++;
      sink.completed(this.#refused[at], this.#refused[at + 1]);
    }
    const waiting = this.#context.completions();
    if (waiting === 0) return count;
    for (let i = 0; i < waiting; i++) {
      sink.completed(this.#context.completionData(i), this.#context.completionResult(i));
    }
    this.#context.consume(waiting);
    count += waiting;
    return count;
  }

  close(): void {
    this.#scheduler.unwatch(this.#eventFd);
    closeFile(this.#eventFd);
    this.#context.close();
  }
}
