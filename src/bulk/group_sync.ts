import type { DiskFile } from "../queue/disk_files.ts";
import type { DiskQueue, IoOwner } from "../queue/disk_queue.ts";

/**
 * Syncs of one file: one serves all who asked before it started. Bits of a bitmap must not be on disk
 * before the data that they show.
 */
export class GroupSync implements IoOwner {
  readonly #disk: DiskFile;
  readonly #queue: DiskQueue;
  #waiting: ((errno: number) => void)[] = [];
  #served: ((errno: number) => void)[] = [];
  #busy = false;

  constructor(disk: DiskFile, queue: DiskQueue) {
    this.#disk = disk;
    this.#queue = queue;
  }

  /** Calls back when everything that has been written until now is on stable storage. */
  wait(done: (errno: number) => void): void {
    this.#waiting.push(done);
    if (!this.#busy) this.#start();
  }

  #start(): void {
    this.#busy = true;
    this.#served = this.#waiting;
    this.#waiting = [];
    this.#queue.sync(this.#disk.file, this, 0);
  }

  ioDone(_token: number, _sectors: number, errno: number): void {
    this.#busy = false;
    for (const done of this.#served.splice(0)) done(errno);
    if (this.#waiting.length > 0 && !this.#busy) this.#start();
  }
}
