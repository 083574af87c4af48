/**
 * What a device refuses, counts and forgets: requests beyond the disk or its rights, errors of a part
 * of a request, statistics, keys.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { liveSnapshot } from "../../src/vbd/live_snapshot.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { DiskKey, hashKey, storeKeyhash } from "../../src/vhd/key.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { putFile } from "../support/vhd.ts";
import { assertHolds, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1 << 20;
const SECTORS = 8 * 2048;
const BLOCK_SECTORS = 4096;

function start({ latencyMs = 0 } = {}): Simulation {
  const simulation = new Simulation({ seed: 1, latencyMs });
  createDynamic("/a.vhd", { storage: simulation.disk, sizeBytes: 8 * MIB });
  putFile(simulation.disk, "/a.raw", new Uint8Array(8 * MIB));
  return simulation;
}

/** What becomes of requests at a place: of a read, a write, zeroes, a discard and a status. */
function errnosAt(device: SimulatedDevice, sector: number, count: number): (number | null)[] {
  const outcomes = [
    device.read(sector, count),
    device.write(sector, stampedSectors(sector, count, 1)),
    device.zero(sector, count),
    device.fill(sector, count),
    device.discard(sector, count),
    device.status(sector, count),
  ];
  device.settle();
  return outcomes.map(({ errno }) => errno);
}

for (const name of ["vhd:/a.vhd", "aio:/a.raw", "ram:8", "log:bc:1:vhd:/a.vhd"]) {
  Deno.test(`${name}: requests end with the disk, to the sector`, () => {
    const simulation = start();
    const device = simulation.open(name);
    const { EINVAL, ENOSPC } = Errno;
    const beyond = [EINVAL, ENOSPC, EINVAL, EINVAL, EINVAL, EINVAL];
    assert.deepEqual(errnosAt(device, SECTORS - 8, 8), [0, 0, 0, 0, 0, 0]);
    assert.deepEqual(errnosAt(device, SECTORS - 7, 8), beyond);
    assert.deepEqual(errnosAt(device, SECTORS, 1), beyond);
    assert.deepEqual(errnosAt(device, 2 ** 40, 8), beyond);
    device.close();
    simulation.close();
  });

  Deno.test(`${name}: a disk that is open for reading is not changed`, () => {
    const simulation = start();
    const device = simulation.open(name, { readOnly: true });
    const { EPERM } = Errno;
    assert.deepEqual(errnosAt(device, 8, 8), [0, EPERM, EPERM, EPERM, EPERM, 0]);
    const flush = device.flush();
    device.settle();
    assert.equal(flush.errno, 0);
    assertHolds(device, 8, 8, 0);
    device.close();
    simulation.close();
  });
}

Deno.test("requests that waited for a pause are compared with the image that is open then", () => {
  const simulation = start();
  createDynamic("/large.vhd", { storage: simulation.disk, sizeBytes: 16 * MIB });
  const device = simulation.open("vhd:/a.vhd");
  device.pause();
  const within = device.write(SECTORS, stampedSectors(SECTORS, 8, 1));
  const write = device.write(2 * SECTORS - 4, stampedSectors(2 * SECTORS - 4, 8, 1));
  const read = device.read(2 * SECTORS, 1);
  device.resume("vhd:/large.vhd");
  device.settle();
  assert.deepEqual([within.errno, write.errno, read.errno], [0, Errno.ENOSPC, Errno.EINVAL]);
  device.close();
  simulation.close();
});

Deno.test("a request fails if any of its pieces fails, the first or the last", () => {
  for (const failing of [1, 2]) {
    const simulation = start();
    const device = simulation.open("vhd:/a.vhd");
    for (let sector = 0; sector < 2 * BLOCK_SECTORS; sector += 512) {
      device.write(sector, stampedSectors(sector, 512, 1));
    }
    device.settle();
    let writes = 0;
    simulation.fault = (kind) => kind === "write" && ++writes === failing ? Errno.EINVAL : 0;
    const place = BLOCK_SECTORS - 8;
    const outcome = device.write(place, stampedSectors(place, 16, 2));
    device.settle();
    simulation.fault = null;
    assert.deepEqual([outcome.errno, writes], [Errno.EINVAL, 2]);
    device.close();
    simulation.close();
  }
});

Deno.test("failures before a pause do not count against the limit of tries after it", () => {
  const simulation = start();
  const device = simulation.open("vhd:/a.vhd", { retry: { attempts: 5 } });
  simulation.fault = () => Errno.EIO;
  const outcome = device.write(0, stampedSectors(0, 8, 1));
  for (let tries = 0; tries < 4; tries++) simulation.scheduler.turn();
  assert.equal(device.vbd.statistics().retrying, 1);
  device.pause();
  device.resume();
  for (let tries = 0; tries < 4; tries++) simulation.scheduler.turn();
  assert.equal(outcome.errno, null, "it has its five tries again");
  simulation.fault = null;
  device.settle();
  assert.equal(outcome.errno, 0);
  device.close();
  simulation.close();
});

Deno.test("statistics count what was read and written, and apart from it what failed", () => {
  const simulation = start();
  const device = simulation.open("aio:/a.raw");
  device.write(0, stampedSectors(0, 24, 1));
  device.read(100, 8);
  device.settle();
  simulation.fault = () => Errno.EINVAL;
  device.write(0, stampedSectors(0, 40, 1));
  device.read(0, 80);
  device.read(200, 16);
  device.settle();
  simulation.fault = null;
  const { secs, images: [{ fail }] } = device.vbd.statistics();
  assert.deepEqual([secs, fail], [[8, 24], [2, 1]]);
  device.close();
  simulation.close();
});

Deno.test({
  name: "the key of a disk is wiped when the disk is closed, and not before",
  ignore: !hasLibcrypto(),
  fn: () => {
    const simulation = start();
    const bytes = Uint8Array.from({ length: 32 }, (_, i) => i * 7 + 5);
    const nonce = new Uint8Array(32).fill(9);
    const keyhash = { cookie: 1, nonce, hash: hashKey(bytes, nonce) };
    storeKeyhash("/a.vhd", { storage: simulation.disk, ...keyhash });
    const key = new DiskKey(bytes);
    const device = simulation.open("vhd:/a.vhd", { key });
    device.pause();
    assert.ok(key.matches(keyhash), "a pause needs it again");
    device.resume();
    device.close();
    assert.ok(!key.matches(keyhash));
    simulation.close();
  },
});

Deno.test("a snapshot refers to the running image, also to one that holds nothing", () => {
  const simulation = start();
  const storage = simulation.disk;
  const base = simulation.open("vhd:/a.vhd");
  base.write(0, stampedSectors(0, 8, 1));
  base.settle();
  base.close();
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  const device = simulation.open("vhd:/b.vhd");
  let parent = "";
  liveSnapshot(simulation.context, device.vbd, {
    path: "/c.vhd",
    rename: false,
    timeoutMs: Infinity,
    done: (error, made) => {
      assert.equal(error, null);
      parent = made?.parent ?? "";
    },
  });
  simulation.runUntil(() => parent !== "", "A snapshot");
  assert.equal(parent, "/b.vhd");
  const names = device.vbd.statistics().images.map(({ name }) => name);
  assert.deepEqual(names, ["/c.vhd", "/b.vhd", "/a.vhd"]);
  device.close();
  simulation.close();
});

Deno.test("aio: a flush and a write with FUA are synced, another write is not", () => {
  const simulation = start();
  const device = simulation.open("aio:/a.raw");
  const steps: string[] = [];
  simulation.fault = (kind) => {
    steps.push(kind);
    return 0;
  };
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  assert.deepEqual(steps, ["write"]);
  device.flush();
  device.settle();
  assert.deepEqual(steps, ["write", "sync"]);
  device.write(0, stampedSectors(0, 8, 2), true);
  device.settle();
  assert.deepEqual(steps, ["write", "sync", "write", "sync"]);
  simulation.fault = null;
  device.close();
  simulation.close();
});

Deno.test("aio: zeroing fails if the hole cannot be punched, and the data stays", () => {
  const simulation = start();
  const device = simulation.open("aio:/a.raw");
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  simulation.disk.beforeOperation = ({ kind }): number => kind === "punch" ? Errno.EPERM : 0;
  const zero = device.zero(0, 8);
  const discard = device.discard(0, 8);
  device.settle();
  simulation.disk.beforeOperation = null;
  assert.deepEqual([zero.errno, discard.errno], [Errno.EPERM, Errno.EPERM]);
  assertHolds(device, 0, 8, 1);
  device.close();
  simulation.close();
});

Deno.test("bc: what was read while a write was under way is not kept", () => {
  const simulation = start({ latencyMs: 2 });
  const storage = simulation.disk;
  const base = simulation.open("vhd:/a.vhd");
  base.write(0, stampedSectors(0, 8, 1));
  base.settle();
  base.close();
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  const device = simulation.open("bc:1:vhd:/b.vhd");
  simulation.hang("/b.vhd", 60_000);
  const write = device.write(0, stampedSectors(0, 8, 2));
  const read = device.read(0, 8);
  simulation.runUntil(() => read.errno !== null, "A read of the parent");
  assert.equal(write.errno, null, "the write has not ended");
  device.settle();
  assertHolds(device, 0, 8, 2);
  device.close();
  simulation.close();
});

Deno.test("all requests that failed are tried again at the same time", () => {
  const simulation = start();
  const device = simulation.open("aio:/a.raw");
  let left = 3;
  simulation.fault = () => left-- > 0 ? Errno.EIO : 0;
  const outcomes = [0, 100, 200].map((sector) =>
    device.write(sector, stampedSectors(sector, 8, 1))
  );
  const startMs = simulation.scheduler.nowMs();
  device.settle();
  simulation.fault = null;
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 0, 0]);
  assert.equal(simulation.scheduler.nowMs() - startMs, 1000);
  assert.equal(device.vbd.statistics().retries, 3);
  device.close();
  simulation.close();
});
