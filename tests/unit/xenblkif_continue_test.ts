/** A guest's ring goes from one who serves it to another: only when no request can be lost. */
import assert from "node:assert/strict";
import { withTempDir } from "../support/tools.ts";
import { Errno, errnoOf } from "../../ffi/errno.ts";
import { Op, type PlayedGuest } from "../support/xen/played_guest.ts";
import { type ServedDisk, XenRig } from "../support/xen/xen_rig.ts";

const DATA_PAGE = 16;

function write(guest: PlayedGuest, id: bigint, operation: number = Op.Write): void {
  const segments = [[guest.reference(DATA_PAGE), 0, 7]] as const;
  guest.add({ operation, id, sector: Number(id) * 64, segments });
}

function errnoFrom(call: () => void): number {
  try {
    call();
  } catch (error) {
    return errnoOf(error);
  }
  return 0;
}

/** Connects when the disk has no request of the guest any more; the error of that. */
function connectWhenQuiet(rig: XenRig, { rings }: ServedDisk, guest: PlayedGuest): number {
  for (let turns = 0; turns < 10_000; turns++) {
    const errno = errnoFrom(() => rings.connect(guest.ring));
    if (errno !== Errno.EBUSY) return errno;
    rig.simulation.scheduler.turn();
  }
  return Errno.EBUSY;
}

Deno.test("a guest's ring: another disk goes on with it when all requests are answered", () => {
  const rig = new XenRig();
  const disk = rig.disk(16384);
  const guest = rig.guest(disk);
  for (let id = 0n; id < 40n; id++) {
    write(guest, id);
    guest.push();
    guest.notify();
    assert.equal(rig.responses(guest, 1).length, 1);
  }
  disk.rings.disconnect(guest.ring);
  // What the guest adds while nobody serves it waits.
  for (let id = 40n; id < 50n; id++) write(guest, id);
  guest.push();
  disk.rings.connect(guest.ring);
  const responses = rig.responses(guest, 10);
  assert.ok(responses.every(({ status }) => status === 0));
  const ids = responses.map(({ id }) => Number(id)).sort();
  assert.deepEqual(ids, Array.from({ length: 10 }, (_, i) => 40 + i));
  rig.close();
});

Deno.test("a guest's ring: requests that were taken and not answered keep others from it", () => {
  for (const pollDurationUs of [0, 1_000_000]) {
    const rig = new XenRig({ latencyMs: 50 });
    rig.times = { idle: 100, all: 100 };
    const disk = rig.disk(16384);
    const guest = rig.guest(disk, { pollDurationUs });
    // One at first, so that polling begins.
    write(guest, 0n);
    guest.push();
    guest.notify();
    rig.responses(guest, 1);
    write(guest, 1n);
    // Nothing was written there: these need no disk, and are answered before the first.
    const [far, count] = [200n, 4];
    for (let id = far; id < far + BigInt(count); id++) write(guest, id, Op.Read);
    guest.push();
    guest.notify();
    for (let turns = 0; guest.waiting < count && turns < 10_000; turns++) {
      rig.simulation.scheduler.turn();
    }
    assert.equal(guest.waiting, count);
    disk.rings.disconnect(guest.ring);
    assert.equal(connectWhenQuiet(rig, disk, guest), Errno.ESTALE);
    // The guest connects again, with a new ring.
    guest.reset();
    disk.rings.connect(guest.ring);
    write(guest, 1n);
    guest.push();
    guest.notify();
    assert.equal(rig.responses(guest, 1).length, 1);
    rig.close();
  }
});

Deno.test("a guest's ring: requests under way at a disconnect are answered by the next one", () =>
  withTempDir((folder) => {
    const rig = new XenRig({ latencyMs: 50 });
    rig.journals = folder;
    const files = (): number => [...Deno.readDirSync(folder)].length;
    const disk = rig.disk(16384);
    const guest = rig.guest(disk);
    write(guest, 1n);
    for (let id = 200n; id < 204n; id++) write(guest, id, Op.Read);
    guest.push();
    guest.notify();
    for (let turns = 0; guest.waiting < 4 && turns < 10_000; turns++) {
      rig.simulation.scheduler.turn();
    }
    assert.deepEqual(guest.take().map(({ id }) => Number(id)).sort(), [200, 201, 202, 203]);
    disk.rings.disconnect(guest.ring);
    assert.equal(files(), 1);
    // The disk still has the write, which must not end after a later one.
    assert.equal(errnoFrom(() => disk.rings.connect(guest.ring)), Errno.EBUSY);
    connectWhenQuiet(rig, disk, guest);
    assert.deepEqual(rig.responses(guest, 1).map(({ id, status }) => [id, status]), [[1n, 0]]);
    // Nobody waits for anything: there is nothing to go on with.
    disk.rings.disconnect(guest.ring);
    assert.equal(files(), 0);
    rig.close();
  }));
