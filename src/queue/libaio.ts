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
/** Batches that a file has to finish within io_submit before it is trusted to go on like that. */
const TRUST_AFTER_BATCHES = 16;
const NEVER_TRUST = -1;
const SECTOR_BYTES = 512;
const NO_EVENT_FD = -1;
const POLL_MS = 1;

/**
 * Files of the real system, by the kernel's asynchronous I/O. A completion rings an eventfd, which
 * wakes the loop; the ring is then read without a call. Files are descriptors.
 *
 * Memory filesystems and the page cache finish within io_submit. Files found to do so do not ring
 * the eventfd, which would wake the loop for what has been dealt with already.
 */
export class LibaioBackend implements DiskBackend, FdHandler {
  readonly capacity = CAPACITY;
  readonly batch = BATCH;
  readonly #scheduler: Scheduler;
  readonly #context = new AioContext(CAPACITY, BATCH);
  readonly #eventFd = createEventFd();
  /** By descriptor: batches in a row that finished at once, or NEVER_TRUST. */
  #trust = new Int8Array(256);
  /** Operations that the kernel refused, until they are reaped: number and negative errno. */
  readonly #refused = new Int32Array(2 * CAPACITY);
  #refusedCount = 0;
  readonly #preparedIos = new Int32Array(BATCH);
  readonly #preparedFiles = new Int32Array(BATCH);
  #preparedSyncs = 0;
  #preparedTrusted = 0;
  #first = 0;
  #underWay = 0;
  #polling = false;

  /** Throws `SystemError`. */
  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
    // Edge-triggered: the counter never has to be read back.
    scheduler.watch(this.#eventFd, EPOLLIN | EPOLLET, this);
  }

  register(file: number): void {
    if (file >= this.#trust.length) {
      const larger = new Int8Array(2 * file);
      larger.set(this.#trust);
      this.#trust = larger;
    }
    this.#trust[file] = 0;
  }

  /** The loop was woken; `reap` at the end of the turn does the rest. */
  ready(_events: number): void {}

  prepare(
    kind: IoKind,
    file: number,
    sectors: Float64Array,
    count: number,
    memorySector: number,
    iovecCount: number,
    io: number,
  ): void {
    const vectored = iovecCount > 0;
    const opcode = kind === IoKind.Read
      ? (vectored ? IOCB_CMD_PREADV : IOCB_CMD_PREAD)
      : kind === IoKind.Write
      ? (vectored ? IOCB_CMD_PWRITEV : IOCB_CMD_PWRITE)
      : IOCB_CMD_FDSYNC;
    const length = vectored ? iovecCount : count * SECTOR_BYTES;
    const trusted = this.#trust[file] === TRUST_AFTER_BATCHES && kind !== IoKind.Sync;
    const eventFd = trusted ? NO_EVENT_FD : this.#eventFd;
    if (kind === IoKind.Sync) this.#preparedSyncs++;
    if (trusted) this.#preparedTrusted++;
    this.#preparedIos[this.#context.prepared] = io;
    this.#preparedFiles[this.#context.prepared] = file;
    this.#context.prepare(opcode, file, memorySector, length, sectors, eventFd, io);
  }

  submit(): void {
    const prepared = this.#context.prepared;
    while (this.#first < prepared) {
      const taken = this.#context.submit(this.#first);
      if (taken > 0) this.#first += taken;
      else if (taken === -Errno.EINTR) continue;
      else this.#refuse(this.#preparedIos[this.#first++], taken === 0 ? -Errno.EAGAIN : taken);
    }
    this.#underWay += prepared;
    // Only a batch that is alone says something of its files.
    if (this.#underWay === prepared && this.#preparedSyncs === 0) this.#learn(prepared);
    if (this.#preparedTrusted > 0 && !this.#allFinished) this.#poll();
    this.#first = 0;
    this.#preparedSyncs = 0;
    this.#preparedTrusted = 0;
    this.#context.clear();
  }

  get #allFinished(): boolean {
    return this.#context.completions() + this.#refusedCount === this.#underWay;
  }

  #refuse(io: number, result: number): void {
    this.#refused[2 * this.#refusedCount] = io;
    this.#refused[2 * this.#refusedCount + 1] = result;
    this.#refusedCount++;
  }

  #learn(prepared: number): void {
    const finished = this.#allFinished;
    for (let i = 0; i < prepared; i++) {
      const file = this.#preparedFiles[i];
      const trust = this.#trust[file];
      if (!finished && trust >= 0) {
        this.#trust[file] = trust === TRUST_AFTER_BATCHES ? NEVER_TRUST : 0;
      } else if (trust >= 0 && trust < TRUST_AFTER_BATCHES) this.#trust[file] = trust + 1;
    }
  }

  /** Something that was trusted is not finished: looks at the ring until nothing is under way. */
  #poll(): void {
    if (this.#polling) return;
    this.#polling = true;
    this.#scheduler.addTimer(POLL_MS, () => {
      this.#polling = false;
      if (this.#underWay > 0) this.#poll();
    });
  }

  reap(sink: CompletionSink): number {
    let count = 0;
    while (this.#refusedCount > 0) {
      const at = 2 * --this.#refusedCount;
      count++;
      this.#underWay--;
      sink.completed(this.#refused[at], this.#refused[at + 1]);
    }
    const waiting = this.#context.completions();
    if (waiting === 0) return count;
    this.#underWay -= waiting;
    for (let i = 0; i < waiting; i++) {
      sink.completed(this.#context.completionData(i), this.#context.completionResult(i));
    }
    this.#context.consume(waiting);
    return count + waiting;
  }

  close(): void {
    this.#scheduler.unwatch(this.#eventFd);
    closeFile(this.#eventFd);
    this.#context.close();
  }
}
