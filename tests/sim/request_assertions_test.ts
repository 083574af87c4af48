/**
 * Assertions against silent corruption. A failed assertion ends only the disk, or the process when
 * the state that all disks share is in doubt.
 */
import assert from "node:assert/strict";
import { AssertionError, SharedStateError } from "../../ffi/assert.ts";
import { Errno } from "../../ffi/errno.ts";
import { driverOfType } from "../../src/driver/registry.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { DiskRoom } from "../../src/vbd/disk_room.ts";
import { DrainGate } from "../../src/vbd/drain_gate.ts";
import { SlotQueue } from "../../src/vbd/slot_queue.ts";
import { RequestKind, type RequestOwner, SLOTS, SlotTable } from "../../src/vbd/slots.ts";
import type { Vbd } from "../../src/vbd/vbd.ts";
import { assertHolds, Simulation, stampedSectors } from "../support/sim.ts";

const owner: RequestOwner = { requestDone: () => {} };

Deno.test("a slot is given back once, by whoever took it, after its request", () => {
  const slots = new SlotTable();
  const slot = slots.take();
  const describe = (at: number): void => slots.describe(at, RequestKind.Read, 0, 1, false, owner);
  describe(slot);
  slots.open(slot);
  assert.throws(() => slots.give(slot), AssertionError, "its request has not ended");
  assert.throws(() => describe(slot), AssertionError, "a second request");
  assert.throws(() => slots.open(slot), AssertionError);
  slots.close(slot);
  assert.throws(() => slots.close(slot), AssertionError, "it has ended");
  slots.give(slot);
  assert.throws(() => slots.give(slot), AssertionError, "given twice");
  assert.throws(() => slots.give(slot + 1), AssertionError, "never taken");
  for (const none of [-1, SLOTS]) assert.throws(() => slots.give(none), AssertionError);
  assert.throws(() => describe(slot), AssertionError, "a request in a free slot");
  assert.equal(slots.freeCount, SLOTS);
  // All slots are there, each once.
  const taken = new Set(Array.from({ length: SLOTS }, () => slots.take()));
  assert.deepEqual([taken.size, slots.take()], [SLOTS, -1]);
  for (const each of taken) slots.give(each);
  slots.destroy();
});

Deno.test("an empty queue is not shifted, a full one takes no more", () => {
  const queue = new SlotQueue();
  assert.throws(() => queue.shift(), AssertionError);
  for (let slot = 0; slot < SLOTS; slot++) queue.push(slot);
  assert.throws(() => queue.push(0), AssertionError);
  assert.throws(() => queue.unshift(0), AssertionError);
  for (let slot = 0; slot < SLOTS; slot++) assert.equal(queue.shift(), slot);
  assert.throws(() => queue.shift(), AssertionError);
  assert.equal(queue.size, 0);
});

Deno.test("room of the disk queue is reserved once, and no more comes back than was reserved", () => {
  const simulation = new Simulation({ seed: 1 });
  const { queue } = simulation.context;
  const room = new DiskRoom(queue);
  assert.ok(room.take(0, 3));
  assert.throws(() => room.take(0, 3), AssertionError);
  room.give(0);
  room.give(0);
  assert.throws(() => queue.release(1), SharedStateError, "room that nobody reserved");
  simulation.close();
});

Deno.test("a request leaves the image once", () => {
  const gate = new DrainGate();
  gate.enter();
  gate.leave();
  assert.throws(() => gate.leave(), AssertionError);
  assert.throws(() => gate.image, AssertionError, "there is no image");
});

/** Wrong completions by a driver of a request of 8 sectors in slot 0. */
const MISCOUNTS: Readonly<Record<string, (vbd: Vbd) => void>> = {
  "more sectors than the step has": ({ requests }) => requests.pieceDone(0, 9, 0),
  "a piece without sectors": ({ requests }) => requests.pieceDone(0, 0, 0),
  "a negative piece": ({ requests }) => requests.pieceDone(0, -1, 0),
  "the end of a status request that nobody made": ({ requests }) => requests.statusDone(0, 0),
  "an extent out of range": ({ requests }) => void requests.extent(0, 9, true),
  "an extent that nobody asked for": ({ requests }) => void requests.extent(0, 8, true),
  "a piece of a slot without a request": ({ requests }) => requests.pieceDone(100, 1, 0),
};

for (const [what, miscount] of Object.entries(MISCOUNTS)) {
  Deno.test(`a driver that tells ${what} fails its disk, and no other`, () => {
    // The contract filter is off: the device itself must notice.
    const simulation = new Simulation({ seed: 1, latencyMs: 10, driverOf: driverOfType });
    simulation.expectsFaults = true;
    const names = ["/bad.vhd", "/good.vhd"];
    const storage = simulation.disk;
    for (const name of names) createDynamic(name, { storage, sizeBytes: 4 << 20 });
    const [bad, good] = names.map((name) => simulation.open(`vhd:${name}`));
    const lost = bad.write(0, stampedSectors(0, 8, 1));
    const kept = good.write(0, stampedSectors(0, 8, 2));
    // Runs in a handler of the driver: faults in such handlers belong to the device.
    simulation.scheduler.addTimer(0, () => miscount(bad.vbd), bad.vbd);
    bad.settle();
    good.settle();
    assert.deepEqual([lost.errno, kept.errno], [Errno.EIO, 0]);
    assert.deepEqual([bad.vbd.phase, good.vbd.phase], ["failed", "open"]);
    assert.ok(simulation.log.some((line) => line.includes("AssertionError")), "the log says why");
    assertHolds(good, 0, 8, 2);
    // The room of its requests is released, and its image can be opened again.
    let isOpen = false;
    const resume = (): void =>
      bad.vbd.resume(null, (error) => {
        isOpen = error === null;
        if (!isOpen) simulation.scheduler.addTimer(50, resume);
      });
    resume();
    simulation.runUntil(() => isOpen, "Resuming");
    bad.write(0, stampedSectors(0, 8, 3));
    bad.settle();
    assertHolds(bad, 0, 8, 3);
    for (const device of [bad, good]) device.close();
    for (const name of names) assert.deepEqual(checkImage(name, { storage }).findings, []);
    simulation.close();
  });
}
