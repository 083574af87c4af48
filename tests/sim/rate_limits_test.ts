/**
 * Rate limits of a device on a simulated clock: how exact they are for requests of any size and
 * direction, and what they never hold back.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Random } from "../../src/testing/random.ts";
import { NO_LIMITS, type RateLimits } from "../../src/vbd/rate_limits.ts";
import { RequestKind, type RequestOwner } from "../../src/vbd/slots.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { type Outcome, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1 << 20;
const DISK_SECTORS = 32768;

function limits(some: Partial<RateLimits>): RateLimits {
  return { ...NO_LIMITS, ...some };
}

function start(
  some: Partial<RateLimits>,
  { latencyMs = 1, image = "ram:16" } = {},
): { simulation: Simulation; device: SimulatedDevice } {
  const simulation = new Simulation({ seed: 1, latencyMs });
  if (image === "vhd:/a.vhd") {
    createDynamic("/a.vhd", { storage: simulation.disk, sizeBytes: 16 * MIB });
  }
  return { simulation, device: simulation.open(image, { limits: limits(some) }) };
}

/** Runs the loop for so long. */
function elapse(simulation: Simulation, forMs: number): void {
  const untilMs = simulation.scheduler.nowMs() + forMs;
  simulation.scheduler.addTimer(forMs, () => {});
  simulation.runUntil(() => simulation.scheduler.nowMs() >= untilMs, "The time");
}

/** What a client does: so many requests at once, of these sizes, reads by this chance in percent. */
interface Load {
  readonly depth: number;
  readonly most: number;
  readonly reads: number;
  readonly seed: number;
}

/** A client that starts a request for each that ends, and counts those that ended. */
class Client implements RequestOwner {
  readonly ended = { reads: 0, writes: 0, readBytes: 0, writtenBytes: 0 };
  readonly #random: Random;
  #again = true;

  constructor(readonly device: SimulatedDevice, readonly load: Load) {
    this.#random = new Random(load.seed);
    for (let i = 0; i < load.depth; i++) this.#start();
  }

  #start(): void {
    const { requests } = this.device.vbd;
    const slot = requests.takeSlot();
    const count = 1 + this.#random.below(this.load.most);
    const sector = this.#random.below(DISK_SECTORS - count);
    const isRead = this.#random.below(100) < this.load.reads;
    const kind = isRead ? RequestKind.Read : RequestKind.Write;
    this.#sizes[slot] = isRead ? count : -count;
    requests.start(slot, kind, sector, count, false, this);
  }

  readonly #sizes: number[] = [];

  requestDone(slot: number, errno: number): void {
    const size = this.#sizes[slot];
    this.device.vbd.requests.releaseSlot(slot);
    if (errno !== 0) return;
    if (size > 0) {
      this.ended.reads++;
      this.ended.readBytes += size * 512;
    } else {
      this.ended.writes++;
      this.ended.writtenBytes -= size * 512;
    }
    // In a later turn, as a client does.
    if (this.#again) this.device.simulation.scheduler.addTimer(0, () => this.#start());
  }

  /** Starts no more. */
  stop(): void {
    this.#again = false;
  }
}

/** Runs loads for ten seconds; returns what ended in a second. */
function perSecond(some: Partial<RateLimits>, ...loads: Load[]): Client["ended"][] {
  const { simulation, device } = start(some);
  const clients = loads.map((load) => new Client(device, load));
  elapse(simulation, 10_000);
  const rates = clients.map(({ ended }) => {
    const { reads, writes, readBytes, writtenBytes } = ended;
    return {
      reads: reads / 10,
      writes: writes / 10,
      readBytes: readBytes / 10,
      writtenBytes: writtenBytes / 10,
    };
  });
  for (const client of clients) client.stop();
  device.vbd.requests.limit(NO_LIMITS);
  elapse(simulation, 1);
  simulation.runUntil(() => device.vbd.requests.outstanding === 0, "The last requests");
  device.close();
  simulation.close();
  return rates;
}

function assertNear(rate: number, wanted: number, percent: number, what: string): void {
  const off = 100 * Math.abs(rate / wanted - 1);
  assert.ok(off <= percent, `${what}: ${rate} a second instead of ${wanted}`);
}

const mixes: Load[] = [
  { depth: 1, most: 8, reads: 50, seed: 1 },
  { depth: 32, most: 8, reads: 50, seed: 2 },
  { depth: 32, most: 512, reads: 70, seed: 3 },
  { depth: 100, most: 64, reads: 20, seed: 4 },
];
for (const load of mixes) {
  const name = `depth ${load.depth}, up to ${load.most} sectors, ${load.reads} % reads`;
  Deno.test(`limits: each is exact to 2 % over ten seconds (${name})`, () => {
    const [iops] = perSecond({ totalIops: 300 }, load);
    assertNear(iops.reads + iops.writes, 300, 2, "requests");
    const [bps] = perSecond({ totalBps: 20_000_000, burstMs: 50 }, load);
    if (load.depth > 1) assertNear(bps.readBytes + bps.writtenBytes, 2e7, 2, "bytes");
    if (load.depth === 1) return;
    const others = { ...load, depth: 20 };
    const apart = { readIops: 100, writeBps: 5_000_000 };
    const [reader, writer] = perSecond(apart, { ...others, reads: 100 }, { ...others, reads: 0 });
    assertNear(reader.reads, 100, 2, "reads");
    assertNear(writer.writtenBytes, 5_000_000, 2, "written bytes");
  });
}

Deno.test("limits: the lowest of several counts, by direction and in total", () => {
  const load = { depth: 64, most: 8, reads: 50, seed: 5 };
  const [rate] = perSecond({ readIops: 1000, writeIops: 50, totalIops: 200 }, load);
  // Half of the client's requests are writes, and the reads between them wait for their slots.
  assertNear(rate.writes, 50, 2, "writes");
  assert.ok(rate.reads + rate.writes <= 204);
  const [reads] = perSecond({ readIops: 1000, totalIops: 200 }, { ...load, reads: 100 });
  assertNear(reads.reads, 200, 2, "reads");
});

Deno.test("limits: rates beyond a request for each millisecond are exact, too", () => {
  const [rate] = perSecond({ readIops: 20_000 }, { depth: 64, most: 1, reads: 100, seed: 6 });
  assertNear(rate.reads, 20_000, 2, "reads");
});

Deno.test("limits: a request that is longer than the burst passes, and the next ones pay", () => {
  const [rate] = perSecond({ writeBps: 65536, burstMs: 10 }, {
    depth: 4,
    most: 512,
    reads: 0,
    seed: 7,
  });
  assertNear(rate.writtenBytes, 65536, 40, "written bytes");
  const { simulation, device } = start({ writeBps: 65536, burstMs: 10 });
  const outcomes = [0, 1, 2].map(() => device.write(0, stampedSectors(0, 512, 1)));
  const left = (): number => outcomes.filter(({ errno }) => errno === null).length;
  elapse(simulation, 3_980);
  assert.equal(left(), 2);
  elapse(simulation, 20);
  assert.equal(left(), 1);
  elapse(simulation, 4_000);
  assert.equal(left(), 0);
  device.close();
  simulation.close();
});

Deno.test("limits: reads and writes share a total, and clients their direction", () => {
  const one = { depth: 30, most: 8, reads: 100, seed: 8 };
  const [reads, writes] = perSecond({ totalIops: 400 }, one, { ...one, reads: 0, seed: 9 });
  assertNear(reads.reads, 200, 4, "reads");
  assertNear(writes.writes, 200, 4, "writes");
  const [first, second] = perSecond({ readIops: 400 }, one, { ...one, seed: 10 });
  assertNear(first.reads, 200, 4, "reads of the first client");
  assertNear(second.reads, 200, 4, "reads of the second client");
});

Deno.test("limits: a request that comes when another may pass does not overtake it", () => {
  const { simulation, device } = start({ readIops: 10, burstMs: 10 }, { latencyMs: 0 });
  // It comes at the moment at which the second may pass, before the limit's own timer.
  let third: Outcome | null = null;
  simulation.scheduler.addTimer(90, () => third = device.read(16, 8));
  const [first, second] = [device.read(0, 8), device.read(8, 8)];
  elapse(simulation, 95);
  const now = [first, second, third].map((outcome) => outcome?.errno);
  assert.deepEqual(now, [0, 0, null]);
  device.settle();
  device.close();
  simulation.close();
});

Deno.test("limits: reads that come when a write may pass do not overtake it", () => {
  const { simulation, device } = start({ totalIops: 10, burstMs: 10 }, { latencyMs: 0 });
  const { scheduler } = simulation;
  const reads: Outcome[] = [];
  // One comes at each moment at which a request may pass, before the limit's own timer.
  for (let ms = 90; ms < 1000; ms += 100) {
    scheduler.addTimer(ms, () => reads.push(device.read(16, 8)));
  }
  const writes = [0, 8].map((sector) => device.write(sector, stampedSectors(sector, 8, 1)));
  elapse(simulation, 200);
  assert.deepEqual(writes.map(({ errno }) => errno), [0, 0]);
  elapse(simulation, 3_000);
  assert.ok(reads.length === 10 && reads.every(({ errno }) => errno === 0));
  device.close();
  simulation.close();
});

Deno.test("limits: what was not used is there for the time of the burst, and no longer", () => {
  const { simulation, device } = start({ readIops: 100, burstMs: 200 }, { latencyMs: 0 });
  elapse(simulation, 60_000);
  const outcomes = Array.from({ length: 60 }, (_, i) => device.read(i * 8, 8));
  const ended = (): number => outcomes.filter(({ errno }) => errno === 0).length;
  elapse(simulation, 1);
  // 200 ms of 100 a second, and the one that the limit is reached with.
  assert.equal(ended(), 21);
  elapse(simulation, 100);
  assert.equal(ended(), 31);
  device.settle();
  device.close();
  simulation.close();
});

Deno.test("limits: flushes and questions pass, and discards take no bytes", () => {
  const { simulation, device } = start({ totalBps: 1000, writeIops: 1000 });
  const held = [0, 1, 2].map(() => device.write(0, stampedSectors(0, 8, 1)));
  const free = [device.flush(), device.status(0, 100), device.flush()];
  elapse(simulation, 50);
  assert.deepEqual(free.map(({ errno }) => errno), [0, 0, 0]);
  assert.deepEqual(held.map(({ errno }) => errno), [0, null, null]);
  const { waited, limits: shown, reqs_outstanding } = device.vbd.statistics();
  assert.deepEqual([waited.limit.requests, reqs_outstanding], [2, 2]);
  assert.ok(waited.limit.milliseconds >= 98);
  assert.equal(shown?.total_bps, 1000);
  assert.equal(
    device.vbd.report().filter((line) => line.includes("held by a rate limit")).length,
    2,
  );
  device.vbd.requests.limit(limits({ writeBps: 1_000_000 }));
  device.settle();
  assert.deepEqual(held.map(({ errno }) => errno), [0, 0, 0]);
  const discards = [0, 1, 2].map(() => device.discard(0, 20_000));
  elapse(simulation, 10);
  assert.deepEqual(discards.map(({ errno }) => errno), [0, 0, 0]);
  device.close();
  simulation.close();
});

Deno.test("limits: a long zeroing pays step by step, and reads go on beside it", () => {
  const { simulation, device } = start({ writeBps: 10 * MIB }, { image: "vhd:/a.vhd" });
  const began = simulation.scheduler.nowMs();
  const filled = device.fill(0, DISK_SECTORS);
  const read = device.read(0, 8);
  elapse(simulation, 20);
  assert.deepEqual([read.errno, filled.errno], [0, null]);
  device.settle();
  const took = simulation.scheduler.nowMs() - began;
  assert.ok(took > 1200 && took < 1700, `${took} ms`);
  device.close();
  simulation.close();
});

Deno.test("limits: a pause drains at once, and the limits are there after it", () => {
  const { simulation, device } = start({ writeIops: 1 }, { image: "vhd:/a.vhd" });
  const outcomes = [0, 1, 2, 3].map((i) => device.write(i * 8, stampedSectors(i * 8, 8, 1)));
  elapse(simulation, 20);
  const began = simulation.scheduler.nowMs();
  device.pause();
  assert.ok(simulation.scheduler.nowMs() - began < 50);
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, null, null, null]);
  // A change in the pause counts.
  device.vbd.requests.limit(limits({ writeIops: 100, burstMs: 10 }));
  elapse(simulation, 5_000);
  assert.equal(outcomes.filter(({ errno }) => errno === 0).length, 1);
  device.resume();
  const resumed = simulation.scheduler.nowMs();
  device.settle();
  const took = simulation.scheduler.nowMs() - resumed;
  assert.ok(took >= 10 && took < 50, `${took} ms`);
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 0, 0, 0]);
  assert.equal(device.vbd.statistics().limits?.write_iops, 100);
  device.close();
  simulation.close();
});

Deno.test("limits: a close ends what waits, and the next open has no limits", () => {
  const { simulation, device } = start({ readIops: 1 });
  const outcomes = [0, 1, 2].map((i) => device.read(i * 8, 8));
  elapse(simulation, 20);
  const began = simulation.scheduler.nowMs();
  let closed = false;
  device.vbd.close(() => closed = true);
  simulation.runUntil(() => closed, "The close");
  assert.ok(simulation.scheduler.nowMs() - began < 50);
  // ESHUTDOWN
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 108, 108]);
  device.vbd.open("ram:16");
  assert.equal(device.vbd.statistics().limits, null);
  const free = [0, 1, 2].map((i) => device.read(i * 8, 8));
  elapse(simulation, 20);
  assert.deepEqual(free.map(({ errno }) => errno), [0, 0, 0]);
  device.close();
  simulation.close();
});

Deno.test("limits: changes count at once, whatever was used before", () => {
  const { simulation, device } = start({ readBps: 1 });
  const outcomes = [0, 1, 2].map((i) => device.read(i * 8, 8));
  elapse(simulation, 1000);
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, null, null]);
  device.vbd.requests.limit(limits({ readBps: 4096, burstMs: 10 }));
  elapse(simulation, 50);
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 0, null]);
  device.vbd.requests.limit(NO_LIMITS);
  elapse(simulation, 5);
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 0, 0]);
  device.close();
  simulation.close();
});

Deno.test("limits: a disk that a fault ends, and one without room, lose nothing that waits", () => {
  const { simulation, device } = start({ readIops: 100, burstMs: 10 }, { image: "vhd:/a.vhd" });
  const { queue } = simulation.context;
  let room = queue.capacity;
  while (!queue.reserve(room)) room--;
  const outcomes = [0, 1, 2, 3].map((i) => device.read(i * 8, 8));
  elapse(simulation, 1000);
  assert.deepEqual(outcomes.map(({ errno }) => errno), [null, null, null, null]);
  queue.release(room);
  device.settle();
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 0, 0, 0]);
  // Now the room is gone when the time of those that wait has come.
  const held = [0, 1, 2].map((i) => device.read(i * 8, 8));
  elapse(simulation, 12);
  room = queue.capacity;
  while (!queue.reserve(room)) room--;
  elapse(simulation, 1000);
  assert.equal(held.filter(({ errno }) => errno === 0).length, 1);
  queue.release(room);
  device.settle();
  assert.deepEqual(held.map(({ errno }) => errno), [0, 0, 0]);
  simulation.expectsFaults = true;
  const lost = [0, 1, 2, 3].map((i) => device.read(i * 8, 8));
  device.vbd.fault(new Error("A fault of the test"));
  device.settle();
  assert.ok(lost.every(({ errno }) => errno === 0 || errno === 5));
  assert.equal(device.vbd.requests.outstanding, 0);
  device.close();
  simulation.close();
});
