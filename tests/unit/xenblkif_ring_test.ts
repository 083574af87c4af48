/**
 * Rings of guests on simulated disks: what is checked before a request is started, where its data comes
 * from, and which responses it gets. The test is the guest, and writes to the ring after io/blkif.h.
 *
 * @module
 */
import assert from "node:assert/strict";
import { BlkifProtocol } from "../../ffi/blkif_ring.ts";
import { parseProcessorTimes } from "../../src/frontend/xenblkif/polling.ts";
import { SLOTS } from "../../src/vbd/slots.ts";
import { assertHolds, stampedSectors } from "../support/sim.ts";
import {
  type GuestRequest,
  Op,
  type PlayedGuest,
  type Segment,
} from "../support/xen/played_guest.ts";
import { Access } from "../support/xen/played_xen.ts";
import { XenRig } from "../support/xen/xen_rig.ts";

const DISK_SECTORS = 16384;
const OKAY = 0;
const ERROR = -1;
const NOT_SUPPORTED = -2;
/** The first page that is not of the ring, whatever its order. */
const DATA_PAGE = 8;
/** Of the requests that make no sense: the first that does only because of its grants. */
const FIRST_WITH_BAD_GRANTS = 13;

function statusOf(rig: XenRig, guest: PlayedGuest, request: GuestRequest): number {
  guest.add(request);
  guest.push();
  const responses = rig.responses(guest, 1);
  assert.deepEqual(responses.map(({ id }) => id), [request.id]);
  const { operation } = request.indirect ?? request;
  assert.equal(responses[0].operation, operation);
  return responses[0].status;
}

/** Segments of many shapes in pages of their own. */
function shapes(guest: PlayedGuest, count: number): Segment[] {
  const forms = [[0, 7], [0, 3], [2, 7], [5, 5], [0, 7], [7, 7]] as const;
  return Array.from({ length: count }, (_, i) => {
    const [first, last] = forms[i % forms.length];
    return [guest.reference(DATA_PAGE + i), first, last];
  });
}

/** The bytes of the sectors that segments name, one after the other. */
function gathered(guest: PlayedGuest, segments: readonly Segment[]): Uint8Array[] {
  return segments.map(([reference, first, last]) => guest.sectors(reference - 8, first, last));
}

function fill(guest: PlayedGuest, segments: readonly Segment[], data: Uint8Array): void {
  let at = 0;
  for (const part of gathered(guest, segments)) {
    part.set(data.subarray(at, at + part.length));
    at += part.length;
  }
}

function sectorsOf(segments: readonly Segment[]): number {
  return segments.reduce((sum, [, first, last]) => sum + last - first + 1, 0);
}

const LAYOUTS = [0, 1, 2, 3].flatMap((order) =>
  [BlkifProtocol.Native, BlkifProtocol.X86_32, BlkifProtocol.X86_64].map((protocol) =>
    [order, protocol] as const
  )
);

Deno.test("a guest's ring: data is written from its pages and read into them, in each layout", () => {
  for (const [order, protocol] of LAYOUTS) {
    const rig = new XenRig();
    const disk = rig.disk(DISK_SECTORS);
    const guest = rig.guest(disk, { order, protocol });
    // More requests than there are entries, so that the ring goes round.
    for (let turn = 0; turn < guest.entries + 3; turn++) {
      const segments = shapes(guest, 1 + turn % 11);
      const count = sectorsOf(segments);
      const sector = turn * 40;
      fill(guest, segments, stampedSectors(sector, count, turn + 1));
      const id = 2n ** 63n + BigInt(turn);
      const write = { operation: Op.Write, id, sector, segments };
      assert.equal(statusOf(rig, guest, write), OKAY);
      guest.memory.arena.bytes.fill(0xee, DATA_PAGE * 4096, (DATA_PAGE + 11) * 4096);
      assert.equal(statusOf(rig, guest, { ...write, operation: Op.Read }), OKAY);
      const expected = stampedSectors(sector, count, turn + 1);
      assert.deepEqual(Uint8Array.from(gathered(guest, segments).flatMap((p) => [...p])), expected);
      // Beside the segments nothing was written.
      assert.ok(guest.sectors(DATA_PAGE + 1, 4, 7).every((byte) => byte === 0xee));
      assertHolds(disk.device, sector, count, turn + 1);
    }
    rig.close();
  }
});

Deno.test("a guest's ring: an indirect request moves 1 MiB, or odd pieces", () => {
  for (const protocol of [BlkifProtocol.X86_32, BlkifProtocol.X86_64]) {
    const rig = new XenRig();
    const disk = rig.disk(DISK_SECTORS);
    const guest = rig.guest(disk, { protocol });
    const whole = Array.from(
      { length: 256 },
      (_, i): Segment => [guest.reference(DATA_PAGE + i), 0, 7],
    );
    for (const segments of [whole, shapes(guest, 256), shapes(guest, 1)]) {
      const count = sectorsOf(segments);
      fill(guest, segments, stampedSectors(100, count, count));
      const indirect = { operation: Op.Write, page: 400 };
      const request = { operation: Op.Indirect, id: 7n, sector: 100, segments, indirect };
      assert.equal(statusOf(rig, guest, request), OKAY);
      assertHolds(disk.device, 100, count, count);
      guest.memory.arena.bytes.fill(0, DATA_PAGE * 4096, 264 * 4096);
      const reading = { ...request, indirect: { operation: Op.Read, page: 401 } };
      assert.equal(statusOf(rig, guest, reading), OKAY);
      const got = Uint8Array.from(gathered(guest, segments).flatMap((part) => [...part]));
      assert.deepEqual(got, stampedSectors(100, count, count));
    }
    assert.equal(disk.device.vbd.requests.freeSlots, SLOTS);
    rig.close();
  }
});

Deno.test("a guest's ring: flushes, discards and barriers", () => {
  const rig = new XenRig();
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk);
  const segments = shapes(guest, 3);
  const count = sectorsOf(segments);
  fill(guest, segments, stampedSectors(0, count, 9));
  for (const operation of [Op.Barrier, Op.Flush]) {
    assert.equal(statusOf(rig, guest, { operation, id: 1n }), OKAY);
    assert.equal(statusOf(rig, guest, { operation, id: 1n, sector: 0, segments }), OKAY);
    assertHolds(disk.device, 0, count, 9);
  }
  assert.equal(statusOf(rig, guest, { operation: Op.Discard, id: 1n, sectors: count }), OKAY);
  assertHolds(disk.device, 0, count, 0);
  rig.close();
});

Deno.test("a guest's ring: a barrier waits for all before it, and all behind it wait for it", () => {
  const rig = new XenRig({ latencyMs: 50 });
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk);
  const segment: Segment = [guest.reference(DATA_PAGE), 0, 7];
  for (let round = 0; round < 20; round++) {
    const put = (id: bigint, operation: number): void =>
      guest.add({ operation, id, sector: Number(id) * 8, segments: [segment] });
    for (let id = 0n; id < 10n; id++) put(id, id % 3n === 0n ? Op.Read : Op.Write);
    put(10n, Op.Barrier);
    for (let id = 11n; id < 16n; id++) put(id, Op.Write);
    guest.add({ operation: Op.Barrier, id: 16n });
    put(17n, Op.Read);
    guest.push();
    const ids = rig.responses(guest, 18).map(({ id, status }) => {
      assert.equal(status, OKAY);
      return Number(id);
    });
    assert.equal(ids.length, 18);
    assert.ok(ids.slice(0, 10).every((id) => id < 10), `${ids}`);
    assert.equal(ids[10], 10);
    assert.ok(ids.slice(11, 16).every((id) => id > 10 && id < 16), `${ids}`);
    assert.deepEqual(ids.slice(16), [16, 17]);
  }
  rig.close();
});

Deno.test("a guest's ring: requests that make no sense fail, and nothing is touched", () => {
  const rig = new XenRig();
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk);
  const page = guest.reference(DATA_PAGE);
  const whole: Segment = [page, 0, 7];
  const { Read, Write, Indirect } = Op;
  guest.memory.access[DATA_PAGE + 1] = Access.None;
  guest.memory.access[DATA_PAGE + 2] = Access.Read;
  const id = 0xffff_ffff_ffff_ffffn;
  const table = { operation: Write, page: 20 };
  const wrong: GuestRequest[] = [
    { operation: Read, id, segments: [] },
    { operation: Read, id, segments: [[page, 0, 8]] },
    { operation: Read, id, segments: [[page, 3, 255]] },
    { operation: Read, id, segments: [[page, 4, 3]] },
    { operation: Read, id, segments: [whole], count: 12 },
    { operation: Read, id, segments: [whole], count: 255 },
    { operation: Op.Barrier, id, segments: [whole], count: 12 },
    { operation: Write, id, sector: DISK_SECTORS - 4, segments: [whole] },
    { operation: Write, id, sector: DISK_SECTORS, segments: [[page, 0, 0]] },
    { operation: Write, id, sector: 2n ** 52n, segments: [whole] },
    { operation: Write, id, sector: 2n ** 64n - 1n, segments: [whole] },
    { operation: Op.Discard, id, sector: DISK_SECTORS - 4, sectors: 8 },
    { operation: Op.Discard, id, sector: 8, sectors: 2n ** 64n - 8n },
    // Grants that do not exist, or do not allow it.
    { operation: Write, id, segments: [whole, [0, 0, 7]] },
    { operation: Write, id, segments: [[0xffff_ffff, 0, 7]] },
    { operation: Write, id, segments: [[page + 1, 0, 7]] },
    { operation: Read, id, segments: [[page + 2, 0, 7]] },
    { operation: Indirect, id, segments: [], indirect: table },
    { operation: Indirect, id, segments: [whole], count: 257, indirect: table },
    { operation: Indirect, id, segments: [whole], count: 65535, indirect: table },
    { operation: Indirect, id, segments: [whole, [page, 0, 8]], indirect: table },
    { operation: Indirect, id, segments: [whole, [0, 0, 7]], indirect: table },
    { operation: Indirect, id, sector: DISK_SECTORS - 7, segments: [whole], indirect: table },
    {
      operation: Indirect,
      id,
      segments: [whole],
      indirect: { operation: Write, page: DATA_PAGE + 1 },
    },
  ];
  for (const [i, request] of wrong.entries()) {
    const { copies } = rig.xen;
    assert.equal(statusOf(rig, guest, request), ERROR, `request ${i}`);
    // It is refused before the hypervisor has to.
    if (i < FIRST_WITH_BAD_GRANTS) assert.equal(rig.xen.copies, copies, `request ${i}`);
  }
  for (const operation of [4, 7, 255]) {
    assert.equal(statusOf(rig, guest, { operation, id }), NOT_SUPPORTED);
  }
  for (const operation of [Op.Flush, Op.Discard, Indirect, 9]) {
    const request = {
      operation: Indirect,
      id,
      segments: [whole],
      indirect: { operation, page: 20 },
    };
    assert.equal(statusOf(rig, guest, request), NOT_SUPPORTED);
  }
  assert.ok(guest.sectors(DATA_PAGE + 2, 0, 7).every((byte) => byte === 0));
  assertHolds(disk.device, 0, 64, 0);
  assertHolds(disk.device, DISK_SECTORS - 8, 8, 0);
  // The ring goes on.
  assert.equal(statusOf(rig, guest, { operation: Write, id, segments: [whole] }), OKAY);
  assert.equal(disk.device.vbd.requests.freeSlots, SLOTS);
  rig.close();
});

Deno.test("a read-only disk: a guest's writes fail", () => {
  const rig = new XenRig();
  const guest = rig.guest(rig.disk(DISK_SECTORS, { readOnly: true }));
  const segments = shapes(guest, 1);
  assert.equal(statusOf(rig, guest, { operation: Op.Write, id: 1n, segments }), ERROR);
  assert.equal(statusOf(rig, guest, { operation: Op.Discard, id: 1n, sectors: 8 }), ERROR);
  assert.equal(statusOf(rig, guest, { operation: Op.Read, id: 1n, segments }), OKAY);
  rig.close();
});

Deno.test("a guest that must not write cannot, on a disk that another one writes", () => {
  const rig = new XenRig();
  const disk = rig.disk(DISK_SECTORS);
  const writer = rig.guest(disk);
  const reader = rig.guest(disk, { isReadOnly: true });
  const segments = shapes(writer, 3);
  const count = sectorsOf(segments);
  fill(writer, segments, stampedSectors(0, count, 9));
  assert.equal(statusOf(rig, writer, { operation: Op.Write, id: 1n, segments }), OKAY);
  fill(reader, segments, stampedSectors(0, count, 10));
  for (const operation of [Op.Write, Op.Barrier, Op.Flush]) {
    assert.equal(statusOf(rig, reader, { operation, id: 1n, segments }), ERROR);
  }
  const indirect = { operation: Op.Write, page: 400 };
  const whole = { operation: Op.Indirect, id: 7n, segments, indirect };
  assert.equal(statusOf(rig, reader, whole), ERROR);
  assert.equal(statusOf(rig, reader, { operation: Op.Discard, id: 1n, sectors: 8 }), ERROR);
  assertHolds(disk.device, 0, count, 9);
  assert.equal(statusOf(rig, reader, { operation: Op.Flush, id: 1n }), OKAY);
  assert.equal(statusOf(rig, reader, { operation: Op.Read, id: 1n, segments }), OKAY);
  const got = Uint8Array.from(gathered(reader, segments).flatMap((part) => [...part]));
  assert.deepEqual(got, stampedSectors(0, count, 9));
  rig.close();
});

Deno.test("a guest whose producer index jumps loses its ring; other rings do not notice", () => {
  for (const jump of [33, 1000, -1, 2 ** 31]) {
    const rig = new XenRig();
    const disk = rig.disk(DISK_SECTORS);
    const [hostile, other] = [rig.guest(disk), rig.guest(disk)];
    const segments = shapes(hostile, 2);
    hostile.add({ operation: Op.Write, id: 1n, segments });
    hostile.claim(jump);
    hostile.notify();
    assert.deepEqual(rig.responses(hostile, 1), []);
    const lost = /takes no more requests of device 51712 of domain 1/;
    assert.match(rig.log.join("\n"), lost);
    // Nothing that happens to the disk makes it read the ring again.
    disk.rings.hold();
    disk.rings.goOn();
    assert.equal(rig.log.filter((line) => lost.test(line)).length, 1);
    assert.equal(statusOf(rig, other, { operation: Op.Write, id: 1n, segments }), OKAY);
    // It can be connected again.
    disk.rings.disconnect(hostile.ring);
    hostile.reset();
    disk.rings.connect(hostile.ring);
    assert.equal(statusOf(rig, hostile, { operation: Op.Write, id: 1n, segments }), OKAY);
    rig.close();
  }
});

Deno.test("a ring that is left is not touched any more, and its requests end", () => {
  const rig = new XenRig({ latencyMs: 20 });
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk);
  const segments = shapes(guest, 6);
  for (let id = 0n; id < 31n; id++) {
    const operation = [Op.Read, Op.Write, Op.Barrier, Op.Discard][Number(id) % 4];
    guest.add({ operation, id, sector: Number(id) * 64, segments, sectors: 8 });
  }
  guest.push();
  rig.simulation.scheduler.turn();
  const before = guest.memory.arena.bytes.slice();
  disk.rings.disconnect(guest.ring);
  assert.equal(rig.xen.open, 0);
  for (let i = 0; i < 200; i++) rig.simulation.scheduler.turn();
  assert.deepEqual(guest.memory.arena.bytes, before);
  assert.equal(disk.device.vbd.requests.freeSlots, SLOTS);
  assert.deepEqual([...rig.metrics.named.keys()], ["vdi-0"]);
  rig.close();
});

Deno.test("a guest's domain that vanishes: its requests end, and the ring can be left", () => {
  const rig = new XenRig({ latencyMs: 20 });
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk);
  const segments = shapes(guest, 6);
  for (let id = 0n; id < 20n; id++) {
    guest.add({ operation: Number(id) % 2, id, sector: Number(id) * 64, segments });
  }
  guest.push();
  rig.simulation.scheduler.turn();
  guest.take();
  rig.xen.destroy(guest.ring.domain);
  for (let i = 0; i < 200; i++) rig.simulation.scheduler.turn();
  assert.equal(disk.device.vbd.requests.freeSlots, SLOTS);
  assert.equal(rig.log.filter((line) => line.includes("Cannot notify")).length, 1);
  disk.rings.disconnect(guest.ring);
  rig.close();
});

Deno.test("a disk that is to be closed takes no more requests of a guest", () => {
  const rig = new XenRig();
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk);
  const segments = shapes(guest, 1);
  disk.rings.hold();
  guest.add({ operation: Op.Write, id: 1n, segments });
  guest.push();
  assert.deepEqual(rig.responses(guest, 1), []);
  disk.rings.goOn();
  assert.deepEqual(rig.responses(guest, 1), [{ id: 1n, operation: Op.Write, status: OKAY }]);
  rig.close();
});

Deno.test("either side notifies only when the other one asked for it", () => {
  const rig = new XenRig();
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk);
  const segments = shapes(guest, 1);
  const put = (count: number): void => {
    for (let i = 0; i < count; i++) guest.add({ operation: Op.Read, id: BigInt(i), segments });
  };
  put(8);
  assert.ok(guest.push());
  rig.responses(guest, 8);
  // One turn answers all of them, with one call for their data and one notification.
  assert.deepEqual([guest.notified, rig.xen.calls, rig.xen.copies], [1, 1, 8]);
  guest.askAt(guest.taken + 3);
  for (const expected of [1, 1, 2]) {
    put(1);
    guest.push();
    for (let i = 0; i < 20; i++) rig.simulation.scheduler.turn();
    assert.equal(guest.notified, expected);
  }
  rig.close();
});

Deno.test("a guest's requests are counted for monitoring programs, whatever their parts", () => {
  const rig = new XenRig();
  const guest = rig.guest(rig.disk(DISK_SECTORS));
  const segments = shapes(guest, 11);
  const count = sectorsOf(segments);
  for (const operation of [Op.Write, Op.Write, Op.Read, Op.Flush, Op.Discard]) {
    const data = operation < 2 ? segments : [];
    guest.add({ operation, id: 1n, segments: data, sectors: 8 });
  }
  guest.add({ operation: Op.Read, id: 1n, sector: DISK_SECTORS, segments });
  guest.push();
  assert.equal(rig.responses(guest, 6).length, 6);
  const seen = rig.metrics.read("vbd-1-51712");
  assert.deepEqual(
    [seen.oo_reqs, seen.read_reqs_submitted, seen.read_reqs_completed, seen.read_sectors],
    [0, 2, 2, count],
  );
  assert.deepEqual(
    [seen.write_reqs_submitted, seen.write_reqs_completed, seen.write_sectors, seen.io_errors],
    [2, 2, 2 * count, 1],
  );
  rig.close();
  assert.deepEqual([...rig.metrics.named.keys()].filter((name) => name.startsWith("vbd")), []);
});

Deno.test("a ring is polled after a request while the processors are idle, without notifications", () => {
  const rig = new XenRig();
  const disk = rig.disk(DISK_SECTORS);
  rig.times = { idle: 90, all: 100 };
  const guest = rig.guest(disk, { pollDurationUs: 1000 });
  const segments = shapes(guest, 1);
  const ask = (): boolean => {
    guest.add({ operation: Op.Read, id: 1n, segments });
    const isWanted = guest.push();
    assert.equal(rig.responses(guest, 1).length, 1);
    return isWanted;
  };
  assert.ok(ask());
  const { kicks } = guest;
  for (let i = 0; i < 10; i++) assert.ok(!ask());
  assert.equal(guest.kicks, kicks);
  // It ends a while after the last request.
  while (rig.simulation.scheduler.turn());
  assert.ok(ask());
  rig.times = { idle: 100, all: 200 };
  rig.simulation.scheduler.addTimer(2000, () => {});
  while (rig.simulation.scheduler.turn());
  assert.ok(ask());
  assert.ok(ask());
  rig.close();
});

Deno.test("a ring that cannot be connected leaves nothing behind", () => {
  const rig = new XenRig();
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk);
  disk.rings.disconnect(guest.ring);
  const refused = (change: object): void => {
    assert.throws(() => disk.rings.connect({ ...guest.ring, ...change }));
    assert.equal(rig.xen.open, 0);
    assert.ok(!disk.rings.has(guest.ring));
  };
  refused({ references: [0] });
  // Another tapdisk has its channel.
  const other = rig.xen.bind(guest.ring.domain, guest.ring.port);
  assert.throws(() => disk.rings.connect(guest.ring), { code: "EINVAL" });
  other.close();
  refused({ domain: 99 });
  refused({ port: 0 });
  guest.claim(guest.entries + 1);
  refused({});
  guest.claim(0);
  disk.rings.connect(guest.ring);
  rig.close();
});

Deno.test("a call for copies that fails is an error of its requests only", () => {
  const rig = new XenRig();
  const disk = rig.disk(DISK_SECTORS);
  const guest = rig.guest(disk);
  const segments = shapes(guest, 1);
  const indirect = { operation: Op.Read, page: 20 };
  const requests: GuestRequest[] = [
    { operation: Op.Read, id: 1n, segments },
    { operation: Op.Write, id: 2n, segments },
    { operation: Op.Indirect, id: 3n, segments, indirect },
  ];
  guest.memory.copyErrno = 14;
  for (const request of requests) assert.equal(statusOf(rig, guest, request), ERROR);
  guest.memory.copyErrno = 0;
  for (const request of requests) assert.equal(statusOf(rig, guest, request), OKAY);
  assert.equal(disk.device.vbd.requests.freeSlots, SLOTS);
  rig.close();
});

Deno.test("the times of the processors are those of the first line of /proc/stat", () => {
  const text = "cpu  10 1 5 100 7 2 3 4 50 6\ncpu0 5 0 2 50 3 1 1 2 25 3\nintr 1\n";
  // What guests of this machine take is part of what its programs take.
  assert.deepEqual(parseProcessorTimes(text), { idle: 100, all: 132 });
  assert.deepEqual(parseProcessorTimes("nothing"), { idle: 0, all: 0 });
});
