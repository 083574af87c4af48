import assert from "node:assert/strict";
import { Random } from "../../src/testing/random.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { burst, DISK_MIB, Model, readAll } from "../support/disk_model.ts";
import { Simulation } from "../support/sim.ts";
import { Errno } from "../../ffi/errno.ts";

const SEEDS = Array.from({ length: 12 }, (_, i) => i + 1);

function makeImage(simulation: Simulation): void {
  createDynamic("/base.vhd", {
    storage: simulation.disk,
    sizeBytes: DISK_MIB * 1024 * 1024,
  });
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
      snapshot(child, { storage: simulation.disk, parent: leaf });
      leaf = child;
      device.resume(`vhd:${leaf}`);
    }
    readAll(device, model);
    device.close();
    const check = checkImage(leaf, { storage: simulation.disk });
    assert.deepEqual(check.findings, []);
    const again = simulation.open(`vhd:${leaf}`, { readOnly: true });
    readAll(again, model);
    again.close();
    assert.deepEqual(simulation.log, []);
    simulation.close();
  });

  Deno.test(`errors of the disk at any step cost time and nothing else, seed ${seed}`, () => {
    const random = new Random(seed);
    const simulation = new Simulation({ seed, latencyMs: 3 });
    makeImage(simulation);
    const device = simulation.open("vhd:/base.vhd");
    const model = new Model();
    const errors = [Errno.EIO, Errno.ENOSPC, Errno.ETIMEDOUT];
    simulation.fault = () => random.chance(0.15) ? errors[random.below(errors.length)] : 0;
    for (let round = 1; round <= 8; round++) burst(device, model, random, round);
    simulation.fault = null;
    readAll(device, model);
    device.close();
    assert.deepEqual(checkImage("/base.vhd", { storage: simulation.disk }).findings, []);
    simulation.close();
  });
}
