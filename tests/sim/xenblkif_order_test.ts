/**
 * Properties of a guest's ring, on requests that a seed decides: each gets one answer, with the number
 * and the operation that the guest gave it; barriers order; and after a power cut the disk holds what a
 * flush or a barrier promised.
 *
 * @module
 */
import assert from "node:assert/strict";
import { BlkifProtocol } from "../../ffi/blkif_ring.ts";
import { Random } from "../../src/testing/random.ts";
import { SLOTS } from "../../src/vbd/slots.ts";
import { type SimulatedDevice, Simulation, stampedSectors, stampOf } from "../support/sim.ts";
import { withTempDir } from "../support/tools.ts";
import { Op, type PlayedGuest, type Segment } from "../support/xen/played_guest.ts";
import { XenRig } from "../support/xen/xen_rig.ts";

const SEEDS = 63;
const ROUNDS = 40;
const DISK_SECTORS = 3 * 4096;
/** Places on the disk, of eight sectors each, in blocks that the image does not have at first. */
const PLACES = 48;
const PLACE_STEP = 248;
/** The first page that is not of the ring, whatever its order; then the pages of tables. */
const DATA_PAGE = 8;
const TABLE_PAGE = 600;
const PAGES = 900;
const READ_PAGE = 580;

interface Sent {
  readonly order: number;
  readonly id: bigint;
  readonly operation: number;
  /** -1 for none. */
  readonly place: number;
  readonly stamp: number;
  /** Its position among the answers; -1 until it has one. */
  answer: number;
}

/** A write, and whether the disk has promised to keep it. */
interface Write {
  readonly stamp: number;
  readonly sent: Sent;
  isKept: boolean;
}

interface Ordering {
  readonly operation: number;
  readonly hasData: boolean;
}

const ORDERINGS: readonly (readonly Ordering[])[] = [
  [{ operation: Op.Flush, hasData: false }],
  [{ operation: Op.Barrier, hasData: true }],
  [Op.Flush, Op.Barrier].flatMap((operation) => [
    { operation, hasData: false },
    { operation, hasData: true },
  ]),
];

/** A guest that has at most one write at a place under way, and knows what it may find there. */
class Writer {
  readonly guest: PlayedGuest;
  readonly all: Sent[] = [];
  /** By place: the writes, in their order. */
  readonly writes: Write[][] = Array.from({ length: PLACES }, () => []);
  readonly #random: Random;
  readonly #busy = new Set<number>();
  /** Pages for tables of segments. One is in use until its request has an answer. */
  readonly #tables = Array.from({ length: PAGES - TABLE_PAGE }, (_, i) => TABLE_PAGE + i);
  readonly #tableOf = new Map<Sent, number>();
  readonly #ordering: readonly Ordering[];
  #answers = 0;
  #stamp = 0;
  /** By flush: the writes that had their answer, or for a barrier were sent, before it. */
  readonly #covered = new Map<Sent, Write[]>();

  /** @param ordering The operations that order, of which some have data. */
  constructor(guest: PlayedGuest, random: Random, ordering: readonly Ordering[]) {
    this.guest = guest;
    this.#random = random;
    this.#ordering = ordering;
  }

  send(): void {
    const random = this.#random;
    for (let left = random.below(12); left > 0 && this.guest.hasRoom; left--) this.#add();
    this.guest.push();
  }

  #add(): void {
    const random = this.#random;
    const ordering = random.chance(0.12) ? pick(random, this.#ordering) : null;
    const place = random.below(PLACES);
    const isWrite = ordering?.hasData ?? random.chance(0.65);
    if (isWrite && this.#busy.has(place)) return;
    // Any numbers: those of reads may be used twice at a time.
    const own = (BigInt(this.all.length) << 40n) + 7n;
    const id = isWrite || ordering !== null || random.chance(0.5) ? own : BigInt(random.below(4));
    const operation = ordering?.operation ?? (isWrite ? Op.Write : Op.Read);
    const stamp = isWrite ? ++this.#stamp : 0;
    const entry = { id, order: this.all.length, stamp, answer: -1 };
    const sent: Sent = { ...entry, operation, place: isWrite ? place : -1 };
    if (ordering !== null) this.#covered.set(sent, this.#promised(operation));
    if (isWrite) {
      this.#busy.add(place);
      this.guest.sectors(DATA_PAGE + place, 0, 7).set(stampedSectors(sectorOf(place), 8, stamp));
      this.writes[place].push({ stamp, sent, isKept: false });
    }
    const page = this.guest.reference(isWrite ? DATA_PAGE + place : READ_PAGE);
    const hasData = isWrite || ordering === null;
    const segments: Segment[] = hasData ? [[page, 0, 3], [page, 4, 7]] : [];
    const request = { operation, id, sector: sectorOf(place), segments };
    this.all.push(sent);
    if (ordering !== null || random.chance(0.7)) return this.guest.add(request);
    const table = this.#tables.pop();
    if (table === undefined) return this.guest.add(request);
    this.#tableOf.set(sent, table);
    this.guest.add({ ...request, operation: Op.Indirect, indirect: { operation, page: table } });
  }

  #promised(operation: number): Write[] {
    return this.writes.flat().filter(({ sent }) => operation === Op.Barrier || sent.answer >= 0);
  }

  /** Takes answers; returns whether there was one that promises something. */
  take(): boolean {
    let isPromise = false;
    for (const { id, operation, status } of this.guest.take()) {
      assert.equal(status, 0);
      const sent = this.all.find((one) =>
        one.answer < 0 && one.id === id && one.operation === operation
      );
      assert.ok(sent !== undefined, `an answer to no request: ${id}, ${operation}`);
      sent.answer = this.#answers++;
      this.#busy.delete(sent.place);
      const table = this.#tableOf.get(sent);
      if (table !== undefined) this.#tables.push(table);
      const covered = this.#covered.get(sent);
      if (covered === undefined) continue;
      isPromise = true;
      for (const write of covered) write.isKept = true;
      // Its own data is on stable storage, too.
      for (const write of this.writes[sent.place] ?? []) {
        if (write.sent === sent) write.isKept = true;
      }
    }
    return isPromise;
  }

  /** All before a barrier have their answers before it, and all behind it after it. */
  checkOrder(): void {
    for (const barrier of this.all) {
      // Of two with one number, either may have had the answer.
      if (barrier.operation !== Op.Barrier || barrier.answer < 0 || this.#isDouble(barrier)) {
        continue;
      }
      for (const other of this.all) {
        if (other === barrier || this.#isDouble(other)) continue;
        const isBefore = other.answer >= 0 && other.answer < barrier.answer;
        assert.equal(isBefore, other.order < barrier.order, `${other.order} at ${barrier.order}`);
      }
    }
  }

  #isDouble({ id, operation }: Sent): boolean {
    return this.all.filter((one) => one.id === id && one.operation === operation).length > 1;
  }

  /** What a place may hold: the last write that is kept, or one after it. */
  checkPlace(place: number, stamps: readonly number[]): void {
    const writes = this.writes[place];
    const kept = writes.findLastIndex(({ isKept }) => isKept);
    const allowed = new Set(writes.slice(Math.max(kept, 0)).map(({ stamp }) => stamp));
    if (kept < 0) allowed.add(0);
    for (const stamp of stamps) {
      assert.ok(allowed.has(stamp), `place ${place} has ${stamp}, not one of ${[...allowed]}`);
    }
  }
}

function pick<T>(random: Random, from: readonly T[]): T {
  return from[random.below(from.length)];
}

function sectorOf(place: number): number {
  return place * PLACE_STEP;
}

/** How a run ends: by itself, by a power cut, or by itself after kills of the process. */
type End = "itself" | "cut" | "kills";
const ENDS: readonly End[] = ["cut", "itself", "cut", "kills"];
/** From this round on the image has all blocks: nothing but flushes and barriers makes data stable. */
const SETTLED_ROUND = 12;

class Run {
  rig: XenRig;
  readonly writer: Writer;
  kills = 0;
  readonly #guest: PlayedGuest;
  readonly #random: Random;
  readonly #seed: number;

  constructor(seed: number, folder: string) {
    const random = this.#random = new Random(seed);
    this.#seed = seed;
    this.rig = new XenRig({ seed, latencyMs: 1 + random.below(4), powerCuts: true });
    this.rig.times = { idle: 90, all: 100 };
    this.rig.journals = folder;
    this.#guest = this.rig.guest(this.rig.disk(DISK_SECTORS), {
      order: random.below(4),
      protocol: random.chance(0.5) ? BlkifProtocol.X86_32 : BlkifProtocol.X86_64,
      pollDurationUs: random.chance(0.3) ? 500 : 0,
      pages: PAGES,
    });
    this.writer = new Writer(this.#guest, random, ORDERINGS[seed % ORDERINGS.length]);
  }

  go(end: End): void {
    const random = this.#random;
    for (let round = 0; round < ROUNDS; round++) {
      this.writer.send();
      for (let left = random.below(12); left > 0; left--) this.rig.simulation.scheduler.turn();
      if (end === "kills" && random.chance(0.1)) this.#kill();
      const isPromise = random.chance(0.7) && this.writer.take();
      // The power goes as soon as something was promised, as the next request may keep it by chance.
      if (end === "cut" && isPromise && round > SETTLED_ROUND && random.chance(0.3)) return;
    }
    if (end === "cut") return;
    while (this.rig.simulation.scheduler.turn());
    this.writer.take();
    assert.ok(this.writer.all.every(({ answer }) => answer >= 0), `seed ${this.#seed}`);
    assert.equal(this.rig.disks[0].device.vbd.requests.freeSlots, SLOTS);
    // Without a power cut, all that has an answer is there.
    for (const write of this.writer.writes.flat()) write.isKept = true;
  }

  #kill(): void {
    this.kills++;
    this.rig = this.rig.kill();
    this.rig.disk(DISK_SECTORS, { exists: true }).rings.connect(this.#guest.ring);
  }

  check(end: End): void {
    this.writer.checkOrder();
    if (end !== "cut") {
      this.#checkDisk(this.rig.simulation, this.rig.disks[0].device);
      return this.rig.close();
    }
    const after = new Simulation({ seed: this.#seed + 1000 }, this.rig.simulation);
    const device = after.open("vhd:/disk0.vhd");
    this.#checkDisk(after, device);
    device.close();
    after.close();
    // The requests never end and would keep their memory.
    this.rig.disks[0].device.vbd.requests.memory.release();
    this.#guest.close();
  }

  #checkDisk(simulation: Simulation, device: SimulatedDevice): void {
    for (let place = 0; place < PLACES; place++) {
      const outcome = device.read(sectorOf(place), 8);
      simulation.runUntil(() => outcome.data !== null, `The read of place ${place}`);
      const data = outcome.data ?? new Uint8Array(0);
      const stamps = Array.from({ length: 8 }, (_, i) => stampOf(data, i, sectorOf(place) + i));
      this.writer.checkPlace(place, stamps);
    }
  }
}

Deno.test("a guest's ring: one answer each, in order, and nothing that was flushed is lost", () =>
  withTempDir((folder) => {
    const seen = { barriers: 0, kept: 0, kills: 0 };
    for (let seed = 1; seed <= SEEDS; seed++) {
      const end = ENDS[Math.floor(seed / ORDERINGS.length) % ENDS.length];
      const run = new Run(seed, folder);
      try {
        run.go(end);
        run.check(end);
      } catch (error) {
        throw new Error(`Seed ${seed}, which ends by ${end}`, { cause: error });
      }
      seen.barriers += run.writer.all.filter(({ operation }) => operation === Op.Barrier).length;
      seen.kept += run.writer.writes.flat().filter(({ isKept }) => isKept).length;
      seen.kills += run.kills;
    }
    assert.ok(Object.values(seen).every((count) => count > SEEDS / 2), JSON.stringify(seen));
  }));
