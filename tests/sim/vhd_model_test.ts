import assert from "node:assert/strict";
import { Random } from "../../src/queue/random.ts";
import { checkImage } from "../../src/vhd/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import {
  SECTOR_BYTES,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
  stampOf,
} from "../support/sim.ts";
import { Errno } from "../../ffi/errno.ts";

const DISK_MIB = 24;
const DISK_SECTORS = DISK_MIB * 2048;
const SEEDS = Array.from({ length: 12 }, (_, i) => i + 1);

/** What the disk must hold: the stamp of each sector; -1 for one that may hold anything. */
class Model {
  readonly stamps = new Int32Array(DISK_SECTORS);

  put(sector: number, count: number, stamp: number): void {
    this.stamps.fill(stamp, sector, sector + count);
  }

  compare(data: Uint8Array, sector: number): void {
    for (let i = 0; i < data.length / SECTOR_BYTES; i++) {
      if (this.stamps[sector + i] === -1) continue;
      assert.equal(stampOf(data, i, sector + i), this.stamps[sector + i], `sector ${sector + i}`);
    }
  }
}

/** Places that meet each other and the edges of blocks more often than chance would. */
function somePlace(random: Random): { sector: number; count: number } {
  const count = random.chance(0.5) ? 8 : 1 + random.below(300);
  const near = random.below(DISK_MIB / 2) * 4096 + random.below(600) - 300;
  const sector = random.chance(0.6) ? near : random.below(DISK_SECTORS);
  return { sector: Math.max(0, Math.min(DISK_SECTORS - count, sector)), count };
}

function makeImage(simulation: Simulation): void {
  createDynamic("/base.vhd", {
    storage: simulation.disk.storage,
    sizeBytes: DISK_MIB * 1024 * 1024,
  });
}

/** A burst of requests that do not overlap, all under way at once. */
function burst(device: SimulatedDevice, model: Model, random: Random, stamp: number): void {
  const taken: { sector: number; count: number }[] = [];
  const reads: { sector: number; outcome: ReturnType<SimulatedDevice["read"]> }[] = [];
  for (let i = 0; i < 40; i++) {
    const place = somePlace(random);
    const overlaps = taken.some((other) =>
      place.sector < other.sector + other.count && other.sector < place.sector + place.count
    );
    if (overlaps) continue;
    taken.push(place);
    const { sector, count } = place;
    const dice = random.next();
    if (dice < 0.5) {
      device.write(sector, stampedSectors(sector, count, stamp), random.chance(0.1));
      model.put(sector, count, stamp);
    } else if (dice < 0.85) reads.push({ sector, outcome: device.read(sector, count) });
    else if (dice < 0.93) {
      device.zero(sector, count);
      model.put(sector, count, 0);
    } else if (dice < 0.96) {
      device.discard(sector, count);
      model.put(sector, count, -1);
    } else device.flush();
  }
  device.settle();
  for (const { sector, outcome } of reads) {
    assert.equal(outcome.errno, 0);
    assert.ok(outcome.data);
    model.compare(outcome.data, sector);
  }
}

function readAll(device: SimulatedDevice, model: Model): void {
  for (let sector = 0; sector < DISK_SECTORS; sector += 512) {
    const outcome = device.read(sector, 512);
    device.settle();
    assert.ok(outcome.data);
    model.compare(outcome.data, sector);
  }
}

for (const seed of SEEDS) {
  Deno.test(`any requests on a growing chain read back as a model says, seed ${seed}`, () => {
    const random = new Random(seed);
    const simulation = new Simulation({ seed, latencyMs: seed % 3 === 0 ? 0 : 5 });
    makeImage(simulation);
    const device = simulation.open("vhd:/base.vhd");
    const model = new Model();
    let leaf = "/base.vhd";
    for (let round = 1; round <= 12; round++) {
      burst(device, model, random, round);
      if (!random.chance(0.35)) continue;
      device.pause();
      const child = `/child${round}.vhd`;
      snapshot(child, { storage: simulation.disk.storage, parent: leaf });
      leaf = child;
      device.resume(`vhd:${leaf}`);
    }
    readAll(device, model);
    device.close();
    const check = checkImage(leaf, { storage: simulation.disk.storage });
    assert.deepEqual(check.findings, []);
    const again = simulation.open(`vhd:${leaf}`, { readOnly: true });
    readAll(again, model);
    again.close();
    assert.deepEqual(simulation.log, []);
    simulation.disk.close();
  });

  Deno.test(`errors of the disk at any step cost time and nothing else, seed ${seed}`, () => {
    const random = new Random(seed);
    const simulation = new Simulation({ seed, latencyMs: 3 });
    makeImage(simulation);
    const device = simulation.open("vhd:/base.vhd");
    const model = new Model();
    const errors = [Errno.EIO, Errno.ENOSPC, Errno.ETIMEDOUT];
    simulation.disk.fault = () => random.chance(0.15) ? errors[random.below(errors.length)] : 0;
    for (let round = 1; round <= 8; round++) burst(device, model, random, round);
    simulation.disk.fault = null;
    readAll(device, model);
    device.close();
    assert.deepEqual(checkImage("/base.vhd", { storage: simulation.disk.storage }).findings, []);
    simulation.disk.close();
  });
}
