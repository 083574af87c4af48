import { Arena } from "../../ffi/memory.ts";
import { SECTOR_BYTES } from "../driver/driver.ts";
import type { DiskQueue, IoOwner } from "../queue/disk_queue.ts";
import type { DrainGate } from "./drain_gate.ts";
import { PROBE_SECTORS } from "../queue/file_health.ts";

/**
 * Tells the error of a place of a disk from that of a disk that is gone: requests to other places of
 * the same file succeed. When no guest makes such requests, this reads from where a read succeeded
 * before.
 */
export class MediaErrors implements IoOwner {
  readonly #queue: DiskQueue;
  readonly #gate: DrainGate;
  readonly #leave: () => void;
  /** Files of the image and of those below it. */
  #files: readonly number[] = [];
  #memory: Arena | null = null;
  #probing = 0;

  /**
   * @param gate What keeps the image open while something is under way.
   * @param leave Called when a probe leaves the image through the gate.
   */
  constructor(queue: DiskQueue, gate: DrainGate, leave: () => void) {
    this.#queue = queue;
    this.#gate = gate;
    this.#leave = leave;
  }

  /** Another image is open. */
  open(files: readonly number[]): void {
    this.#files = files;
  }

  /** Whether whatever failed since then failed at single places of disks that work. */
  areOfPlaces(sinceMs: number): boolean {
    const { health } = this.#queue;
    const failed = this.#files.filter((file) => health.hasFailed(file, sinceMs));
    return failed.length > 0 && failed.every((file) => health.isHealthy(file, sinceMs));
  }

  /** Reads elsewhere from the files from which a read failed since then. */
  probe(sinceMs: number): void {
    if (!this.#gate.isOpen || this.#probing > 0) return;
    const { health } = this.#queue;
    for (const file of this.#files) {
      if (!health.hasFailed(file, sinceMs, { reads: true }) || !this.#queue.reserve(1)) continue;
      this.#memory ??= new Arena(PROBE_SECTORS * SECTOR_BYTES);
      this.#probing++;
      this.#gate.enter();
      const { sector } = this.#memory;
      this.#queue.read(file, health.goodSector(file), PROBE_SECTORS, sector, this, 0);
    }
  }

  ioDone(): void {
    this.#probing--;
    this.#queue.release(1);
    this.#leave();
  }

  /** The disk has failed, and nothing of it is at the disk queue any more. */
  forget(): void {
    this.#queue.release(this.#probing);
    this.#probing = 0;
  }

  /** Releases the memory. No probe may be under way. */
  destroy(): void {
    this.#memory?.release();
    this.#memory = null;
  }
}
