/**
 * What the log of a device says when requests begin to fail, and when that is over, and what is known
 * meanwhile.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import type { LogFields } from "../../src/log/log.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { Vbd } from "../../src/vbd/vbd.ts";
import { SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const SIZE_BYTES = 16 << 20;

/** A chain of two VHDs, and what the log is told of events. */
function makeDevice(): {
  simulation: Simulation;
  device: SimulatedDevice;
  events: (LogFields & { message: string })[];
} {
  const simulation = new Simulation({ seed: 1, latencyMs: 1 });
  createDynamic("/base.vhd", { storage: simulation.disk, sizeBytes: SIZE_BYTES });
  const base = simulation.open("vhd:/base.vhd");
  base.write(0, stampedSectors(0, 64, 7));
  base.settle();
  base.close();
  snapshot("/leaf.vhd", { storage: simulation.disk, parent: "/base.vhd" });
  const events: (LogFields & { message: string })[] = [];
  const log = (message: string, fields: LogFields = {}): void => {
    simulation.log.push(message);
    if (fields.event !== undefined) events.push({ message, ...fields });
  };
  const vbd = new Vbd({ ...simulation.context, log }, 3);
  vbd.open("vhd:/leaf.vhd");
  return { simulation, device: new SimulatedDevice(simulation, vbd), events };
}

Deno.test("the log says once that requests fail, of which file, and once that they succeed", () => {
  const { simulation, device, events } = makeDevice();
  const endMs = simulation.scheduler.nowMs() + 1500;
  simulation.fault = (kind) =>
    kind === "read" && simulation.scheduler.nowMs() < endMs ? Errno.EAGAIN : 0;
  for (let i = 0; i < 4; i++) device.read(8 * i, 1);
  device.settle();
  assert.deepEqual(
    events.map(({ event, minor, image, file, errno }) => [
      ...[event, minor, image, file, errno],
    ]),
    [
      ["retrying", 3, "vhd:/leaf.vhd", "/base.vhd", Errno.EAGAIN],
      ["recovered", 3, "vhd:/leaf.vhd", "/base.vhd", Errno.EAGAIN],
    ],
  );
  assert.match(
    events[0].message,
    /^Minor 3: requests to vhd:\/leaf.vhd fail \(EAGAIN at \/base.vhd\)/,
  );
  assert.match(events[1].message, /succeed again, after 2\.0 s, in which 8 tries failed/);
  assert.ok((events[1].durationMs ?? 0) >= 2000);
  assert.equal(device.vbd.requests.trouble.facts, null);
  device.close();
  simulation.close();
});

Deno.test("the log says that a filesystem is full, and the facts say since when", () => {
  const { simulation, device, events } = makeDevice();
  let isFull = true;
  simulation.fault = (kind) => kind === "write" && isFull ? Errno.ENOSPC : 0;
  device.write(1024, stampedSectors(1024, 8, 1));
  const untilMs = simulation.scheduler.nowMs() + 3500;
  simulation.scheduler.addTimer(3500, () => {});
  simulation.runUntil(() => simulation.scheduler.nowMs() >= untilMs, "The time");
  const facts = device.vbd.requests.trouble.facts;
  assert.deepEqual([facts?.requests, facts?.errno, facts?.file], [1, Errno.ENOSPC, "/leaf.vhd"]);
  assert.ok(simulation.scheduler.nowMs() - (facts?.sinceMs ?? Infinity) >= 3000);
  isFull = false;
  device.settle();
  assert.deepEqual(events.map(({ event }) => event), ["full", "recovered"]);
  assert.match(events[0].message, /wait, as the filesystem of \/leaf.vhd is full \(ENOSPC\)/);
  device.close();
  simulation.close();
});

Deno.test("the log says when requests end with the error, and that each of them failed", () => {
  const { simulation, device, events } = makeDevice();
  simulation.fault = (kind) => kind === "read" ? Errno.ETIMEDOUT : 0;
  const outcome = device.read(0, 1);
  device.settle();
  assert.equal(outcome.errno, Errno.ETIMEDOUT);
  assert.deepEqual(events.map(({ event }) => event), ["retrying", "given-up"]);
  assert.match(
    events[1].message,
    /^Minor 3: a request to vhd:\/leaf.vhd has ended with an error/,
  );
  const each = simulation.log.filter((line) =>
    line.startsWith("minor 3: a request at sector 0 of")
  );
  assert.equal(each.length, 1);
  simulation.fault = null;
  device.close();
  simulation.close();
});
