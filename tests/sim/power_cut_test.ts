import assert from "node:assert/strict";
import { Random } from "../../src/testing/random.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import {
  type Outcome,
  SECTOR_BYTES,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
  stampOf,
} from "../support/sim.ts";
import { syncFile } from "../support/vhd.ts";

const DISK_MIB = 16;
const DISK_SECTORS = DISK_MIB * 2048;
const SEEDS = Array.from({ length: 40 }, (_, i) => i + 1);

interface Write {
  sector: number;
  count: number;
  stamp: number;
  outcome: Outcome;
}

/** For each sector: the stamp that was flushed last and the newest written stamp. */
class Promises {
  readonly flushed = new Int32Array(DISK_SECTORS);
  readonly #writes: Write[] = [];

  wrote(write: Write): void {
    this.#writes.push(write);
  }

  /** Writes that had ended when the flush began are durable. */
  flushedAll(ended: readonly Write[]): void {
    for (const { sector, count, stamp } of ended) {
      for (let i = sector; i < sector + count; i++) {
        this.flushed[i] = Math.max(this.flushed[i], stamp);
      }
    }
  }

  ended(): Write[] {
    return this.#writes.filter(({ outcome }) => outcome.errno === 0);
  }

  isUnderWay(sector: number, count: number): boolean {
    return this.#writes.some((write) =>
      write.outcome.errno === null && write.sector < sector + count &&
      sector < write.sector + write.count
    );
  }

  /** Whether a sector may have this stamp: the flushed one, or that of a later write to it. */
  allows(sector: number, stamp: number): boolean {
    if (stamp === this.flushed[sector]) return true;
    // An unflushed write may leave its sector zero: new room in the file.
    if (stamp === 0) {
      return this.#writes.some((write) =>
        covers(write, sector) && write.stamp > this.flushed[sector]
      );
    }
    return this.#writes.some((write) =>
      covers(write, sector) && write.stamp === stamp && stamp > this.flushed[sector]
    );
  }
}

function covers(write: Write, sector: number): boolean {
  return sector >= write.sector && sector < write.sector + write.count;
}

function runUntilCut(
  { simulation, device }: { simulation: Simulation; device: SimulatedDevice },
  random: Random,
): Promises {
  const promises = new Promises();
  const turns = random.below(120);
  let flush: { outcome: Outcome; ended: Write[] } | null = null;
  for (let turn = 0; turn < turns; turn++) {
    for (let i = random.below(6); i > 0; i--) {
      const count = 1 + random.below(40);
      const sector = random.below(DISK_MIB / 2) * 4096 + random.below(200);
      // The order of two writes in flight to one sector is undefined.
      if (promises.isUnderWay(sector, count)) continue;
      // Each write has its own stamp, higher than all earlier stamps.
      const stamp = turn * 10 + i + 1;
      const outcome = device.write(sector, stampedSectors(sector, count, stamp));
      promises.wrote({ sector, count, stamp, outcome });
    }
    if (flush === null && random.chance(0.2)) {
      flush = { ended: promises.ended(), outcome: device.flush() };
    }
    simulation.scheduler.turn();
    if (flush !== null && flush.outcome.errno === 0) {
      promises.flushedAll(flush.ended);
      flush = null;
    }
  }
  return promises;
}

function verify(after: Simulation, path: string, promises: Promises): void {
  const { disk } = after;
  // Unused room that was reserved for a block is a warning, and the backup footer is another.
  const found = checkImage(path, { storage: disk, ignoreFooter: true });
  assert.ok(found.valid, JSON.stringify(found.findings));
  const device = after.open(`vhd:${path}`);
  for (let sector = 0; sector < DISK_SECTORS; sector += 512) {
    const outcome = device.read(sector, 512);
    device.settle();
    assert.ok(outcome.data);
    for (let i = 0; i < 512; i++) {
      const stamp = stampOf(outcome.data, i, sector + i);
      assert.ok(
        promises.allows(sector + i, stamp),
        `sector ${sector + i} holds ${stamp}; flushed was ${promises.flushed[sector + i]}`,
      );
    }
  }
  device.write(0, new Uint8Array(SECTOR_BYTES));
  device.settle();
  device.close();
  assert.ok(checkImage(path, { storage: disk }).valid);
}

for (const seed of SEEDS) {
  Deno.test(`a power cut at any moment leaves every flushed byte, seed ${seed}`, () => {
    const random = new Random(seed);
    const simulation = new Simulation({ seed, latencyMs: 4, powerCuts: true });
    const storage = simulation.disk;
    createDynamic("/base.vhd", { storage, sizeBytes: DISK_MIB * 1024 * 1024 });
    let path = "/base.vhd";
    if (seed % 2 === 0) {
      path = "/child.vhd";
      snapshot(path, { storage, parent: "/base.vhd" });
    }
    for (const name of ["/base.vhd", path]) syncFile(storage, name);
    const device = simulation.open(`vhd:${path}`);
    const promises = runUntilCut({ simulation, device }, random);
    const after = new Simulation({ seed }, simulation);
    verify(after, path, promises);
    // The requests never end and would keep their memory.
    device.vbd.requests.memory.release();
    after.close();
  });
}
