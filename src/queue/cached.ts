import { transferNow } from "../../ffi/cached_io.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import { type CompletionSink, type DiskBackend, IoKind } from "./backend.ts";
import { UringBackend } from "./uring.ts";

const SECTOR_BYTES = 512;
/** From here on a transfer takes longer than it takes to hand it to a thread. */
const LONG_SECTORS = 128;
/** Threads of the kernel: one writes to a file at a time, the others read. */
const THREADS = 4;

/**
 * Files of the page cache, for work on whole images. Long transfers run on threads of the kernel, by
 * io_uring: libaio copies data of the page cache within the call that submits it, so that nothing is read
 * while something is written. Short transfers end within `submit`: a thread would take longer.
 *
 * A short transfer that has to wait for a disk keeps the loop waiting. So this is not for disks that are served.
 */
export class CachedBackend implements DiskBackend {
  readonly capacity: number;
  readonly batch: number;
  readonly #long: UringBackend;
  #longPrepared = 0;
  /** Short transfers that ended, until they are reaped: number and result. */
  readonly #ended: Int32Array;
  #endedCount = 0;

  /** Throws `SystemError` where there is no io_uring; see `uringMissing`. */
  constructor(scheduler: Scheduler) {
    this.#long = new UringBackend(scheduler, { threads: THREADS });
    this.capacity = this.#long.capacity;
    this.batch = this.#long.batch;
    this.#ended = new Int32Array(2 * this.capacity);
  }

  register(file: number): void {
    this.#long.register(file);
  }

  prepare(
    kind: IoKind,
    file: number,
    sectors: Float64Array,
    count: number,
    memorySector: number,
    iovecCount: number,
    io: number,
  ): void {
    if (kind === IoKind.Sync || count >= LONG_SECTORS) {
      this.#longPrepared++;
      this.#long.prepare(kind, file, sectors, count, memorySector, iovecCount, io);
      return;
    }
    const isVectored = iovecCount > 0;
    const at = 2 * this.#endedCount++;
    this.#ended[at] = io;
    this.#ended[at + 1] = transferNow({
      fd: file,
      isWrite: kind === IoKind.Write,
      memorySector,
      length: isVectored ? iovecCount : count * SECTOR_BYTES,
      isVectored,
      offsetBytes: sectors[io] * SECTOR_BYTES,
    });
  }

  submit(): void {
    if (this.#longPrepared > 0) this.#long.submit();
    this.#longPrepared = 0;
  }

  reap(sink: CompletionSink): number {
    const count = this.#endedCount;
    // What starts meanwhile is prepared at the end of a turn, and not here.
    for (let i = 0; i < count; i++) sink.completed(this.#ended[2 * i], this.#ended[2 * i + 1]);
    this.#endedCount = 0;
    return count + this.#long.reap(sink);
  }

  close(): void {
    this.#long.close();
  }
}
