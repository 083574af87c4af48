import assert from "node:assert/strict";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { assertHolds, Simulation, stampedSectors } from "../support/sim.ts";

Deno.test("disks that answer nothing for minutes hold up nobody else, and say so", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 2 });
  const storage = simulation.disk;
  const names = Array.from({ length: 6 }, (_, i) => `/${i}.vhd`);
  for (const name of names) createDynamic(name, { storage, sizeBytes: 64 * 1024 * 1024 });
  const devices = names.map((name) => simulation.open(`vhd:${name}`));
  const [running, ...hanging] = devices;
  for (const [i] of hanging.entries()) simulation.hang(names[i + 1], 240_000);
  const startMs = simulation.scheduler.nowMs();
  // All slots of five devices: more requests than the queue and the backend can hold.
  const stuck = hanging.map((device) =>
    Array.from(
      { length: 128 },
      (_, i) => device.write(i * 512, stampedSectors(i * 512, 512, i + 1)),
    )
  );
  for (let round = 1; round <= 30; round++) {
    const sector = round * 4096;
    const outcome = running.write(sector, stampedSectors(sector, 512, round));
    running.settle();
    assert.equal(outcome.errno, 0);
    assertHolds(running, sector, 512, round);
  }
  const tookMs = simulation.scheduler.nowMs() - startMs;
  assert.ok(tookMs < 1000, `60 requests one by one took ${tookMs} ms`);
  simulation.runUntil(() => simulation.scheduler.nowMs() >= startMs + 120_000, "Two minutes");
  for (const device of hanging) {
    const { unanswered_seconds, reqs_outstanding } = device.vbd.statistics();
    assert.ok(unanswered_seconds >= 119, `${unanswered_seconds} s`);
    assert.equal(reqs_outstanding, 128);
  }
  assert.equal(running.vbd.statistics().unanswered_seconds, 0);
  for (const device of hanging) device.settle();
  for (const outcomes of stuck) assert.ok(outcomes.every(({ errno }) => errno === 0));
  for (const device of hanging) {
    assert.equal(device.vbd.statistics().unanswered_seconds, 0);
    for (const i of [0, 77, 127]) assertHolds(device, i * 512, 512, i + 1);
  }
  for (const device of devices) device.close();
  for (const name of names) assert.deepEqual(checkImage(name, { storage }).findings, []);
  simulation.close();
});
