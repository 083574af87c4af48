/**
 * Clusters of a QCOW2 that have a reference before they are given out: first writes to clusters of zeros
 * need no sync in front of their entries, and whenever the power fails no entry leads to a cluster
 * without a reference.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import type { Storage } from "../../src/files/storage.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2, type CreateQcow2Options } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { Random } from "../../src/testing/random.ts";
import type { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import {
  assertHolds,
  type Outcome,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
  stampOf,
} from "../support/sim.ts";
import { putFile, syncFile } from "../support/vhd.ts";

const PATH = "/a";
const MIB = 1 << 20;
const CLUSTER_BYTES = 4096;
const CLUSTER_SECTORS = CLUSTER_BYTES / 512;

function make(
  { disk: storage }: Simulation,
  options: Partial<CreateQcow2Options> = {},
): void {
  const sizeBytes = 16 * MIB;
  createQcow2(PATH, { storage, sizeBytes, clusterBytes: CLUSTER_BYTES, ...options });
  syncFile(storage, PATH);
}

interface Found {
  readonly errors: readonly string[];
  readonly leakedClusters: number;
  readonly usedClusters: number;
  readonly sizeBytes: number;
}

function look(storage: Storage): Found {
  const image = openQcow2(PATH, { storage });
  try {
    const { errors, leakedClusters, references } = checkQcow2(image);
    const sizeBytes = image.file.sizeBytes();
    return { errors, leakedClusters, usedClusters: references.used, sizeBytes };
  } finally {
    image.close();
  }
}

/** Requires that an image that was closed has lost no room, inside or at its end. */
function requireTight(storage: Storage): void {
  const { errors, leakedClusters, usedClusters, sizeBytes } = look(storage);
  assert.deepEqual([errors, leakedClusters], [[], 0]);
  assert.equal(sizeBytes, usedClusters * CLUSTER_BYTES);
}

/** Counts the syncs of the disk queue from now on. */
function countSyncs(disk: SimulatedDisk): { count: number } {
  const syncs = { count: 0 };
  disk.beforeOperation = ({ kind, queued }) => {
    if (queued && kind === "sync") syncs.count++;
    return 0;
  };
  return syncs;
}

/** Writes to clusters of the disk, one after the other. */
function writeEach(device: SimulatedDevice, first: number, count: number, stamp: number): void {
  for (let cluster = first; cluster < first + count; cluster++) {
    const sector = cluster * CLUSTER_SECTORS;
    const outcome = device.write(sector + 2, stampedSectors(sector + 2, 3, stamp));
    device.settle();
    assert.equal(outcome.errno, 0);
  }
}

Deno.test("first writes to clusters of zeros share few syncs, and a close gives the reserve back", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 1 });
  make(simulation);
  const device = simulation.open(`qcow2:${PATH}`);
  const syncs = countSyncs(simulation.disk);
  writeEach(device, 0, 1500, 1);
  assert.ok(syncs.count < 60, `1500 first writes took ${syncs.count} syncs`);
  assertHolds(device, 1000 * CLUSTER_SECTORS + 2, 3, 1);
  assertHolds(device, 1000 * CLUSTER_SECTORS, 2, 0);
  device.close();
  simulation.disk.beforeOperation = null;
  requireTight(simulation.disk);
  simulation.close();
});

Deno.test("first writes over what an image below holds have a sync each", () => {
  const simulation = new Simulation({ seed: 1 });
  putFile(simulation.disk, "/base", stampedSectors(0, 16 * MIB / 512, 9).slice());
  make(simulation, { backing: { name: "base", format: "raw" } });
  const device = simulation.open(`qcow2:${PATH}`);
  const syncs = countSyncs(simulation.disk);
  writeEach(device, 0, 300, 1);
  assert.ok(syncs.count >= 300, `300 first writes took ${syncs.count} syncs`);
  device.close();
  simulation.disk.beforeOperation = null;
  requireTight(simulation.disk);
  simulation.close();
});

Deno.test("a kill loses no more clusters than twice those that were given out, and at most 512", () => {
  const simulation = new Simulation({ seed: 1 });
  make(simulation);
  const empty = look(simulation.disk).usedClusters;
  const device = simulation.open(`qcow2:${PATH}`);
  for (const [first, end] of [[0, 1], [1, 2], [2, 10], [10, 100], [100, 700], [700, 2000]]) {
    writeEach(device, first, end - first, 1);
    const killed = simulation.disk.copy();
    const { errors, leakedClusters, usedClusters } = look(killed);
    const most = Math.min(512, 2 * (usedClusters - empty));
    assert.deepEqual(errors, []);
    assert.ok(leakedClusters <= most, `${leakedClusters} of ${end} clusters are lost`);
    // What was lost is behind what is used, and the next use goes on behind it.
    const after = new Simulation({ seed: 1, disk: killed });
    const again = after.open(`qcow2:${PATH}`);
    assertHolds(again, (end - 1) * CLUSTER_SECTORS + 2, 3, 1);
    writeEach(again, end, 20, 2);
    again.close();
    assert.deepEqual([look(killed).errors, look(killed).leakedClusters], [[], leakedClusters]);
    after.close();
  }
  device.close();
  requireTight(simulation.disk);
  simulation.close();
});

interface Write {
  readonly sector: number;
  readonly count: number;
  readonly stamp: number;
  readonly outcome: Outcome;
  isFlushed: boolean;
}

/** What a cut of the power may leave of first writes, and of writes to the same clusters after them. */
function requireHeld(left: SimulatedDisk, writes: readonly Write[]): void {
  const { errors } = look(left);
  assert.deepEqual(errors, []);
  const after = new Simulation({ seed: 1, disk: left });
  const device = after.open(`qcow2:${PATH}`, { readOnly: true });
  const sectors = new Set(
    writes.flatMap(({ sector, count }) => Array.from({ length: count }, (_, i) => sector + i)),
  );
  const end = Math.max(0, ...sectors) + 1;
  for (let at = 0; at < end; at += 512) {
    const outcome = device.read(at, Math.min(512, end - at));
    device.settle();
    assert.ok(outcome.data);
    for (let sector = at; sector < Math.min(end, at + 512); sector++) {
      let may = new Set([0]);
      for (const write of writes) {
        if (sector < write.sector || sector >= write.sector + write.count) continue;
        may = new Set([...write.isFlushed ? [] : may, write.stamp]);
      }
      const got = stampOf(outcome.data, sector - at, sector);
      assert.ok(may.has(got), `sector ${sector}: ${got}, not one of ${[...may].join(", ")}`);
    }
  }
  device.close();
  after.close();
}

/** Random first writes and flushes; each sync and each length may fail. */
function work(
  simulation: Simulation,
  { random, writes, fails }: { random: Random; writes: Write[]; fails: boolean },
): SimulatedDevice {
  const device = simulation.open(`qcow2:${PATH}`, { retry: { timeoutMs: 0 } });
  let flush: { outcome: Outcome; ended: Write[] } | null = null;
  for (let turn = 0; turn < 120; turn++) {
    for (let i = random.below(5); i > 0; i--) {
      const sector = random.below(120 * CLUSTER_SECTORS);
      const count = 1 + random.below(random.chance(0.2) ? 24 : 4);
      const isUnderWay = writes.some((write) =>
        write.outcome.errno === null && write.sector < sector + count &&
        sector < write.sector + write.count
      );
      if (isUnderWay) continue;
      const stamp = writes.length + 1;
      const outcome = device.write(sector, stampedSectors(sector, count, stamp));
      writes.push({ sector, count, stamp, outcome, isFlushed: false });
    }
    if (flush === null && random.chance(0.1)) {
      flush = {
        ended: writes.filter(({ outcome }) => outcome.errno === 0),
        outcome: device.flush(),
      };
    }
    simulation.fault = fails && random.chance(0.15)
      ? (kind) => kind !== "read" && random.chance(0.5) ? Errno.ENOSPC : 0
      : null;
    simulation.scheduler.turn();
    if (flush !== null && flush.outcome.errno !== null) {
      if (flush.outcome.errno === 0) { for (const write of flush.ended) write.isFlushed = true; }
      flush = null;
    }
  }
  simulation.fault = null;
  return device;
}

for (const fails of [false, true]) {
  const what = fails ? "with errors at each step" : "without errors";
  Deno.test(`the power fails while the reserve is made, used and given back, ${what}`, () => {
    for (let seed = 1; seed <= 5; seed++) {
      const random = new Random(seed);
      const simulation = new Simulation({ seed, latencyMs: seed % 3, powerCuts: true });
      make(simulation, { refcountBits: seed % 2 === 0 ? 16 : 64 });
      const writes: Write[] = [];
      const device = work(simulation, { random, writes, fails });
      for (let i = 0; i < 16; i++) requireHeld(simulation.disk.photograph(random), writes);
      device.settle();
      for (let i = 0; i < 6; i++) requireHeld(simulation.disk.photograph(random), writes);
      let operations = 0;
      simulation.disk.beforeOperation = () => {
        if (operations++ % 4 === 0) requireHeld(simulation.disk.photograph(random), writes);
        return 0;
      };
      device.close();
      simulation.disk.beforeOperation = null;
      assert.ok(operations > 2, "A close takes the reserve back");
      const { errors, leakedClusters } = look(simulation.disk);
      assert.deepEqual(errors, []);
      if (!fails) assert.equal(leakedClusters, 0);
      simulation.close();
    }
  });
}

Deno.test("references are not durable after a sync that failed for another change", () => {
  const random = new Random(1);
  const simulation = new Simulation({ seed: 1, powerCuts: true });
  make(simulation);
  const device = simulation.open(`qcow2:${PATH}`, { retry: { timeoutMs: 0 } });
  writeEach(device, 0, 20, 1);
  for (let cluster = 20; cluster < 120; cluster++) {
    // The data takes long, so that the commit of the discard has the new references, too.
    let writes = 0;
    simulation.connection.delayOf = (kind) => kind === "write" && writes++ === 0 ? 50 : 0;
    const sector = cluster * CLUSTER_SECTORS;
    const written = device.write(sector, stampedSectors(sector, 4, 1));
    const discarded = device.discard(0, CLUSTER_SECTORS);
    simulation.fault = (kind) => kind === "sync" && discarded.errno === null ? Errno.EIO : 0;
    device.settle();
    assert.deepEqual([discarded.errno, written.errno], [Errno.EIO, 0]);
    for (let i = 0; i < 8; i++) {
      const left = simulation.disk.photograph(random);
      assert.deepEqual(look(left).errors, []);
      left.close();
    }
  }
  simulation.fault = null;
  device.close();
  simulation.close();
});

Deno.test("a close whose reference counts cannot be written loses the reserve, and nothing else", () => {
  const simulation = new Simulation({ seed: 1 });
  make(simulation);
  const device = simulation.open(`qcow2:${PATH}`);
  writeEach(device, 0, 100, 1);
  simulation.fault = (kind) => kind === "write" ? Errno.EIO : 0;
  device.close();
  simulation.fault = null;
  assert.match(simulation.log.join("\n"), /keeps references to clusters that were not used/);
  const { errors, leakedClusters } = look(simulation.disk);
  assert.deepEqual(errors, []);
  assert.ok(leakedClusters > 0 && leakedClusters <= 200, `${leakedClusters} are lost`);
  const again = simulation.open(`qcow2:${PATH}`);
  assertHolds(again, 99 * CLUSTER_SECTORS + 2, 3, 1);
  writeEach(again, 100, 100, 2);
  again.close();
  assert.deepEqual(look(simulation.disk), { ...look(simulation.disk), errors: [], leakedClusters });
  simulation.close();
});
