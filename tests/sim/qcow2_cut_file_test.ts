/**
 * QCOW2 files whose end is missing, such as copies that were broken off: what is written to them and
 * succeeds stays, also when they are opened again. No cluster that is in use is given out.
 *
 * @module
 */
import assert from "node:assert/strict";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { Random } from "../../src/testing/random.ts";
import { type SimulatedDevice, Simulation, stampedSectors, stampOf } from "../support/sim.ts";
import { getFile, putFile } from "../support/vhd.ts";

const PATH = "/a";
const NAME = `qcow2:${PATH}`;
const SECTORS = 1024;
/** Many tables and refcount blocks are in a small file. */
const CLUSTER_BYTES = 512;

/** By sector: the stamps that it may hold. */
type Held = Map<number, Set<number>>;

/** Random requests, one after the other. One that fails may have been done. */
function work(device: SimulatedDevice, random: Random, held: Held, firstStamp: number): void {
  const requests = 60 + random.below(200);
  for (let stamp = firstStamp; stamp < firstStamp + requests; stamp++) {
    const sector = random.below(SECTORS - 4);
    const count = 1 + random.below(4);
    const isWrite = random.chance(0.8);
    const outcome = isWrite
      ? device.write(sector, stampedSectors(sector, count, stamp))
      : device.zero(sector, count);
    device.settle();
    for (let each = sector; each < sector + count; each++) {
      const before = outcome.errno === 0 ? new Set<number>() : held.get(each);
      before?.add(isWrite ? stamp : 0);
      if (before !== undefined) held.set(each, before);
    }
  }
}

function requireHeld(device: SimulatedDevice, held: Held, when: string): void {
  for (const [sector, stamps] of held) {
    const { data } = read(device, sector);
    assert.ok(data, `${when}: sector ${sector} cannot be read`);
    const stamp = stampOf(data, 0, sector);
    assert.ok(stamps.has(stamp), `${when}: sector ${sector} holds ${stamp}, not ${[...stamps]}`);
  }
}

function read(device: SimulatedDevice, sector: number): { data: Uint8Array | null } {
  const outcome = device.read(sector, 1);
  device.settle();
  return outcome;
}

Deno.test("what is written to a file whose end is missing stays", () => {
  for (let seed = 1; seed <= 24; seed++) {
    const random = new Random(seed);
    const simulation = new Simulation({ seed });
    const { disk: storage } = simulation;
    const refcountBits = [1, 16, 64][seed % 3];
    const sizeBytes = SECTORS * 512;
    createQcow2(PATH, { storage, sizeBytes, clusterBytes: CLUSTER_BYTES, refcountBits });
    const first = simulation.open(NAME);
    work(first, random, new Map(), 1000);
    first.close();
    const bytes = getFile(storage, PATH);
    putFile(storage, PATH, bytes.slice(0, bytes.length - 512 * random.below(bytes.length / 600)));
    const held: Held = new Map();
    for (let opened = 2; opened < 5; opened++) {
      const device = simulation.open(NAME, { retry: { timeoutMs: 0 } });
      const when = `seed ${seed}, opened ${opened} times`;
      requireHeld(device, held, when);
      work(device, random, held, 1000 * opened);
      requireHeld(device, held, when);
      device.close();
    }
    simulation.close();
  }
});
