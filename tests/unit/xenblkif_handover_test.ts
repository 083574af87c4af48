/**
 * A process hands the rings of its guests over to another one, which may fail at any step: each request
 * has one answer, and what was written is there.
 *
 * @module
 */
import assert from "node:assert/strict";
import { BlkifProtocol } from "../../ffi/blkif_ring.ts";
import type { HandedRing } from "../../src/frontend/xenblkif/guest.ts";
import { Random } from "../../src/testing/random.ts";
import { SLOTS } from "../../src/vbd/slots.ts";
import { assertHolds } from "../support/sim.ts";
import { withTempDir } from "../support/tools.ts";
import type { GuestOptions } from "../support/xen/played_guest.ts";
import { LOAD_PAGES, RingLoad } from "../support/xen/ring_load.ts";
import { type ServedDisk, XenRig } from "../support/xen/xen_rig.ts";

const DISK_SECTORS = 16384;
const PAGES = LOAD_PAGES;
const HANDOVERS = 4;
const SEEDS = 3;
/** Words of the ring's first page: `rsp_prod`, and the mark. */
const [RSP_PROD, MARK] = [2, 14];

/** Runs turns until each request has its answer. */
function finish(load: RingLoad, rig: XenRig): void {
  for (let turns = 0; load.answered.size < load.sent && turns < 10_000; turns++) {
    rig.simulation.scheduler.turn();
    load.take();
  }
  assert.equal(load.answered.size, load.sent);
}

/** Checks what the disk holds. */
function check(load: RingLoad, { device }: ServedDisk): void {
  for (const { sector, stamp } of load.written) assertHolds(device, sector, 8, stamp);
}

/** Holds the rings of a disk, and runs turns until they are quiet; the guest adds requests meanwhile. */
function standStill(rig: XenRig, { rings }: ServedDisk, load: RingLoad): void {
  rings.hold();
  for (let turns = 0; !rings.areQuiet; turns++) {
    assert.ok(turns < 10_000, "requests do not end");
    rig.simulation.scheduler.turn();
    load.take();
    load.add(1);
  }
}

function handed({ rings }: ServedDisk): HandedRing {
  const [ring, ...others] = rings.handOver();
  assert.equal(others.length, 0);
  return ring;
}

/** A guest with a load whose ring is held and quiet, with requests that nobody has taken. */
function quietGuest(
  folder: string | null,
  options: GuestOptions = {},
): { rig: XenRig; disk: ServedDisk; load: RingLoad } {
  const rig = new XenRig({ latencyMs: 5 });
  rig.journals = folder;
  rig.times = { idle: 100, all: 100 };
  const disk = rig.disk(DISK_SECTORS);
  const load = new RingLoad(rig.guest(disk, { pages: PAGES, ...options }), 1);
  load.add(12);
  rig.simulation.scheduler.turn();
  assert.equal(disk.rings.areQuiet, false, "requests are under way");
  standStill(rig, disk, load);
  load.add(3);
  assert.ok(load.answered.size < load.sent);
  return { rig, disk, load };
}

const KINDS: readonly GuestOptions[] = [
  {},
  { order: 3, protocol: BlkifProtocol.X86_32 },
  { order: 1, pollDurationUs: 1_000_000 },
];

Deno.test("a ring that is handed over again and again: each request has one answer", () =>
  withTempDir((folder) => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const random = new Random(seed);
      let rig = new XenRig({ latencyMs: 5, seed });
      rig.journals = folder;
      rig.times = { idle: 100, all: 100 };
      let disk = rig.disk(DISK_SECTORS);
      const load = new RingLoad(rig.guest(disk, { pages: PAGES, ...KINDS[seed % 3] }), seed);
      for (let i = 0; i < HANDOVERS; i++) {
        for (let turns = random.below(30); turns > 0; turns--) {
          load.add(random.below(6));
          rig.simulation.scheduler.turn();
          load.take();
        }
        standStill(rig, disk, load);
        const ring = handed(disk);
        rig = rig.kill();
        disk = rig.disk(DISK_SECTORS, { exists: true });
        load.add(random.below(4));
        disk.rings.adopt(ring);
        load.add(random.below(4));
        disk.rings.begin();
      }
      finish(load, rig);
      check(load, disk);
      // Its journal is as good as that of the first process.
      load.add(8);
      rig.simulation.scheduler.turn();
      rig = rig.kill();
      disk = rig.disk(DISK_SECTORS, { exists: true });
      disk.rings.connect(load.guest.ring);
      finish(load, rig);
      check(load, disk);
      assert.equal(disk.device.vbd.requests.freeSlots, SLOTS);
      disk.rings.disconnect(load.guest.ring);
      assert.deepEqual([...Deno.readDirSync(folder)], []);
      rig.close();
    }
  }));

Deno.test("a process that takes a ring over changes nothing before it serves, and the other goes on", () =>
  withTempDir((folder) => {
    for (const options of KINDS) {
      const { rig, disk, load } = quietGuest(folder, options);
      const ring = handed(disk);
      const next = rig.neighbour();
      const other = next.disk(DISK_SECTORS);
      const shown = (): Uint8Array => load.guest.memory.arena.bytes.slice(0, 8 * 4096);
      const noted = (): Uint8Array => Deno.readFileSync(`${folder}/1`);
      const before = [shown(), noted()];
      other.rings.adopt(ring);
      assert.equal(other.rings.has(load.guest.ring), true);
      // Also the end in order of a process that does not serve.
      for (let turns = 0; turns < 5; turns++) next.simulation.scheduler.turn();
      assert.deepEqual([...next.metrics.named.keys()].filter((name) => /^vbd/.test(name)), []);
      other.rings.close();
      assert.deepEqual([shown(), noted()], before);
      assert.equal(next.xen.open, 0);
      next.close();
      disk.rings.goOn();
      finish(load, rig);
      check(load, disk);
      rig.close();
    }
  }));

Deno.test("a ring that another process cannot map goes on where it was", () => {
  const { rig, disk, load } = quietGuest(null);
  const next = rig.neighbour();
  const other = next.disk(DISK_SECTORS);
  next.xen.memories.clear();
  assert.throws(() => other.rings.adopt(handed(disk)), /Cannot map/);
  assert.equal(next.xen.open, 0, "the other process has the channel");
  next.close();
  disk.rings.goOn();
  finish(load, rig);
  rig.close();
});

Deno.test("what the guest writes to its ring meanwhile counts for nothing", () =>
  withTempDir((folder) => {
    const { rig, disk, load } = quietGuest(folder);
    const next = rig.neighbour();
    const other = next.disk(DISK_SECTORS);
    const { words } = load.guest;
    const was = words.slice();
    words[RSP_PROD] += 7;
    words[MARK]++;
    other.rings.adopt(handed(disk));
    assert.match(next.log.join("\n"), /No tapdisk can go on with the ring of device 51712/);
    words[RSP_PROD] = was[RSP_PROD];
    load.guest.moveTo(next.xen);
    other.rings.begin();
    finish(load, next);
    other.rings.close();
    next.close();
  }));

Deno.test("a ring that makes no sense is handed over as one", () => {
  const rig = new XenRig();
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk, { pages: PAGES });
  guest.claim(1000);
  guest.notify();
  rig.simulation.scheduler.turn();
  assert.match(rig.log.join("\n"), /its ring makes no sense/);
  disk.rings.hold();
  assert.equal(disk.rings.areQuiet, true);
  const ring = handed(disk);
  assert.equal(ring.isBroken, true);
  // One that was ended by the guest would be none here.
  const next = rig.neighbour();
  const other = next.disk(DISK_SECTORS);
  other.rings.adopt(ring);
  guest.moveTo(next.xen);
  other.rings.begin();
  guest.notify();
  for (let turns = 0; turns < 5; turns++) next.simulation.scheduler.turn();
  assert.equal(guest.waiting, 0);
  assert.equal(other.rings.has(guest.ring), true);
  other.rings.close();
  next.close();
});

Deno.test("a process hands several rings of a disk over", () =>
  withTempDir((folder) => {
    const rig = new XenRig({ latencyMs: 5 });
    rig.journals = folder;
    const disk = rig.disk(DISK_SECTORS);
    const loads = [1, 2, 3].map((seed) => new RingLoad(rig.guest(disk, { pages: PAGES }), seed));
    for (const load of loads) load.add(9);
    rig.simulation.scheduler.turn();
    standStill(rig, disk, loads[0]);
    for (const load of loads) load.take();
    const rings = disk.rings.handOver();
    assert.deepEqual(rings.map(({ guest }) => guest.domain), [1, 2, 3]);
    const next = rig.kill();
    const other = next.disk(DISK_SECTORS, { exists: true });
    for (const ring of rings) other.rings.adopt(ring);
    other.rings.begin();
    for (const load of loads) {
      load.add(5);
      finish(load, next);
    }
    next.close();
  }));
