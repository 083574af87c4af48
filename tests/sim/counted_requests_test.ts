/**
 * What a disk counts of its requests, on a simulated clock: kinds, errors, and where time goes.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { ClientTimes } from "../../src/vbd/client_times.ts";
import { type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1 << 20;

function start(): { simulation: Simulation; device: SimulatedDevice } {
  const simulation = new Simulation({ seed: 1 });
  createDynamic("/a.vhd", { storage: simulation.disk, sizeBytes: 16 * MIB });
  return { simulation, device: simulation.open("vhd:/a.vhd") };
}

function goTo(simulation: Simulation, timeMs: number): void {
  simulation.scheduler.addTimer(timeMs - simulation.scheduler.nowMs(), () => {});
  simulation.runUntil(() => simulation.scheduler.nowMs() >= timeMs, `The time ${timeMs}`);
}

Deno.test("requests that ended are counted by kind, and errors with them", () => {
  const { simulation, device } = start();
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  device.read(0, 8);
  device.read(0, 8);
  device.flush();
  device.zero(0, 4);
  device.discard(8, 16);
  device.settle();
  const { ended, zeroed_sectors, discarded_sectors, sectors, minor } = device.vbd.statistics();
  assert.deepEqual([ended.read, ended.write, ended.flush], [[2, 0], [1, 0], [1, 0]]);
  assert.deepEqual([ended.zero, ended.discard], [[1, 0], [1, 0]]);
  assert.deepEqual([zeroed_sectors, discarded_sectors], [4, 16]);
  assert.deepEqual([sectors, minor], [16 * MIB / 512, device.vbd.minor]);
  simulation.fault = () => Errno.EINVAL;
  device.read(0, 8);
  device.settle();
  simulation.fault = null;
  assert.deepEqual(device.vbd.statistics().ended.read, [3, 1]);
  device.close();
  simulation.close();
});

Deno.test("the time at the disk is counted, also of requests that are there now", () => {
  const { simulation, device } = start();
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  const { at_disk_ms: before } = device.vbd.statistics();
  simulation.hang("/a.vhd", 500);
  device.read(0, 8);
  device.read(0, 8);
  goTo(simulation, simulation.scheduler.nowMs() + 200);
  assert.equal(device.vbd.statistics().at_disk_ms - before, 400);
  device.settle();
  assert.equal(device.vbd.statistics().at_disk_ms - before, 1000);
  device.close();
  simulation.close();
});

Deno.test("the error that is tried again is known while requests wait", () => {
  const { simulation, device } = start();
  assert.equal(device.vbd.statistics().retried_error, null);
  simulation.fault = () => Errno.ENOSPC;
  device.write(0, stampedSectors(0, 8, 1));
  simulation.runUntil(() => device.vbd.requests.retrying.size === 1, "The first try");
  const { retrying, retried_error } = device.vbd.statistics();
  assert.deepEqual([retrying, retried_error], [1, "ENOSPC"]);
  simulation.fault = null;
  device.settle();
  assert.equal(device.vbd.statistics().retried_error, null);
  device.close();
  simulation.close();
});

Deno.test("places wait for a client before their request and after it, and not meanwhile", () => {
  const clock = Float64Array.of(100);
  const times = new ClientTimes(clock);
  const pass = (ms: number): void => {
    clock[0] += ms;
  };
  times.take(3);
  pass(10);
  assert.deepEqual([times.waiting(), times.totalMs()], [1, 10]);
  times.begin(3);
  pass(1000);
  assert.deepEqual([times.waiting(), times.totalMs()], [0, 10]);
  times.end(3);
  pass(5);
  assert.deepEqual([times.waiting(), times.totalMs()], [1, 15]);
  times.give(3);
  pass(1000);
  assert.deepEqual([times.waiting(), times.totalMs()], [0, 15]);
  // A place that no client has.
  times.begin(4);
  pass(7);
  times.end(4);
  pass(7);
  assert.deepEqual([times.waiting(), times.totalMs()], [0, 15]);
});
