/**
 * Rings of guests: what a guest that never stops does to others, and what a guest is told when its disk
 * is closed, or fails.
 *
 * @module
 */
import assert from "node:assert/strict";
import { SLOTS } from "../../src/vbd/slots.ts";
import type { SlotClaim } from "../../src/vbd/slot_shares.ts";
import { withTempDir } from "../support/tools.ts";
import { assertHolds, stampedSectors } from "../support/sim.ts";
import { Op, type PlayedGuest, type Segment } from "../support/xen/played_guest.ts";
import { XenRig } from "../support/xen/xen_rig.ts";

const DISK_SECTORS = 16384;
const DATA_PAGE = 16;
/** A request that no backend knows, so that it has its answer at once. */
const UNKNOWN = 77;

function write(guest: PlayedGuest, number: number): void {
  const page = DATA_PAGE + number;
  guest.sectors(page, 0, 7).set(stampedSectors(8 * number, 8, number + 1));
  const segments: Segment[] = [[guest.reference(page), 0, 7]];
  guest.add({ operation: Op.Write, id: BigInt(number), sector: 8 * number, segments });
}

Deno.test("a guest that adds requests without a pause does not keep the loop from others", () => {
  const rig = new XenRig();
  rig.times = { idle: 100, all: 100 };
  const hostile = rig.guest(rig.disk(DISK_SECTORS), { pollDurationUs: 1_000_000 });
  const disk = rig.disk(DISK_SECTORS);
  const other = rig.guest(disk);
  let added = 0;
  let turn = 0;
  let most = 0;
  const addOne = (): void => {
    const { turns } = rig.simulation.scheduler;
    if (turn !== turns[0]) added = 0;
    turn = turns[0];
    most = Math.max(most, ++added);
    if (added > 1000) throw new Error("The guest has the loop for itself");
    hostile.take();
    hostile.add({ operation: UNKNOWN, id: 1n });
    hostile.push();
  };
  // It answers each notification at once, as another processor can.
  rig.xen.events.notify = (fd): void => {
    if (fd === rig.xen.channels.get(`${hostile.ring.domain}:${hostile.ring.port}`)?.fd) addOne();
  };
  addOne();
  for (let i = 0; i < 10; i++) rig.simulation.scheduler.turn();
  write(other, 3);
  other.push();
  assert.deepEqual(rig.responses(other, 1).map(({ status }) => status), [0]);
  for (let i = 0; i < 100; i++) rig.simulation.scheduler.turn();
  assert.deepEqual(
    [...rig.log, ...rig.simulation.log].filter((line) => line.includes("fault")),
    [],
  );
  assert.ok(most < 10, `${most} requests in a turn`);
  assertHolds(disk.device, 24, 8, 4);
  rig.close();
});

Deno.test("a disk that is closed: a guest's requests that it did not carry out have no answer", () =>
  withTempDir((folder) => {
    for (const isPaused of [false, true]) {
      const rig = new XenRig({ latencyMs: 20 });
      rig.journals = folder;
      const disk = rig.disk(DISK_SECTORS);
      // More than there are slots, so that some have not started.
      const guest = rig.guest(disk, { order: 3 });
      const { vbd } = disk.device;
      if (isPaused) vbd.pause(() => {});
      while (rig.simulation.scheduler.turn());
      for (let number = 0; number < SLOTS + 50; number++) write(guest, number);
      guest.push();
      for (let i = 0; i < 3; i++) rig.simulation.scheduler.turn();
      // As `tap-ctl close` does it.
      let isClosed = false;
      disk.rings.hold();
      vbd.close(() => isClosed = true);
      while (rig.simulation.scheduler.turn());
      assert.ok(isClosed);
      const answers = guest.take();
      assert.deepEqual(answers.filter(({ status }) => status !== 0), []);
      assert.ok(answers.length < SLOTS + 50);
      disk.rings.close();
      assert.equal(vbd.requests.freeSlots, SLOTS);
      // Another disk, such as another tapdisk's: it carries out the others.
      const next = rig.disk(DISK_SECTORS);
      next.rings.connect(guest.ring);
      while (rig.simulation.scheduler.turn());
      const others = guest.take();
      assert.deepEqual(others.filter(({ status }) => status !== 0), []);
      const ids = [...answers, ...others].map(({ id }) => Number(id)).sort((a, b) => a - b);
      assert.deepEqual(ids, Array.from({ length: SLOTS + 50 }, (_, id) => id));
      for (const { id } of others) assertHolds(next.device, 8 * Number(id), 8, Number(id) + 1);
      next.rings.disconnect(guest.ring);
      // The disk before has nothing of it under way.
      disk.rings.connect(guest.ring);
      rig.close();
    }
    assert.deepEqual([...Deno.readDirSync(folder)], []);
  }));

Deno.test("a disk that failed: a guest's requests end with an error, and take no memory of it", () => {
  const rig = new XenRig({ latencyMs: 20 });
  rig.simulation.expectsFaults = true;
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk);
  for (let number = 0; number < 8; number++) write(guest, number);
  guest.push();
  rig.simulation.scheduler.turn();
  disk.device.vbd.fault(new Error("a fault of the test"));
  for (let number = 8; number < 16; number++) write(guest, number);
  guest.push();
  guest.notify();
  const { copies } = rig.xen;
  assert.ok(rig.responses(guest, 16).every(({ status }) => status === -1));
  assert.equal(rig.xen.copies, copies);
  while (rig.simulation.scheduler.turn());
  assert.equal(disk.device.vbd.requests.freeSlots, SLOTS);
  let error: unknown = "never called";
  disk.device.vbd.resume(null, (resumed) => error = resumed);
  while (error !== null && rig.simulation.scheduler.turn());
  write(guest, 20);
  guest.push();
  assert.deepEqual(rig.responses(guest, 1).map(({ status }) => status), [0]);
  rig.close();
});

Deno.test("a guest with deep requests leaves slots for other clients of its disk", () => {
  const rig = new XenRig({ latencyMs: 20 });
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk, { order: 3 });
  const table = 300;
  const segments = Array.from(
    { length: 256 },
    (_, i): Segment => [guest.reference(DATA_PAGE + i), 0, 7],
  );
  const indirect = { operation: Op.Write, page: table };
  const fillRing = (): void => {
    guest.take();
    while (guest.hasRoom) guest.add({ operation: Op.Indirect, id: 1n, segments, indirect });
    guest.push();
  };
  const { requests } = disk.device.vbd;
  const waiting: SlotClaim[] = [];
  let given = 0;
  // Clients like those of NBD: each needs a slot now and then.
  const claims = Array.from({ length: 4 }, (): SlotClaim => {
    const claim: SlotClaim = requests.shares.open({
      slotsFree(): void {
        waiting.splice(waiting.indexOf(claim), 1);
        take(claim);
      },
      giveUpSlots(): void {},
    });
    return claim;
  });
  const take = (claim: SlotClaim): void => {
    if (claim.mayTake(1) === 0) {
      waiting.push(claim);
      return claim.wait();
    }
    given++;
    claim.give(claim.take());
  };
  for (let round = 0; round < 400; round++) {
    fillRing();
    rig.simulation.scheduler.turn();
    for (const claim of claims) if (!waiting.includes(claim)) take(claim);
  }
  assert.ok(given >= 1000, `${given} slots for the others`);
  assert.ok(guest.taken > 100, `${guest.taken} requests of the guest`);
  for (const claim of claims) claim.end();
  rig.close();
});
