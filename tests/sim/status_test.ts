import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { Random } from "../../src/testing/random.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const DISK_SECTORS = 64 * 2048;
const SEEDS = [1, 2, 3, 4, 5, 6];

/** Runs of a map of sectors: positive for data, negative for none. */
function runsOf(written: Uint8Array, sector: number, count: number): number[] {
  const runs: number[] = [];
  for (let at = sector; at < sector + count;) {
    let end = at + 1;
    while (end < sector + count && written[end] === written[at]) end++;
    runs.push(written[at] === 1 ? end - at : at - end);
    at = end;
  }
  return runs;
}

/** A chain of three images with random writes, and the map of written sectors. */
function chain(simulation: Simulation, random: Random): [SimulatedDevice, Uint8Array] {
  const storage = simulation.disk;
  createDynamic("/0.vhd", { storage, sizeBytes: DISK_SECTORS * 512 });
  const device = simulation.open("vhd:/0.vhd");
  const written = new Uint8Array(DISK_SECTORS);
  for (let layer = 0; layer < 3; layer++) {
    for (let i = 0; i < 12; i++) {
      const count = 1 + random.below(random.chance(0.3) ? 512 : 20);
      const sector = random.below(DISK_SECTORS - count);
      device.write(sector, stampedSectors(sector, count, 1));
      written.fill(1, sector, sector + count);
    }
    device.settle();
    if (layer === 2) break;
    device.pause();
    snapshot(`/${layer + 1}.vhd`, { storage, parent: `/${layer}.vhd` });
    device.resume(`vhd:/${layer + 1}.vhd`);
  }
  // Drops all bitmaps from memory.
  device.pause();
  device.resume();
  return [device, written];
}

for (const seed of SEEDS) {
  Deno.test(`extents of a chain are those of the sectors that were written, seed ${seed}`, () => {
    const random = new Random(seed);
    const simulation = new Simulation({ seed, latencyMs: seed % 2 === 0 ? 4 : 0 });
    const [device, written] = chain(simulation, random);
    for (let round = 0; round < 20; round++) {
      const asked = Array.from({ length: 6 }, () => {
        const sector = random.below(DISK_SECTORS);
        const count = 1 + random.below(DISK_SECTORS - sector);
        const most = random.chance(0.2) ? 1 + random.below(3) : 8192;
        return { sector, count, most, outcome: device.status(sector, count, most) };
      });
      const read = device.read(random.below(1000), 8);
      device.settle();
      assert.equal(read.errno, 0);
      for (const { sector, count, most, outcome } of asked) {
        assert.equal(outcome.errno, 0);
        assert.deepEqual(outcome.extents, runsOf(written, sector, count).slice(0, most));
      }
    }
    device.close();
    simulation.close();
  });

  Deno.test(`extents come in the end where the disk fails in between, seed ${seed}`, () => {
    const random = new Random(seed);
    const simulation = new Simulation({ seed, latencyMs: 3 });
    const [device, written] = chain(simulation, random);
    simulation.fault = () => random.chance(0.3) ? Errno.EIO : 0;
    const asked = Array.from({ length: 20 }, () => device.status(0, DISK_SECTORS));
    device.settle();
    for (const { errno, extents } of asked) {
      assert.equal(errno, 0);
      assert.deepEqual(extents, runsOf(written, 0, DISK_SECTORS));
    }
    device.close();
    simulation.close();
  });
}
