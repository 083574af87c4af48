/**
 * Chains of QCOW2 images, read through the drivers themselves: the filters that check drivers in other
 * tests are between the images, which then do not know each other.
 */
import assert from "node:assert/strict";
import { driverOfType } from "../../src/driver/registry.ts";
import { createQcow2, type CreateQcow2Options } from "../../src/qcow2/create.ts";
import { Random } from "../../src/testing/random.ts";
import { type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const SECTOR = 512;

/** Options of the images, the lowest first. */
type Chain = readonly (Omit<CreateQcow2Options, "sizeBytes"> & { readonly sectors: number })[];

const CHAINS: Readonly<Record<string, Chain>> = {
  "more clusters than are remembered": Array(5).fill({ clusterBytes: 512, sectors: 80_000 }),
  "sizes that differ": [5000, 4003, 6001, 6001, 5500, 7000].map((sectors) => ({
    clusterBytes: 4096,
    sectors,
  })),
  "subclusters, and clusters of two sizes": [
    { clusterBytes: 4096, sectors: 8000 },
    { sectors: 8000 },
    { extendedL2: true, sectors: 8000 },
    { sectors: 8000 },
    { extendedL2: true, sectors: 8000 },
    { sectors: 8000 },
  ],
};

/** What a disk holds: the version of each sector, 0 for zeros. */
class Model {
  constructor(readonly versions: Uint8Array) {}

  /** The disk of an image above, before it is written. */
  above(sectors: number): Model {
    const versions = new Uint8Array(sectors);
    versions.set(this.versions.subarray(0, sectors));
    return new Model(versions);
  }

  expected(sector: number, count: number): Uint8Array {
    const bytes = new Uint8Array(count * SECTOR);
    for (let i = 0; i < count; i++) {
      const version = this.versions[sector + i];
      if (version > 0) bytes.set(stampedSectors(sector + i, 1, version), i * SECTOR);
    }
    return bytes;
  }
}

/** A random range, often near the end of the shortest image. */
function range(random: Random, sectors: number, near: number): [sector: number, count: number] {
  const at = random.chance(0.2) ? near - 20 + random.below(40) : random.below(sectors);
  const sector = Math.min(at, sectors - 1);
  return [sector, Math.min(1 + random.below(random.chance(0.1) ? 300 : 12), sectors - sector)];
}

function change(device: SimulatedDevice, model: Model, random: Random, version: number): void {
  const { sectors } = device.vbd;
  for (let i = 0; i < 60; i++) {
    const [sector, short] = range(random, sectors, 4003);
    const isZero = random.chance(0.2);
    // Whole clusters are zero then.
    const count = isZero ? Math.min(short + random.below(400), sectors - sector) : short;
    if (isZero) device.zero(sector, count);
    else device.write(sector, stampedSectors(sector, count, version));
    device.settle();
    model.versions.fill(isZero ? 0 : version, sector, sector + count);
  }
}

function readAll(device: SimulatedDevice, model: Model, random: Random): void {
  const { sectors } = device.vbd;
  for (let sector = 0; sector < sectors; sector += 509) {
    const count = Math.min(509, sectors - sector);
    const { data } = read(device, sector, count);
    assert.ok(equal(data, model.expected(sector, count)), `sectors from ${sector} on`);
  }
  for (let i = 0; i < 400; i++) {
    const [sector, count] = range(random, sectors, 4003);
    const { data } = read(device, sector, count);
    assert.ok(equal(data, model.expected(sector, count)), `${count} sectors from ${sector} on`);
  }
}

function read(device: SimulatedDevice, sector: number, count: number): { data: Uint8Array | null } {
  const outcome = device.read(sector, count);
  device.settle();
  return outcome;
}

function equal(data: Uint8Array | null, expected: Uint8Array): boolean {
  return data !== null && data.length === expected.length &&
    data.every((byte, i) => byte === expected[i]);
}

for (const [name, chain] of Object.entries(CHAINS)) {
  Deno.test(`a deep chain reads what its images hold: ${name}`, () => {
    const random = new Random(7);
    const simulation = new Simulation({ seed: 7, latencyMs: 1, driverOf: driverOfType });
    const storage = simulation.disk;
    let model = new Model(new Uint8Array(0));
    for (const [layer, { sectors, ...options }] of chain.entries()) {
      const backing = layer === 0 ? {} : { backing: { name: `${layer - 1}`, format: "qcow2" } };
      createQcow2(`/${layer}`, { storage, sizeBytes: sectors * SECTOR, ...options, ...backing });
      model = model.above(sectors);
      const device = simulation.open(`qcow2:/${layer}`);
      change(device, model, random, 1 + layer);
      device.close();
    }
    const top = `qcow2:/${chain.length - 1}`;
    const reading = simulation.open(top, { readOnly: true });
    readAll(reading, model, random);
    readAll(reading, model, random);
    reading.close();
    const writing = simulation.open(top);
    for (let round = 0; round < 3; round++) {
      change(writing, model, random, 100 + round);
      readAll(writing, model, random);
    }
    writing.close();
    simulation.close();
  });
}
