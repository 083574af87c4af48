/**
 * Requests of a blktap2 ring on a simulated disk: what is checked before a request is started, where
 * its data comes from, and which responses it gets. The test is the driver, and writes to the ring
 * after linux-blktap.h.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { BlktapDriver, BlktapRingDevice } from "../../ffi/blktap.ts";
import { Errno } from "../../ffi/errno.ts";
import type { Arena } from "../../ffi/memory.ts";
import { RingRequests } from "../../src/frontend/blktap2/ring_requests.ts";
import { Tap } from "../../src/frontend/blktap2/tap.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { SeenPages } from "../support/metrics.ts";
import { assertHolds, SECTOR_BYTES, Simulation, stampedSectors } from "../support/sim.ts";

const DISK_SECTORS = 16384;
const BLOCK_SECTORS = 4096;
const READ = 0;
const WRITE = 1;
const FLUSH = 2;
const TRIM = 3;
const OKAY = 0;
const ERROR = -1;
const NOT_SUPPORTED = -2;

const ENTRIES_AT = 64;
const ENTRY_BYTES = 112;
const ENTRIES = 32;
const SEGMENTS = 11;
const PAGE_BYTES = 4096;
const RSP_PROD_AT = 8;

type Segment = readonly [number, number];

interface Request {
  readonly operation: number;
  readonly id: number;
  readonly sector?: number;
  readonly segments?: readonly Segment[];
  /** For a trim. */
  readonly sectors?: number;
}

interface Response {
  readonly id: number;
  readonly operation: number;
  readonly status: number;
}

/** A ring whose memory belongs to the test, and the disk behind it. */
class Rig {
  readonly metrics = new SeenPages();
  readonly simulation = new Simulation({ seed: 1, metrics: this.metrics });
  readonly device;
  readonly requests: RingRequests;
  readonly broken: string[] = [];
  readonly #tap: Tap;
  #arena: Arena | null = null;
  #put = 0;
  #taken = 0;

  constructor() {
    createDynamic("/disk.vhd", {
      storage: this.simulation.disk,
      sizeBytes: DISK_SECTORS * SECTOR_BYTES,
    });
    this.device = this.simulation.open("vhd:/disk.vhd");
    const log = { info() {}, warn() {}, error() {} };
    this.#tap = new Tap(this.#driver(), log);
    const broken = (reason: string): void => void this.broken.push(reason);
    const owner = { message() {}, broken, answered() {} };
    this.requests = new RingRequests(this.device.vbd, this.#tap, owner);
  }

  #driver(): BlktapDriver {
    const device: BlktapRingDevice = {
      fd: -1,
      map: (arena) => void (this.#arena = arena),
      call: () => 0,
      respond() {},
      woken() {},
      close: () => Promise.resolve(),
    };
    return {
      missing: () => null,
      control: () => 0,
      openRing: () => device,
      makeNode: () => "/dev/xen/blktap-2/tapdev0",
      removeNodes() {},
      clearUp() {},
    };
  }

  get #memory(): Arena {
    assert.ok(this.#arena !== null);
    return this.#arena;
  }

  /** The memory of a sector of a request's page. */
  sector(id: number, page: number, sector: number): Uint8Array {
    const at = PAGE_BYTES * (1 + id * SEGMENTS + page) + sector * SECTOR_BYTES;
    return this.#memory.bytes.subarray(at, at + SECTOR_BYTES);
  }

  /** Adds a request; returns where its entry is. */
  put({ operation, id, sector = 0, segments = [], sectors }: Request): number {
    const { view, bytes } = this.#memory;
    const at = ENTRIES_AT + this.#put++ % ENTRIES * ENTRY_BYTES;
    bytes.fill(0, at, at + ENTRY_BYTES);
    view.setUint8(at, operation);
    view.setUint8(at + 1, segments.length);
    view.setUint32(at + 8, id, true);
    view.setBigUint64(at + 16, BigInt(sector), true);
    if (sectors !== undefined) view.setBigUint64(at + 24, BigInt(sectors), true);
    for (const [i, [first, last]] of segments.entries()) {
      view.setUint8(at + 24 + 8 * i + 4, first);
      view.setUint8(at + 24 + 8 * i + 5, last);
    }
    return at;
  }

  /** Shows what was added; `more` says that there is more than there is. */
  run(more = 0): Response[] {
    const { view } = this.#memory;
    view.setUint32(0, this.#put + more, true);
    this.requests.ready(0);
    for (let i = 0; i < 50; i++) this.simulation.scheduler.turn();
    this.requests.endOfTurn();
    const responses: Response[] = [];
    for (; this.#taken < view.getUint32(RSP_PROD_AT, true); this.#taken++) {
      const at = ENTRIES_AT + this.#taken % ENTRIES * ENTRY_BYTES;
      const operation = view.getUint8(at + 8);
      responses.push({
        id: view.getUint32(at, true),
        operation,
        status: view.getInt16(at + 10, true),
      });
    }
    return responses;
  }

  setByte(at: number, value: number): void {
    this.#memory.view.setUint8(at, value);
  }

  close(): void {
    this.#tap.release({ inUse: false, freed: true });
    this.device.close();
    this.simulation.close();
  }
}

function statusOf(rig: Rig, request: Request): number {
  rig.put(request);
  const responses = rig.run();
  assert.equal(responses.length, 1);
  assert.deepEqual([responses[0].id, responses[0].operation], [request.id, request.operation]);
  return responses[0].status;
}

Deno.test("a ring: segments with gaps are written and read where they are", () => {
  const rig = new Rig();
  const segments: Segment[] = [[0, 7], [0, 3], [2, 7], [5, 5], [0, 7]];
  const places = segments.flatMap(([first, last], page) =>
    Array.from({ length: last - first + 1 }, (_, i): Segment => [page, first + i])
  );
  const data = stampedSectors(100, places.length, 7);
  for (const [i, [page, sector]] of places.entries()) {
    rig.sector(3, page, sector).set(data.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES));
  }
  assert.equal(statusOf(rig, { operation: WRITE, id: 3, sector: 100, segments }), OKAY);
  assertHolds(rig.device, 100, places.length, 7);
  assertHolds(rig.device, 100 + places.length, 1, 0);
  assert.equal(statusOf(rig, { operation: READ, id: 4, sector: 100, segments }), OKAY);
  for (const [i, [page, sector]] of places.entries()) {
    const expected = data.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
    assert.deepEqual(rig.sector(4, page, sector), expected);
  }
  // Around the segments nothing is written.
  for (const [page, sector] of [[1, 4], [2, 1], [3, 4], [3, 6]]) {
    assert.deepEqual(rig.sector(4, page, sector), new Uint8Array(SECTOR_BYTES));
  }
  assert.equal(statusOf(rig, { operation: FLUSH, id: 5 }), OKAY);
  assert.equal(statusOf(rig, { operation: TRIM, id: 5, sector: 100, sectors: 8 }), OKAY);
  assert.equal(statusOf(rig, { operation: 9, id: 5 }), NOT_SUPPORTED);
  rig.close();
});

Deno.test("a ring: requests that make no sense fail, and nothing is touched", () => {
  const rig = new Rig();
  const whole: Segment = [0, 7];
  const wrong: Request[] = [
    { operation: READ, id: 0, segments: [] },
    { operation: READ, id: 0, segments: [[0, 8]] },
    { operation: READ, id: 0, segments: [[3, 255]] },
    { operation: READ, id: 0, segments: [[4, 3]] },
    { operation: READ, id: 31, segments: Array.from({ length: 11 }, () => [0, 8] as const) },
    { operation: WRITE, id: 0, sector: DISK_SECTORS - 4, segments: [whole] },
    // Two parts, the first of which lies on the disk.
    { operation: WRITE, id: 0, sector: DISK_SECTORS - 4, segments: [[0, 3], [2, 5]] },
    { operation: WRITE, id: 0, sector: DISK_SECTORS, segments: [[0, 0]] },
    { operation: WRITE, id: 0, sector: 2 ** 52, segments: [whole] },
    { operation: TRIM, id: 0, sector: DISK_SECTORS - 4, sectors: 8 },
    { operation: READ, id: 32, segments: [whole] },
    { operation: READ, id: 0xffff_ffff, segments: [whole] },
  ];
  for (let sector = 0; sector < 8; sector++) rig.sector(0, 0, sector).fill(1);
  for (const request of wrong) {
    assert.equal(statusOf(rig, request), ERROR, JSON.stringify(request));
  }
  assertHolds(rig.device, DISK_SECTORS - 8, 8, 0);
  for (const count of [12, 15, 22, 255]) {
    const at = rig.put({ operation: READ, id: 1, segments: [whole] });
    rig.setByte(at + 1, count);
    assert.deepEqual(rig.run(), [{ id: 1, operation: READ, status: ERROR }], `${count} segments`);
  }
  assert.deepEqual(rig.broken, []);
  rig.close();
});

Deno.test("a ring that announces more requests than it has room for is closed", () => {
  const rig = new Rig();
  rig.put({ operation: READ, id: 0, segments: [[0, 7]] });
  assert.deepEqual(rig.run(ENTRIES), []);
  assert.equal(rig.broken.length, 1);
  rig.close();
});

Deno.test("requests that have no answer yet count against the room of a ring", () => {
  const rig = new Rig();
  rig.device.pause();
  for (let id = 0; id < 8; id++) rig.put({ operation: READ, id, segments: [[0, 7]] });
  assert.deepEqual(rig.run(), []);
  assert.deepEqual(rig.run(ENTRIES - 7), []);
  assert.match(rig.broken.join(), /^25 new requests/);
  rig.device.resume();
  rig.run();
  rig.close();
});

Deno.test("a second request of a number that is under way closes the ring", () => {
  const rig = new Rig();
  rig.device.pause();
  rig.put({ operation: READ, id: 6, segments: [[0, 7]] });
  assert.deepEqual(rig.run(), []);
  rig.put({ operation: READ, id: 6, segments: [[0, 7]] });
  assert.deepEqual(rig.run(), []);
  assert.match(rig.broken.join(), /number 6/);
  rig.device.resume();
  rig.run();
  rig.close();
});

Deno.test("a request fails if any of its parts fails", () => {
  for (const failing of [1, 2]) {
    const rig = new Rig();
    for (let sector = 0; sector < 2 * BLOCK_SECTORS; sector += 512) {
      rig.device.write(sector, stampedSectors(sector, 512, 1));
    }
    rig.device.settle();
    let writes = 0;
    rig.simulation.fault = (kind) => kind === "write" && ++writes === failing ? Errno.EINVAL : 0;
    // Two parts, in two blocks.
    const segments: Segment[] = [[0, 3], [2, 5]];
    const sector = BLOCK_SECTORS - 4;
    assert.equal(statusOf(rig, { operation: WRITE, id: 2, sector, segments }), ERROR);
    assert.equal(writes, 2);
    rig.simulation.fault = null;
    rig.close();
  }
});

Deno.test("a ring: its requests are counted for monitoring programs, whatever their parts", () => {
  const rig = new Rig();
  const gaps: Segment[] = [[0, 3], [2, 7], [0, 0]];
  rig.put({ operation: WRITE, id: 0, sector: 8, segments: gaps });
  rig.put({ operation: READ, id: 1, sector: 8, segments: [[0, 7], [0, 7]] });
  rig.put({ operation: FLUSH, id: 2 });
  rig.put({ operation: TRIM, id: 3, sector: 0, sectors: 8 });
  // It is refused before it is taken up.
  rig.put({ operation: READ, id: 4, sector: DISK_SECTORS, segments: [[0, 7]] });
  assert.equal(rig.run().length, 5);
  const seen = rig.metrics.read("blktap-0");
  assert.deepEqual(
    [seen.oo_reqs, seen.read_reqs_submitted, seen.read_reqs_completed, seen.read_sectors],
    [0, 1, 1, 16],
  );
  assert.deepEqual(
    [seen.write_reqs_submitted, seen.write_reqs_completed, seen.write_sectors, seen.io_errors],
    [1, 1, 11, 0],
  );
  // The disk counts the two parts of the write.
  assert.equal(rig.metrics.read("vdi-0").write_reqs_completed, 2);
  rig.simulation.hang("/disk.vhd", 1000);
  rig.put({ operation: WRITE, id: 5, sector: 0, segments: [[0, 7]] });
  rig.requests.refuse();
  rig.run();
  rig.requests.close();
  rig.close();
  assert.deepEqual([...rig.metrics.named.keys()], []);
});
