/**
 * Pauses and snapshots of a device on the simulated disk: a failed one, one on a hung disk, and
 * requests at the same time.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { Random } from "../../src/testing/random.ts";
import { type LiveSnapshot, liveSnapshot } from "../../src/vbd/live_snapshot.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import {
  assertHolds,
  SECTOR_BYTES,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
  stampOf,
} from "../support/sim.ts";
import { putFile, syncFile } from "../support/vhd.ts";

const MIB = 1 << 20;

function start(): { simulation: Simulation; device: SimulatedDevice } {
  const simulation = new Simulation({ seed: 1, latencyMs: 2 });
  createDynamic("/a.vhd", { storage: simulation.disk, sizeBytes: 8 * MIB });
  return { simulation, device: simulation.open("vhd:/a.vhd") };
}

function snapshotOf(
  { simulation, device }: { simulation: Simulation; device: SimulatedDevice },
  path: string,
  { rename = false, timeoutMs = Infinity, childType }: {
    rename?: boolean;
    timeoutMs?: number;
    childType?: string;
  } = {},
): { errno: number; message: string; made: LiveSnapshot | null } {
  let result: ReturnType<typeof snapshotOf> | null = null;
  liveSnapshot(simulation.context, device.vbd, {
    path,
    rename,
    timeoutMs,
    childType,
    done: (error, made) => {
      result = { errno: error?.errno ?? 0, message: error?.message ?? "", made };
    },
  });
  simulation.runUntil(() => result !== null, "A snapshot");
  return result ?? assert.fail();
}

Deno.test("a pause that cannot drain in time fails, and requests go on", () => {
  const { simulation, device } = start();
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  simulation.hang("/a.vhd", 60_000);
  const stuck = device.write(0, stampedSectors(0, 8, 2));
  let result: { errno: number; message: string } | null = null;
  device.vbd.pause((error) => {
    result = { errno: error?.errno ?? 0, message: error?.message ?? "" };
  }, 5_000);
  const late = device.write(100, stampedSectors(100, 8, 3));
  simulation.runUntil(() => result !== null, "The pause");
  assert.deepEqual(result, {
    errno: Errno.ETIMEDOUT,
    message: "Cannot pause minor 0 in time: its disk owes answers, and 2 requests have not " +
      "ended; it runs on",
  });
  assert.equal(device.vbd.phase, "open");
  assert.equal(simulation.scheduler.nowMs() < 10_000, true);
  device.settle();
  assert.deepEqual([stuck.errno, late.errno], [0, 0]);
  device.pause();
  device.pause();
  device.resume();
  assertHolds(device, 0, 8, 2);
  assertHolds(device, 100, 8, 3);
  device.close();
  simulation.close();
});

Deno.test("a pause during retries holds requests; what failed before does not count afterwards", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 2 });
  createDynamic("/a.vhd", { storage: simulation.disk, sizeBytes: 8 * MIB });
  const device = simulation.open("vhd:/a.vhd", { retry: { timeoutMs: 10_000 } });
  simulation.fault = () => Errno.EIO;
  const outcome = device.write(0, stampedSectors(0, 8, 1));
  simulation.runUntil(() => simulation.scheduler.nowMs() > 8_000, "Eight seconds of retries");
  assert.ok(device.vbd.requests.retrying.size + device.vbd.requests.outstanding > 0);
  device.pause();
  device.pause();
  simulation.scheduler.addTimer(60_000, () => {});
  simulation.runUntil(() => simulation.scheduler.nowMs() > 60_000, "A minute's pause");
  device.resume();
  simulation.runUntil(() => simulation.scheduler.nowMs() > 65_000, "Five more seconds");
  assert.equal(outcome.errno, null);
  simulation.fault = null;
  device.settle();
  assert.equal(outcome.errno, 0);
  device.close();
  simulation.close();
});

Deno.test("unpause takes a larger image, and refuses a smaller one with EMEDIUMTYPE", () => {
  const { simulation, device } = start();
  const storage = simulation.disk;
  createDynamic("/large.vhd", { storage, sizeBytes: 16 * MIB });
  createDynamic("/small.vhd", { storage, sizeBytes: 4 * MIB });
  device.pause();
  const beyond = device.write(20_000, stampedSectors(20_000, 8, 7));
  assert.throws(() => device.resume("vhd:/small.vhd"), /error 124/);
  assert.equal(device.vbd.phase, "paused");
  assert.equal(device.vbd.state, 0x22a);
  device.resume("vhd:/large.vhd");
  assert.equal(device.vbd.geometry.sectors, 16 * 2048);
  device.settle();
  assert.equal(beyond.errno, 0);
  assertHolds(device, 20_000, 8, 7);
  device.close();
  simulation.close();
});

Deno.test("snapshots, with and without renaming, keep each moment", () => {
  const bench = start();
  const { simulation, device } = bench;
  for (let layer = 1; layer <= 6; layer++) {
    device.write(0, stampedSectors(0, 16, layer));
    device.write(layer * 100, stampedSectors(layer * 100, 8, layer));
    device.settle();
    const rename = layer % 2 === 0;
    const { errno, made } = snapshotOf(bench, `/${layer}.vhd`, { rename });
    assert.equal(errno, 0);
    assert.equal(made?.name, device.vbd.name);
    const [, kept] = device.vbd.statistics().images;
    assert.equal(kept.name, made?.parent);
    if (rename) assert.equal(made?.parent, `/${layer}.vhd`);
    // The parent image, opened directly, has the contents at the time of the snapshot.
    const later = device.write(0, stampedSectors(0, 16, 99));
    device.settle();
    assert.equal(later.errno, 0);
    const old = simulation.open(`vhd:${made?.parent}`, { readOnly: true });
    assertHolds(old, 0, 16, layer);
    old.close();
  }
  for (let layer = 1; layer <= 6; layer++) assertHolds(device, layer * 100, 8, layer);
  device.close();
  simulation.close();
});

Deno.test("snapshots of images behind filters keep the filters, and the log of writes", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 2 });
  const storage = simulation.disk;
  createDynamic("/a.vhd", { storage, sizeBytes: 8 * MIB });
  const device = simulation.open("log:bc:1:vhd:/a.vhd");
  const bench = { simulation, device };
  const changed = (): number => {
    const pages = device.vbd.writeLog?.pages() ?? assert.fail();
    let bits = 0;
    for (let at = 4; at < pages.length; at++) {
      for (let byte = pages[at]; byte > 0; byte >>= 1) bits += byte & 1;
    }
    return bits;
  };
  for (let layer = 1; layer <= 4; layer++) {
    device.write(layer * 100, stampedSectors(layer * 100, 8, layer));
    device.settle();
    assertHolds(device, layer * 100, 8, layer);
    const rename = layer % 2 === 0;
    const { errno, message, made } = snapshotOf(bench, `/${layer}.vhd`, { rename });
    assert.equal(errno, 0, message);
    assert.equal(made?.name, `log:bc:1:vhd:${rename ? "/" + (layer - 1) : "/" + layer}.vhd`);
    assert.equal(device.vbd.name, made?.name);
    const kinds = device.vbd.statistics().images.map(({ driver }) => driver.name);
    assert.deepEqual(kinds, ["log", "bc", ...new Array(layer + 1).fill("vhd")]);
    assert.equal(changed(), 8 * layer);
    for (let i = 1; i <= layer; i++) assertHolds(device, i * 100, 8, i);
  }
  device.close();
  simulation.close();
});

Deno.test("snapshots of what can have no layer on top are refused, and it runs on", () => {
  const refusals: [string, RegExp][] = [
    [
      "ram:8",
      /Cannot make a snapshot of minor 0 \(ram:8 is neither VHD nor QCOW2 nor raw\).*EOPNOTSUPP/,
    ],
    ["log:bc:ram:8", /\(log:bc:ram:8 is neither VHD nor QCOW2 nor raw\).*EOPNOTSUPP/],
  ];
  for (const [name, expected] of refusals) {
    const simulation = new Simulation({ seed: 1 });
    const device = simulation.open(name);
    const { errno, message } = snapshotOf({ simulation, device }, "/new.vhd");
    assert.equal(errno, Errno.EOPNOTSUPP);
    assert.match(message, expected);
    const inside = snapshotOf({ simulation, device }, "new", { childType: "rbd" });
    assert.equal(inside.errno, Errno.EOPNOTSUPP);
    assert.match(inside.message, /ram:8 is no image on Ceph/);
    assert.equal(device.vbd.phase, "open");
    assertHolds(device, 0, 8, 0);
    device.close();
    simulation.close();
  }
});

for (const kind of ["raw", "fixed"] as const) {
  Deno.test(`a flush after a snapshot of a ${kind} image covers what was written before it`, () => {
    const simulation = new Simulation({ seed: 1, latencyMs: 2, powerCuts: true });
    const storage = simulation.disk;
    const path = kind === "raw" ? "/a.raw" : "/a.vhd";
    if (kind === "fixed") createFixed(path, { storage, sizeBytes: 4 * MIB, sparse: true });
    else putFile(storage, path, new Uint8Array(4 * MIB));
    syncFile(storage, path);
    const device = simulation.open(kind === "raw" ? `aio:${path}` : `vhd:${path}`);
    device.write(8, stampedSectors(8, 8, 1));
    device.settle();
    assert.equal(snapshotOf({ simulation, device }, "/child.vhd").errno, 0);
    device.flush();
    device.settle();
    for (let seed = 1; seed <= 20; seed++) {
      const photograph = storage.photograph(new Random(seed));
      const after = new Uint8Array(512);
      const file = photograph.open(path, "read");
      file.readAt(after, 8 * 512);
      file.close();
      assert.equal(stampOf(after, 0, 8), 1);
      photograph.close();
    }
    device.close();
    simulation.close();
  });
}

Deno.test("a flush covers what was written to a raw image before a close that failed", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 2, powerCuts: true });
  putFile(simulation.disk, "/a.raw", new Uint8Array(4 * MIB));
  syncFile(simulation.disk, "/a.raw");
  const device = simulation.open("aio:/a.raw");
  device.write(8, stampedSectors(8, 8, 1));
  device.settle();
  simulation.fault = (kind) => kind === "sync" ? Errno.EIO : 0;
  assert.throws(() => device.pause());
  simulation.fault = null;
  assert.equal(snapshotOf({ simulation, device }, "/child.vhd").errno, 0);
  device.flush();
  device.settle();
  for (let seed = 1; seed <= 20; seed++) {
    using photograph = simulation.disk.photograph(new Random(seed));
    const after = new Uint8Array(512);
    const file = photograph.open("/a.raw", "read");
    file.readAt(after, 8 * 512);
    file.close();
    assert.equal(stampOf(after, 0, 8), 1);
  }
  device.close();
  simulation.close();
});

Deno.test("a snapshot that fails at any step leaves the running image", () => {
  const refusals: [string, { rename?: boolean }, number][] = [
    ["/a.vhd", {}, Errno.EEXIST],
    ["/there.vhd", {}, Errno.EEXIST],
    ["/there.vhd", { rename: true }, Errno.EEXIST],
    ["relative.vhd", {}, Errno.EINVAL],
  ];
  const bench = start();
  const { simulation, device } = bench;
  const storage = simulation.disk;
  createDynamic("/there.vhd", { storage, sizeBytes: 8 * MIB });
  device.write(0, stampedSectors(0, 8, 1));
  for (const [path, options, wanted] of refusals) {
    assert.equal(snapshotOf(bench, path, options).errno, wanted, path);
  }
  for (const rename of [false, true]) {
    for (const step of ["create", "rename", "reopen"] as const) {
      if (step === "rename" && !rename) continue;
      const restore = failAt(simulation, step);
      const { errno, made } = snapshotOf(bench, "/new.vhd", { rename });
      restore();
      assert.deepEqual([errno, made], [Errno.EIO, null], `${step}, ${rename}`);
      assert.deepEqual([device.vbd.name, device.vbd.phase], ["vhd:/a.vhd", "open"]);
      for (const path of ["/new.vhd", "/a.vhd.snapshot"]) assert.ok(!storage.exists(path), path);
      assertHolds(device, 0, 8, 1);
    }
  }
  simulation.hang("/a.vhd", 60_000);
  device.write(0, stampedSectors(0, 8, 2));
  assert.equal(snapshotOf(bench, "/new.vhd", { timeoutMs: 1_000 }).errno, Errno.ETIMEDOUT);
  device.settle();
  assert.equal(snapshotOf(bench, "/new.vhd").errno, 0);
  assertHolds(device, 0, 8, 2);
  device.close();
  simulation.close();
});

/** Makes one call fail once; returns a function that undoes this. */
function failAt({ disk }: Simulation, step: "create" | "rename" | "reopen"): () => void {
  let failed = false;
  disk.beforeOperation = ({ kind, queued }): number => {
    const isStep = step === "reopen" ? kind === "open" && queued : kind === step;
    if (!isStep || failed) return 0;
    failed = true;
    return Errno.EIO;
  };
  return () => disk.beforeOperation = null;
}

Deno.test("a snapshot that fails, and images that cannot be opened again: the disk runs on by itself", () => {
  for (const rename of [false, true]) {
    const bench = start();
    const { simulation, device } = bench;
    device.write(0, stampedSectors(0, 8, 1));
    device.settle();
    // The new image is made, and then nothing can be opened for a while.
    let isAway = false;
    simulation.disk.beforeOperation = ({ kind, queued }): number => {
      isAway ||= kind === "open" && queued;
      return isAway && kind === "open" ? Errno.EIO : 0;
    };
    const { errno, message } = snapshotOf(bench, "/new.vhd", { rename });
    assert.equal(errno, Errno.EIO);
    assert.match(message, /minor 0 does not run: .*its requests wait, .* 'tap-ctl unpause'/);
    assert.ok(
      simulation.log.some((line) => line.includes("requests wait, and this is tried again")),
    );
    assert.equal(device.vbd.phase, "paused");
    const waits = device.write(100, stampedSectors(100, 8, 2));
    simulation.scheduler.addTimer(20_000, () => simulation.disk.beforeOperation = null);
    device.settle();
    assert.deepEqual([waits.errno, device.vbd.phase, device.vbd.name], [0, "open", "vhd:/a.vhd"]);
    assertHolds(device, 0, 8, 1);
    assertHolds(device, 100, 8, 2);
    assert.equal(snapshotOf(bench, "/later.vhd").errno, 0);
    device.close();
    simulation.close();
  }
});

Deno.test("a snapshot makes durable what a killed tapdisk wrote to the parent", () => {
  for (const raw of [true, false]) {
    const simulation = new Simulation({ seed: 4, powerCuts: true });
    const { disk } = simulation;
    if (raw) putFile(disk, "/parent", new Uint8Array(4 << 20));
    else createDynamic("/parent", { storage: disk, sizeBytes: 4 << 20 });
    const device = simulation.open(`${raw ? "aio" : "vhd"}:/parent`);
    device.write(0, stampedSectors(0, 64, 7));
    device.settle();
    disk.killProcesses();
    snapshot("/child.vhd", { storage: disk, parent: "/parent", rawParent: raw });
    disk.cutPower();
    disk.powerOn();
    const chain = openChain("/child.vhd", { storage: disk });
    const found = new Uint8Array(64 * SECTOR_BYTES);
    readRange(chain, found, 0);
    chain.close();
    assert.deepEqual(found, stampedSectors(0, 64, 7));
    device.vbd.requests.memory.release();
    disk.close();
  }
});
