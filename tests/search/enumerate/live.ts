/**
 * Operations of a served disk.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { liveSnapshot } from "../../../src/vbd/live_snapshot.ts";
import type { DiskKey } from "../../../src/vhd/key.ts";
import {
  type Outcome,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
} from "../../support/sim.ts";
import { SECTOR } from "./images.ts";
import type { Stages } from "./operation.ts";
import { isQcow2 } from "./versions.ts";

/** A device of a process of its own. Each call that it offers is a stage, unless it says otherwise. */
export class Served {
  readonly #simulation: Simulation;
  readonly #device: SimulatedDevice;
  #isOpen = true;
  readonly #stages: Stages;
  readonly #wanted = new Map<number, number | null>();
  #stamp = 0x100;
  #outcomes: Outcome[] = [];

  constructor(
    disk: SimulatedDisk,
    { path, key, stages }: { path: string; key?: DiskKey; stages: Stages },
  ) {
    this.#stages = stages;
    this.#simulation = new Simulation({ disk });
    try {
      this.#device = this.#simulation.open(
        `${isQcow2(path) ? "qcow2" : "vhd"}:${path}`,
        key === undefined ? {} : { key },
      );
    } catch (error) {
      this.#dies();
      throw error;
    }
  }

  /** Starts a write; `settle` ends it. */
  start(sector: number, count: number, fua = false): void {
    const stamp = ++this.#stamp;
    const data = stampedSectors(sector, count, stamp);
    this.#outcomes.push(this.#device.write(sector, data, fua));
    for (let i = 0; i < count; i++) this.#wanted.set(sector + i, stamp);
  }

  /** Waits for all that was started. */
  settle({ flushed = false } = {}): void {
    this.#device.settle();
    const outcomes = this.#outcomes.splice(0);
    const errno = outcomes.find((outcome) => outcome.errno !== 0)?.errno ?? 0;
    if (errno !== 0) throw new SystemError(errno, "A request has failed");
    this.#stages.ended();
    if (flushed) this.#stages.flushed();
  }

  write(sector: number, count: number): void {
    this.start(sector, count);
    this.settle();
  }

  writeThrough(sector: number, count: number): void {
    this.start(sector, count, true);
    this.settle({ flushed: true });
  }

  flush(): void {
    this.#outcomes.push(this.#device.flush());
    this.settle({ flushed: true });
  }

  zero(sector: number, count: number): void {
    this.#outcomes.push(this.#device.zero(sector, count));
    this.#note(sector, count, 0);
    this.settle();
  }

  fill(sector: number, count: number): void {
    this.#outcomes.push(this.#device.fill(sector, count));
    this.#note(sector, count, 0);
    this.settle();
  }

  discard(sector: number, count: number): void {
    this.#outcomes.push(this.#device.discard(sector, count));
    this.#note(sector, count, null);
    this.settle();
  }

  #note(sector: number, count: number, stamp: number | null): void {
    for (let i = 0; i < count; i++) this.#wanted.set(sector + i, stamp);
  }

  snapshot(path: string, rename: boolean): void {
    let end: SystemError | null | undefined;
    liveSnapshot(this.#simulation.context, this.#device.vbd, {
      path,
      rename,
      timeoutMs: 0,
      done: (...[error]) => void (end = error),
    });
    this.#simulation.runUntil(() => end !== undefined, "A snapshot");
    if (end !== undefined && end !== null) throw end;
    this.#stages.ended();
    this.#stages.flushed();
  }

  /** Reads back what was written; closes the device. */
  close(): void {
    for (const [sector, stamp] of this.#wanted) {
      const outcome = this.#device.read(sector, 1);
      this.#device.settle();
      if (outcome.errno !== 0) throw new SystemError(outcome.errno ?? Errno.EIO, "A read failed");
      if (stamp === null) continue;
      const wanted = stamp === 0 ? new Uint8Array(SECTOR) : stampedSectors(sector, 1, stamp);
      assert.deepEqual(outcome.data, wanted, `sector ${sector}`);
    }
    let end: SystemError | null | undefined;
    this.#device.vbd.close((error) => void (end = error));
    this.#simulation.runUntil(() => end !== undefined, "Closing");
    if (end !== undefined && end !== null) {
      throw new SystemError(end.errno, `${end.message}\n${this.#simulation.log.join("\n")}`);
    }
    this.#device.vbd.destroy();
    this.#isOpen = false;
    this.#stages.ended();
    this.#stages.flushed();
  }

  /** Ends the process. */
  end(): void {
    if (this.#isOpen) this.#device.vbd.requests.memory.release();
    this.#dies();
  }

  #dies(): void {
    this.#simulation.connection.die();
    this.#simulation.context.queue.close();
  }
}

/** Serves an image, does something, and closes it. */
export function serve(
  disk: SimulatedDisk,
  { path, key, stages }: { path: string; key?: DiskKey; stages: Stages },
  work: (served: Served) => void,
): void {
  const served = new Served(disk, { path, key, stages });
  try {
    work(served);
    served.close();
  } finally {
    served.end();
  }
}
