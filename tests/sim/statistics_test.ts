/**
 * Statistics of requests on a simulated clock, where the expected values can be computed.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1 << 20;

function start({ latencyMs = 0 } = {}): { simulation: Simulation; device: SimulatedDevice } {
  const simulation = new Simulation({ seed: 1, latencyMs });
  createDynamic("/a.vhd", { storage: simulation.disk, sizeBytes: 16 * MIB });
  return { simulation, device: simulation.open("vhd:/a.vhd") };
}

/** Runs the loop until this time. */
function goTo(simulation: Simulation, timeMs: number): void {
  simulation.scheduler.addTimer(timeMs - simulation.scheduler.nowMs(), () => {});
  simulation.runUntil(() => simulation.scheduler.nowMs() >= timeMs, `The time ${timeMs}`);
}

/** Writes, so that the blocks of these sectors are allocated. */
function fill(device: SimulatedDevice, ...sectors: number[]): void {
  for (const sector of sectors) device.write(sector, stampedSectors(sector, 8, 1));
  device.settle();
}

Deno.test("statistics: latencies by kind, as the disk's answers came", () => {
  const { simulation, device } = start();
  fill(device, 0);
  simulation.hang("/a.vhd", 20);
  device.read(0, 8);
  goTo(simulation, simulation.scheduler.nowMs() + 5);
  device.read(0, 8);
  device.settle();
  simulation.hang("/a.vhd", 3_000);
  device.flush();
  device.settle();
  const { read, write, flush } = device.vbd.statistics().latency_us;
  assert.deepEqual([read.requests, write.requests, flush.requests], [2, 1, 1]);
  assert.deepEqual([read.mean, read.highest, read.p50, read.p99], [17_500, 20_000, 16_384, 20_000]);
  assert.deepEqual(read.histogram, [[16_384, 1], [20_480, 1]]);
  assert.deepEqual([flush.mean, flush.highest], [3_000_000, 3_000_000]);
  device.close();
  simulation.close();
});

Deno.test("statistics: queue depth, now, highest and as requests found it", () => {
  const { simulation, device } = start({ latencyMs: 2 });
  fill(device, 0);
  for (let i = 0; i < 4; i++) device.read(0, 8);
  assert.deepEqual(device.vbd.statistics().queue_depth, { now: 4, highest: 4, average: 2.2 });
  device.settle();
  device.read(0, 8);
  device.settle();
  assert.deepEqual(device.vbd.statistics().queue_depth, { now: 0, highest: 4, average: 2 });
  device.close();
  simulation.close();
});

Deno.test("statistics: time in slots before the disk, by what requests waited for", () => {
  const { simulation, device } = start();
  fill(device, 0, 8);
  const { scheduler } = simulation;
  simulation.fault = () => Errno.EIO;
  const failing = device.write(0, stampedSectors(0, 8, 2));
  goTo(simulation, scheduler.nowMs() + 500);
  const { waited } = device.vbd.statistics();
  assert.deepEqual(waited.retry, { requests: 1, milliseconds: 500 });
  simulation.fault = null;
  device.settle();
  assert.equal(failing.errno, 0);
  assert.deepEqual(device.vbd.statistics().waited.retry, { requests: 1, milliseconds: 1000 });

  device.pause();
  const held = device.read(0, 8);
  goTo(simulation, scheduler.nowMs() + 700);
  assert.equal(device.vbd.statistics().waited.pause.milliseconds, 700);
  device.resume();
  device.settle();
  assert.equal(held.errno, 0);
  assert.deepEqual(device.vbd.statistics().waited.pause, { requests: 1, milliseconds: 700 });
  const { read } = device.vbd.statistics().latency_us;
  assert.equal(read.highest, 700_000);

  // The queue has no room: the request waits for room, then for the end of the pause.
  const { queue } = simulation.context;
  let room = queue.capacity;
  while (!queue.reserve(room)) room--;
  const waiting = device.read(0, 8);
  goTo(simulation, scheduler.nowMs() + 30);
  device.pause();
  goTo(simulation, scheduler.nowMs() + 40);
  device.resume();
  queue.release(room);
  device.settle();
  assert.equal(waiting.errno, 0);
  const { room: forRoom, pause } = device.vbd.statistics().waited;
  assert.deepEqual([forRoom.milliseconds, pause.milliseconds], [30, 740]);
  device.close();
  simulation.close();
});

Deno.test("statistics: merges, and bytes by the layer that has them", () => {
  const { simulation, device } = start({ latencyMs: 2 });
  const storage = simulation.disk;
  // The block is allocated and its bitmap is cached, so later requests go to the disk at once.
  fill(device, 0);
  device.write(0, stampedSectors(0, 64, 1));
  device.settle();
  assert.equal(device.vbd.statistics().merges, 0);
  for (let i = 0; i < 4; i++) device.read(i * 8, 8);
  device.settle();
  assert.equal(device.vbd.statistics().merges, 3);
  const [{ read_bytes, written_bytes }] = device.vbd.statistics().images;
  assert.deepEqual([read_bytes, written_bytes], [32 * 512, (8 + 64) * 512]);

  device.pause();
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  device.resume("vhd:/b.vhd");
  assert.equal(device.vbd.statistics().merges, 3);
  fill(device, 16);
  const outcome = device.read(0, 64);
  device.read(8192, 100);
  device.settle();
  assert.equal(outcome.errno, 0);
  const images = device.vbd.statistics().images.map((image) => [
    image.name,
    image.read_bytes,
    image.written_bytes,
  ]);
  assert.deepEqual(images, [["/b.vhd", 8 * 512, 8 * 512], ["/a.vhd", 56 * 512, 0]]);
  device.close();
  simulation.close();
});

Deno.test("a report has a line on every request, the oldest first", () => {
  const { simulation, device } = start();
  const { scheduler } = simulation;
  fill(device, 0);
  const before = scheduler.nowMs();
  simulation.fault = () => Errno.ENOSPC;
  device.write(0, stampedSectors(0, 8, 2));
  goTo(simulation, before + 400);
  simulation.hang("/a.vhd", 60_000);
  device.read(0, 16);
  goTo(simulation, before + 900);
  let ended = false;
  device.vbd.pause(() => ended = true);
  device.flush();
  goTo(simulation, before + 1_500);
  assert.equal(ended, false);
  const lines = device.vbd.requests.report().map((line) => line.replace(/^slot \d+: /, ""));
  assert.deepEqual(lines, [
    "write, sector 0, 8 sectors, held by a pause for 0.500 s, age 1.500 s, failed 1 times, " +
    "last error ENOSPC",
    "read, sector 0, 16 sectors, at the disk for 1.100 s, age 1.100 s, failed 0 times, no error",
    "flush, sector 0, 0 sectors, held by a pause for 0.600 s, age 0.600 s, failed 0 times, no error",
  ]);
  simulation.fault = null;
  simulation.runUntil(() => ended, "The pause");
  device.resume();
  device.settle();
  assert.deepEqual(device.vbd.requests.report(), []);
  device.close();
  simulation.close();
});
