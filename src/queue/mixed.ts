import { uringNeedsThreads } from "../../ffi/uring_probe.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import type { CompletionSink, DiskBackend, IoKind } from "./backend.ts";
import { LibaioBackend } from "./libaio.ts";
import { UringBackend } from "./uring.ts";

/**
 * Both of the kernel's interfaces, each for the files that it serves better: io_uring for disks
 * past the page cache, libaio for what io_uring would give to threads. It is for devices whose
 * requests come through the io_uring anyway: answers and disk I/O are submitted in one call.
 */
export class MixedBackend implements DiskBackend {
  readonly capacity: number;
  readonly batch: number;
  readonly #uring: UringBackend;
  readonly #libaio: LibaioBackend;
  /** By descriptor: 1 for libaio. */
  #onLibaio = new Uint8Array(256);
  #uringPrepared = 0;
  #libaioPrepared = 0;

  /** Throws `SystemError` where there is no io_uring; see `uringMissing`. */
  constructor(scheduler: Scheduler) {
    this.#uring = new UringBackend(scheduler);
    this.#libaio = new LibaioBackend(scheduler);
    this.capacity = Math.min(this.#uring.capacity, this.#libaio.capacity);
    this.batch = Math.min(this.#uring.batch, this.#libaio.batch);
  }

  register(file: number): void {
    if (file >= this.#onLibaio.length) {
      const larger = new Uint8Array(2 * file);
      larger.set(this.#onLibaio);
      this.#onLibaio = larger;
    }
    this.#onLibaio[file] = uringNeedsThreads(file) ? 1 : 0;
    this.#backendOf(file).register(file);
  }

  #backendOf(file: number): DiskBackend {
    return this.#onLibaio[file] === 1 ? this.#libaio : this.#uring;
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
    if (this.#onLibaio[file] === 1) this.#libaioPrepared++;
    else this.#uringPrepared++;
    this.#backendOf(file).prepare(kind, file, sectors, count, memorySector, iovecCount, io);
  }

  submit(): void {
    if (this.#uringPrepared > 0) this.#uring.submit();
    if (this.#libaioPrepared > 0) this.#libaio.submit();
    this.#uringPrepared = 0;
    this.#libaioPrepared = 0;
  }

  reap(sink: CompletionSink): number {
    return this.#uring.reap(sink) + this.#libaio.reap(sink);
  }

  close(): void {
    this.#uring.close();
    this.#libaio.close();
  }
}
