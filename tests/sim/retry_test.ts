import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import type { OperationKind } from "../../src/testing/simulated_disk.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { assertHolds, Simulation, stampedSectors } from "../support/sim.ts";
import { RequestKind, type RequestOwner } from "../../src/vbd/slots.ts";
import { syncFile } from "../support/vhd.ts";

const DISK_MIB = 16;
const RETRIED = [
  ...["EIO", "ENOSPC", "EAGAIN", "ESTALE", "ETIMEDOUT", "EDQUOT", "ENOMEM"] as const,
  ...["EACCES", "EBADF"] as const,
];
const FINAL = ["EINVAL", "EPERM", "EFBIG", "EROFS", "EOPNOTSUPP"] as const;
/** The place and length of the writes of these tests. */
const SECTOR = 4096 + 7;
const COUNT = 40;

function makeDisk(simulation: Simulation, { child }: { child: boolean }): string {
  const storage = simulation.disk;
  createDynamic("/base.vhd", { storage, sizeBytes: DISK_MIB * 1024 * 1024 });
  if (!child) return "/base.vhd";
  // An empty parent would be omitted from the chain.
  const base = simulation.open("vhd:/base.vhd");
  base.write(0, stampedSectors(0, 8, 99));
  base.settle();
  base.close();
  snapshot("/child.vhd", { storage, parent: "/base.vhd" });
  return "/child.vhd";
}

/** The operations of the first write to a block, in the order of their ends. */
function stepsOfAllocation(child: boolean): OperationKind[] {
  const simulation = new Simulation({ seed: 1 });
  const device = simulation.open(`vhd:${makeDisk(simulation, { child })}`);
  const steps: OperationKind[] = [];
  simulation.fault = (kind) => {
    steps.push(kind);
    return 0;
  };
  device.write(SECTOR, stampedSectors(SECTOR, COUNT, 1), true);
  device.settle();
  simulation.fault = null;
  device.close();
  simulation.close();
  return steps;
}

/** The failure of a step: which one and how often. */
interface Failure {
  readonly step: number;
  readonly times: number;
  readonly errno: number;
  readonly child: boolean;
}

/**
 * Writes to two blocks for the first time, with one failed step; then cuts the power. False when
 * there are fewer steps.
 */
function writeThrough({ step, times, errno, child }: Failure): boolean {
  const simulation = new Simulation({ seed: step + 1, powerCuts: true });
  const path = makeDisk(simulation, { child });
  const storage = simulation.disk;
  for (const name of new Set(["/base.vhd", path])) syncFile(storage, name);
  const device = simulation.open(`vhd:${path}`);
  let ended = 0;
  let left = times;
  simulation.fault = () => {
    if (ended++ < step || left === 0) return 0;
    left--;
    return errno;
  };
  const startMs = simulation.scheduler.nowMs();
  const outcome = device.write(SECTOR, stampedSectors(SECTOR, COUNT, 1), true);
  const beside = device.write(SECTOR + 4096, stampedSectors(SECTOR + 4096, COUNT, 2), true);
  device.settle();
  assert.equal(outcome.errno, 0);
  assert.equal(beside.errno, 0);
  const tookMs = simulation.scheduler.nowMs() - startMs;
  assert.ok(tookMs <= 1000 * times, `${times} errors cost ${tookMs} ms`);
  assertHolds(device, SECTOR, COUNT, 1);

  const after = new Simulation({ seed: 1 }, simulation);
  const found = checkImage(path, { storage: after.disk, ignoreFooter: true });
  assert.ok(found.valid, JSON.stringify(found.findings));
  const again = after.open(`vhd:${path}`);
  assertHolds(again, SECTOR, COUNT, 1);
  assertHolds(again, SECTOR + 4096, COUNT, 2);
  if (child) assertHolds(again, 0, 8, 99);
  again.close();
  assert.deepEqual(checkImage(path, { storage: after.disk }).findings, []);
  device.vbd.destroy();
  after.close();
  return left < times;
}

for (const child of [false, true]) {
  const where = child ? "a differencing image" : "a dynamic image";
  const steps = stepsOfAllocation(child);

  Deno.test(`a new block in ${where}: data, bitmap, sync, BAT and footer, sync`, () => {
    assert.deepEqual(steps, ["write", "write", "sync", "write", "write", "sync"]);
  });

  for (const name of RETRIED) {
    Deno.test(`${name} at any step of allocating a block in ${where} costs time only`, () => {
      const errno = Errno[name];
      for (const times of [1, 3]) {
        let step = 0;
        while (writeThrough({ step, times, errno, child })) step++;
        assert.ok(step > steps.length, `${step} steps`);
      }
    });
  }
}

Deno.test("a file that cannot grow costs time only", () => {
  for (const name of RETRIED) {
    const simulation = new Simulation({ seed: 1 });
    const device = simulation.open(`vhd:${makeDisk(simulation, { child: false })}`);
    simulation.lengthFault = Errno[name];
    simulation.scheduler.addTimer(20_500, () => simulation.lengthFault = 0);
    const startMs = simulation.scheduler.nowMs();
    const outcome = device.write(SECTOR, stampedSectors(SECTOR, COUNT, 1));
    const read = device.read(0, 8);
    device.settle();
    assert.deepEqual([outcome.errno, read.errno], [0, 0]);
    assert.equal(simulation.scheduler.nowMs() - startMs, 21_000, "it was tried once a second");
    assert.equal(device.vbd.statistics().retries, 21);
    assertHolds(device, SECTOR, COUNT, 1);
    device.close();
    assert.deepEqual(checkImage("/base.vhd", { storage: simulation.disk }).findings, []);
    simulation.close();
  }
});

/**
 * For a write that always fails: how long it is retried in milliseconds, how often, and its result.
 */
function failForGood(errno: number, timeoutMs?: number): [number, number, number | null] {
  const simulation = new Simulation({ seed: 1 });
  const path = makeDisk(simulation, { child: false });
  const retry = timeoutMs === undefined ? {} : { timeoutMs };
  const device = simulation.open(`vhd:${path}`, { retry });
  simulation.fault = () => errno;
  const startMs = simulation.scheduler.nowMs();
  const outcome = device.write(SECTOR, stampedSectors(SECTOR, COUNT, 1));
  device.settle();
  const tookMs = simulation.scheduler.nowMs() - startMs;
  const { retries, images: [{ fail }] } = device.vbd.statistics();
  assert.deepEqual(fail, [0, 1]);
  // The data of the failed write is absent, and the device continues.
  simulation.fault = null;
  assertHolds(device, SECTOR, COUNT, 0);
  device.write(SECTOR, stampedSectors(SECTOR, COUNT, 3));
  device.settle();
  assertHolds(device, SECTOR, COUNT, 3);
  device.close();
  assert.deepEqual(checkImage(path, { storage: simulation.disk }).findings, []);
  simulation.close();
  return [tookMs, retries, outcome.errno];
}

Deno.test("a request that fails for good is tried 100 times, or for as long as -t says", () => {
  for (const name of RETRIED) {
    const errno = Errno[name];
    assert.deepEqual(failForGood(errno), [100_000, 100, errno]);
    assert.deepEqual(failForGood(errno, 30_000), [30_000, 30, errno]);
    assert.deepEqual(failForGood(errno, 300_000), [300_000, 300, errno]);
  }
});

Deno.test("a request that is wrong in itself fails at once", () => {
  for (const name of FINAL) {
    assert.deepEqual(failForGood(Errno[name]), [0, 0, Errno[name]], name);
    assert.deepEqual(failForGood(Errno[name], 300_000), [0, 0, Errno[name]], name);
  }
});

Deno.test("a forced write whose sync fails has not ended; what follows it waits its turn", () => {
  const simulation = new Simulation({ seed: 1 });
  const device = simulation.open(`vhd:${makeDisk(simulation, { child: false })}`);
  device.write(SECTOR, stampedSectors(SECTOR, COUNT, 1));
  device.settle();
  const order: string[] = [];
  let failing = true;
  simulation.fault = (kind) => {
    if (failing && kind === "sync") return Errno.EIO;
    order.push(kind === "sync" ? "sync" : "write");
    return 0;
  };
  const forced = device.write(SECTOR, stampedSectors(SECTOR, COUNT, 2), true);
  const startMs = simulation.scheduler.nowMs();
  simulation.runUntil(() => simulation.scheduler.nowMs() >= startMs + 5000, "Five seconds");
  assert.equal(forced.errno, null);
  assert.equal(device.vbd.statistics().retrying, 1);
  const flush = device.flush();
  simulation.scheduler.turn();
  assert.deepEqual([forced.errno, flush.errno], [null, null]);
  failing = false;
  device.settle();
  assert.deepEqual([forced.errno, flush.errno], [0, 0]);
  assert.equal(order.at(0), "write");
  assert.deepEqual(order.filter((step) => step === "sync").length, 2);
  assertHolds(device, SECTOR, COUNT, 2);
  device.close();
  simulation.close();
});

Deno.test("a write of a client that left is not tried again after a pause over what was written since", () => {
  const simulation = new Simulation({ seed: 3, latencyMs: 2 });
  const device = simulation.open(`vhd:${makeDisk(simulation, { child: false })}`);
  device.write(SECTOR, stampedSectors(SECTOR, COUNT, 1));
  device.settle();
  const { requests } = device.vbd;
  const ends: number[] = [];
  const faults = { failed: false, fault: (): void => {} };
  const client: RequestOwner = {
    faults,
    requestDone(slot, errno): void {
      ends.push(errno);
      requests.releaseSlot(slot);
    },
  };
  const slot = requests.takeSlot();
  requests.memory.bytes.set(stampedSectors(SECTOR, COUNT, 2), requests.slotOffset(slot));
  simulation.fault = (kind) => kind === "write" ? Errno.ETIMEDOUT : 0;
  requests.start(slot, RequestKind.Write, SECTOR, COUNT, false, client);
  simulation.runUntil(() => requests.retrying.size === 1, "The first try");
  simulation.fault = null;
  // Its client goes without an answer, makes it again, and then writes something newer.
  faults.failed = true;
  const newer = device.write(SECTOR, stampedSectors(SECTOR, COUNT, 3));
  device.settle();
  assert.deepEqual([newer.errno, requests.retrying.size], [0, 1]);
  device.pause();
  device.resume();
  simulation.runUntil(() => requests.outstanding === 0, "The next try");
  assert.deepEqual(ends, [Errno.ECONNRESET]);
  assertHolds(device, SECTOR, COUNT, 3);
  device.close();
  simulation.close();
});
