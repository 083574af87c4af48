/**
 * A tapdisk that is killed while it serves a guest's ring, and the next one, which goes on with it: each
 * request gets one answer, wherever the kill was. A kill is between two stores: the test keeps what the
 * guest's memory and the journal hold before the n-th of them.
 *
 * @module
 */
import assert from "node:assert/strict";
import { BlkifProtocol } from "../../ffi/blkif_ring.ts";
import { Random } from "../../src/testing/random.ts";
import { SLOTS } from "../../src/vbd/slots.ts";
import { assertHolds, stampedSectors } from "../support/sim.ts";
import {
  type GuestOptions,
  Op,
  PAGE,
  PlayedGuest,
  type Segment,
} from "../support/xen/played_guest.ts";
import { XenRig } from "../support/xen/xen_rig.ts";
import { withTempDir } from "../support/tools.ts";

const DISK_SECTORS = 16384;
const DATA_PAGE = 8;
const TABLE_PAGE = 100;
const PAGES = 128;
/** Places in a journal, in words of 32 bits. */
const [TAKEN, ANSWERED, RECORDS, RECORD] = [13, 14, 32, 32];
const GENERATIONS = 4;
const SEEDS = 25;

/** What outlives a tapdisk. */
interface Remains {
  readonly memory: Uint8Array;
  readonly journal: Uint8Array<ArrayBuffer>;
  readonly put: number;
  readonly taken: number;
  /** The answers that the guest has taken. */
  readonly answers: readonly bigint[];
}

/** A guest, and the tapdisk that serves it. */
class Life {
  readonly rig: XenRig;
  readonly guest: PlayedGuest;
  readonly answers: bigint[] = [];
  readonly #journal: string;
  /** Whether the ring was taken over. */
  readonly isResumed: boolean;

  constructor(folder: string, options: GuestOptions, before: Remains | null) {
    this.rig = new XenRig({ latencyMs: 5 });
    this.rig.journals = folder;
    this.#journal = `${folder}/1`;
    const disk = this.rig.disk(DISK_SECTORS);
    this.guest = new PlayedGuest(this.rig.xen, { domain: 1, pages: PAGES, ...options });
    this.rig.guests.push(this.guest);
    if (before !== null) {
      this.guest.memory.arena.bytes.set(before.memory);
      this.guest.put = before.put;
      this.guest.taken = before.taken;
      this.answers.push(...before.answers);
      Deno.writeFileSync(this.#journal, before.journal);
    }
    try {
      disk.rings.connect(this.guest.ring);
    } catch (error) {
      this.rig.close();
      throw error;
    }
    this.isResumed = this.rig.log.some((line) => line.includes("that had no answer"));
  }

  remains(): Remains {
    const { memory, put, taken } = this.guest;
    return {
      memory: memory.arena.bytes.slice(),
      journal: Deno.readFileSync(this.#journal),
      put,
      taken,
      answers: [...this.answers],
    };
  }

  take(): void {
    for (const { id, status } of this.guest.take()) {
      assert.equal(status, isWrong(id) ? -1 : 0);
      this.answers.push(id);
    }
  }

  end(): void {
    this.take();
    this.rig.close();
  }
}

/** Whether a request goes beyond the end, so that it has its answer as soon as it is taken. */
function isWrong(id: bigint): boolean {
  return id % 7n === 3n;
}

/** Requests of all kinds. */
function put(random: Random, guest: PlayedGuest): void {
  const id = BigInt(guest.put);
  const segments = Array.from(
    { length: 1 + random.below(5) },
    (): Segment => [guest.reference(DATA_PAGE + random.below(64)), 0, 7],
  );
  const operation =
    [Op.Read, Op.Write, Op.Write, Op.Barrier, Op.Flush, Op.Indirect][random.below(6)];
  const sector = isWrong(id) ? DISK_SECTORS : 8 * random.below(1000);
  if (operation !== Op.Indirect) return guest.add({ operation, id, sector, segments });
  const page = TABLE_PAGE + guest.put % 24;
  guest.add({ operation, id, sector, segments, indirect: { operation: random.below(2), page } });
}

/** Runs `body` with a call before each store to memory that others see. */
function withStores(before: () => void, body: () => void): void {
  const { store } = Atomics;
  const watched = (...args: Parameters<typeof store>): number => {
    before();
    return Number(Reflect.apply(store, Atomics, args));
  };
  Object.assign(Atomics, { store: watched });
  try {
    body();
  } finally {
    Object.assign(Atomics, { store });
  }
}

/** Serves for a while; returns what is there at a kill. */
function live(life: Life, random: Random, atOnce: Remains | null): Remains {
  const { guest, rig } = life;
  let left = random.below(120);
  let remains: Remains | null = atOnce;
  const kill = (): void => {
    if (left-- === 0) remains ??= life.remains();
  };
  for (let turn = 0; turn < 40 && remains === null; turn++) {
    for (let more = random.below(8); more > 0 && guest.hasRoom; more--) put(random, guest);
    guest.push();
    withStores(kill, () => rig.simulation.scheduler.turn());
    if (remains === null && random.chance(0.5)) life.take();
  }
  return remains ?? life.remains();
}

Deno.test("a ring whose tapdisk is killed anywhere: another goes on, and each request has one answer", () =>
  withTempDir((folder) => {
    let resumed = 0;
    for (let seed = 1; seed <= SEEDS; seed++) {
      const random = new Random(seed);
      const options = {
        order: random.below(3),
        protocol: random.chance(0.5) ? BlkifProtocol.X86_32 : BlkifProtocol.X86_64,
        pollDurationUs: random.chance(0.3) ? 100 : 0,
      };
      let remains: Remains | null = null;
      for (let generation = 0; generation < GENERATIONS; generation++) {
        const life: Life = new Life(folder, options, remains);
        if (life.isResumed) resumed++;
        remains = live(life, random, null);
        life.rig.close();
      }
      const last = new Life(folder, options, remains);
      last.guest.push();
      last.guest.notify();
      while (last.rig.simulation.scheduler.turn());
      last.take();
      const wanted = Array.from({ length: last.guest.put }, (_, i) => BigInt(i));
      const got = [...last.answers].sort((a, b) => Number(a - b));
      assert.deepEqual(got, wanted, `seed ${seed}`);
      assert.equal(last.rig.disks[0].device.vbd.requests.freeSlots, SLOTS);
      last.end();
    }
    assert.ok(resumed > SEEDS, `only ${resumed} rings were taken over with requests under way`);
    assert.deepEqual([...Deno.readDirSync(folder)], []);
  }));

Deno.test("the data of writes that had no answer is written by the next tapdisk", () =>
  withTempDir((folder) => {
    const first = new Life(folder, {}, null);
    const { guest } = first;
    for (let i = 0; i < 8; i++) {
      guest.sectors(DATA_PAGE + i, 0, 7).set(stampedSectors(8 * i, 8, i + 1));
      const segments: Segment[] = [[guest.reference(DATA_PAGE + i), 0, 7]];
      guest.add({ operation: Op.Write, id: BigInt(i), sector: 8 * i, segments });
    }
    guest.add({ operation: Op.Barrier, id: 8n });
    const pages: Segment[] = [[guest.reference(DATA_PAGE + 9), 0, 7]];
    for (const id of [9n, 10n]) guest.add({ operation: Op.Read, id, segments: pages });
    guest.push();
    first.rig.simulation.scheduler.turn();
    assert.equal(guest.waiting, 0);
    const remains = first.remains();
    first.rig.close();
    const second = new Life(folder, {}, remains);
    assert.ok(second.isResumed);
    const answered = second.rig.responses(second.guest, 11).map(({ id }) => id);
    assert.deepEqual([answered.length, answered[8]], [11, 8n]);
    for (let i = 0; i < 8; i++) assertHolds(second.rig.disks[0].device, 8 * i, 8, i + 1);
    second.end();
  }));

Deno.test("a ring with requests that may be lost is refused without its journal", () =>
  withTempDir((folder) => {
    const first = new Life(folder, {}, null);
    const random = new Random(1);
    for (let i = 0; i < 20; i++) put(random, first.guest);
    first.guest.push();
    first.rig.simulation.scheduler.turn();
    const remains = first.remains();
    first.rig.close();
    const refused = (journal: Uint8Array<ArrayBuffer>): void =>
      assert.throws(() => new Life(folder, {}, { ...remains, journal }), { code: "ESTALE" });
    refused(new Uint8Array(0));
    refused(new Uint8Array(remains.journal.length));
    refused(remains.journal.slice(0, PAGE / 2));
    for (const at of [0, 4, 8, 12, 16, 20, 52, 56]) {
      const wrong = remains.journal.slice();
      wrong[at] ^= 0x40;
      refused(wrong);
    }
    const second = new Life(folder, {}, remains);
    assert.ok(second.isResumed);
    second.end();
  }));

/** What a tapdisk leaves that was killed with requests under way, and requests that failed. */
function killed(folder: string): Remains {
  const life = new Life(folder, {}, null);
  const random = new Random(1);
  for (let i = 0; i < 30; i++) put(random, life.guest);
  life.guest.push();
  while (life.guest.waiting < 15 && life.rig.simulation.scheduler.turn());
  life.take();
  const remains = life.remains();
  life.rig.close();
  return remains;
}

/** Another tapdisk goes on; returns what the guest has in the end. */
function resumed(folder: string, remains: Remains): bigint[] {
  const life = new Life(folder, {}, remains);
  assert.ok(life.isResumed);
  while (life.rig.simulation.scheduler.turn());
  life.end();
  return [...life.answers].sort((a, b) => Number(a - b));
}

Deno.test("a request that fails at once overwrites an entry: a kill then loses nothing", () =>
  withTempDir((folder) => {
    let kills = 0;
    let any = true;
    for (let stores = 0; any; stores++) {
      const life = new Life(folder, {}, null);
      const { guest, rig } = life;
      // It has too many segments, and the number of an answer is a write of one in its place.
      const ids = [0x6_0101n, 4n, 5n];
      guest.sectors(DATA_PAGE, 0, 7).fill(0xff);
      const segments: Segment[] = [[guest.reference(DATA_PAGE), 0, 7]];
      guest.add({ operation: Op.Read, id: ids[0], sector: 8, segments, count: 12 });
      for (const id of ids.slice(1)) guest.add({ operation: Op.Read, id, sector: 80, segments });
      guest.push();
      let left = stores;
      const killed: Remains[] = [];
      const kill = (): void => {
        if (left-- === 0) killed.push(life.remains());
      };
      withStores(kill, () => rig.simulation.scheduler.turn());
      any = killed.length > 0;
      rig.close();
      for (const remains of killed) {
        kills++;
        const next = new Life(folder, {}, remains);
        while (next.rig.simulation.scheduler.turn());
        assertHolds(next.rig.disks[0].device, 8, 8, 0);
        next.end();
        assert.deepEqual(next.answers.toSorted(), ids.toSorted(), `store ${stores}`);
      }
    }
    assert.ok(kills > 10, `${kills} kills`);
  }));

Deno.test("a ring is taken over after billions of requests", () =>
  withTempDir((folder) => {
    const before = killed(folder);
    const ids = Array.from({ length: before.put }, (_, i) => BigInt(i));
    assert.deepEqual(resumed(folder, before), ids);
    for (const later of [2 ** 31 - 64, 2 ** 31, 2 ** 31 + 96, 2 ** 32 - 32]) {
      const memory = before.memory.slice();
      const journal = before.journal.slice();
      const ring = new Int32Array(memory.buffer, 0, 4);
      for (let i = 0; i < 4; i++) ring[i] += later;
      const words = new Int32Array(journal.buffer);
      words[TAKEN] += later;
      words[ANSWERED] += later;
      // Numbers that have requests under way. The others were used long ago.
      for (let at = RECORDS; at < words.length; at += RECORD) {
        if (words[at] === 1) words[at + 1] += later;
      }
      const remains = { ...before, memory, journal };
      const counted = { put: before.put + later, taken: before.taken + later };
      assert.deepEqual(resumed(folder, { ...remains, ...counted }), ids, `${later}`);
    }
  }));

Deno.test("a journal of a guest that is gone does not fit a later guest's ring", () =>
  withTempDir((folder) => {
    const remains = killed(folder);
    const answer = (memory: Uint8Array): string => {
      try {
        const life = new Life(folder, {}, { ...remains, memory });
        const { isResumed } = life;
        life.end();
        return isResumed ? "resumed" : "begun";
      } catch (error) {
        return (error as { code: string }).code;
      }
    };
    // A ring with the same pages, channel and counters, which nobody has served yet.
    const other = remains.memory.slice();
    other.fill(0, 16, 64);
    assert.equal(answer(other), "ESTALE");
    // One that begins anew.
    other.fill(0, 0, PAGE);
    new Int32Array(other.buffer, 0, 4).set([0, 1, 0, 1]);
    assert.equal(answer(other), "begun");
    assert.equal(answer(remains.memory.slice()), "resumed");
  }));
