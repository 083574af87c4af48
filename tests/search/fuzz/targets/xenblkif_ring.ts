/**
 * A guest that does anything with its ring: operations, segments, sectors, grant references, tables of
 * indirect requests, indexes that jump, grants that it takes back, entries that change while they are
 * read. It leaves in the middle of requests, and its domain vanishes. Every request that is taken has the
 * right answer, no byte changes that none of them names, and a second guest with a disk of its own does
 * not notice.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { BlkifProtocol } from "../../../../ffi/blkif_ring.ts";
import { Errno } from "../../../../ffi/errno.ts";
import { SLOTS } from "../../../../src/vbd/slots.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { Op, PAGE, PlayedGuest, SECTOR, type Segment } from "../../../support/xen/played_guest.ts";
import { Access } from "../../../support/xen/played_xen.ts";
import { type ServedDisk, XenRig } from "../../../support/xen/xen_rig.ts";
import type { SearchContext } from "../../search.ts";
import type { Target } from "../target.ts";
import { hostileLong, hostileWord, pick, word } from "../wire/choose.ts";
import { type WordChange, WordModel } from "../wire/word_model.ts";

const DISK_SECTORS = 8192;
const LATENCY_MS = 3;
const BATCHES = 40;
const PAGES = 900;
/** The ring is before it, whatever its order; then the pages of tables; then those of data. */
const TABLE_PAGE = 8;
const DATA_PAGE = 80;
/** How often all pages are compared, and not only those that the requests of a batch name. */
const WHOLE = 0.1;
const PAGE_SECTORS = 8;
const MOST_SEGMENTS = 11;
const MOST_INDIRECT = 256;
/** A request of no more sectors is carried out whole or not at all. */
const PART_SECTORS = 512;
const OKAY = 0;
const ERROR = -1;
const NOT_SUPPORTED = -2;
const OPERATIONS = [
  Op.Read,
  Op.Read,
  Op.Write,
  Op.Write,
  Op.Barrier,
  Op.Flush,
  Op.Discard,
  Op.Indirect,
];

interface Entry {
  readonly id: bigint;
  readonly operation: number;
  readonly count: number;
  readonly segments: readonly Segment[];
  readonly sector: bigint;
  readonly sectors: bigint;
  readonly indirect: { readonly operation: number; readonly page: number } | undefined;
  readonly word: number;
}

/** What an entry asks for, whatever it says. */
function doing(entry: Entry): number {
  return entry.operation === Op.Indirect ? entry.indirect?.operation ?? 0 : entry.operation;
}

function isRead(entry: Entry): boolean {
  return doing(entry) === Op.Read;
}

/** The segments that are to be moved. */
function used({ count, segments }: Entry): readonly Segment[] {
  return segments.slice(0, count);
}

function sectorsOf(entry: Entry): number {
  return used(entry).reduce((sum, [, first, last]) => sum + last - first + 1, 0);
}

class XenblkifTarget implements Target {
  #rig: XenRig | null = null;
  #disk: ServedDisk | null = null;
  #guest: PlayedGuest | null = null;
  #other: PlayedGuest | null = null;
  #model = new WordModel();
  readonly #otherModel = new WordModel();
  #otherFrom = 0;
  #word = 0;
  #page = DATA_PAGE;
  #table = TABLE_PAGE;
  /** What the guest's pages held before a batch. */
  readonly #before = new Uint8Array(PAGES * PAGE);
  /** The pages that a batch has used: the others are as `#put` left them. */
  #dirty = PAGES;

  setUp({ folder }: SearchContext): void {
    const rig = new XenRig({ latencyMs: LATENCY_MS });
    rig.journals = folder;
    this.#rig = rig;
    this.#disk = rig.disk(DISK_SECTORS);
    this.#other = rig.guest(rig.disk(DISK_SECTORS), { domain: 2, pages: DATA_PAGE + 8 });
  }

  get #all(): { rig: XenRig; disk: ServedDisk; guest: PlayedGuest; other: PlayedGuest } {
    const [rig, disk, other] = [this.#rig, this.#disk, this.#other];
    if (rig === null || disk === null || other === null) throw new TypeError("It is not set up");
    return { rig, disk, guest: this.#guest ?? this.#connected(), other };
  }

  /** A guest whose ring has any of the layouts. */
  #connected(random: Random | null = null): PlayedGuest {
    const [rig, disk] = [this.#rig, this.#disk];
    if (rig === null || disk === null) throw new TypeError("It is not set up");
    if (this.#guest !== null) {
      disk.rings.disconnect(this.#guest.ring);
      rig.simulation.scheduler.turn();
      this.#guest.close();
    }
    const order = random?.below(4) ?? 0;
    const protocol = random?.chance(0.5) ? BlkifProtocol.X86_32 : BlkifProtocol.X86_64;
    const pollDurationUs = random?.chance(0.3) ? 50 : 0;
    const options = { domain: 1, order, protocol, pages: PAGES, pollDurationUs };
    rig.times = { idle: rig.times.idle + 90, all: rig.times.all + 100 };
    this.#guest = new PlayedGuest(rig.xen, options);
    this.#dirty = PAGES;
    disk.rings.connect(this.#guest.ring);
    return this.#guest;
  }

  run(random: Random, context: SearchContext): number {
    let cases = 0;
    this.#connected(random);
    for (let i = 0; i < BATCHES; i++) {
      const dice = random.below(30);
      if (dice === 0) cases += this.#jump(random, context);
      else if (dice === 1) cases += this.#leave(random, context);
      else if (dice === 2) cases += this.#wild(random, context);
      else cases += this.#batch(random, context);
      this.#settled();
    }
    return cases;
  }

  /** All of the hostile guest's requests have ended, and the other guest's disk is right. */
  #settled(): void {
    const { rig, disk } = this.#all;
    const fault = [...rig.log, ...rig.simulation.log].find((line) => line.includes("fault"));
    assert.equal(fault, undefined);
    rig.log.length = 0;
    assert.equal(disk.device.vbd.requests.freeSlots, SLOTS, "slots that are not given back");
  }

  /** Runs the loop until it comes to rest. */
  #settle(): void {
    const { scheduler } = this.#all.rig.simulation;
    for (let turns = 0; scheduler.turn(); turns++) {
      if (turns > 100_000) throw new Error("The ring never comes to rest");
    }
  }

  /** An index that says more requests are there than there is room for, or fewer than none. */
  #jump(random: Random, context: SearchContext): number {
    const { guest, rig, disk } = this.#all;
    const far = guest.entries + 1 + random.below(2 ** 30);
    const jump = random.chance(0.5) ? far : -1 - random.below(2 ** 30);
    context.trace(`the index jumps by ${jump}`);
    const before = this.#remember(PAGES);
    guest.claim(guest.put + jump);
    guest.notify();
    this.#settle();
    assert.ok(rig.log.some((line) => line.includes("makes no sense")));
    assert.equal(guest.waiting, 0, "answers to requests that are none");
    const now = guest.memory.arena.bytes;
    assert.equal(Buffer.compare(now.subarray(PAGE), before.subarray(PAGE)), 0);
    assert.ok(disk.rings.has(guest.ring));
    this.#connected(random);
    return 1;
  }

  /** Requests whose ring is left, or whose domain vanishes, while they are under way. */
  #leave(random: Random, context: SearchContext): number {
    const { guest, rig, disk } = this.#all;
    const entries = this.#put(random);
    guest.push();
    for (let left = random.below(4); left > 0; left--) rig.simulation.scheduler.turn();
    const vanishes = random.chance(0.5);
    context.trace(`${entries.length} requests, and then the guest ${vanishes ? "dies" : "leaves"}`);
    if (vanishes) {
      rig.xen.destroy(1);
      for (let left = random.below(4); left > 0; left--) rig.simulation.scheduler.turn();
    }
    disk.rings.disconnect(guest.ring);
    const before = this.#remember(PAGES);
    this.#settle();
    const isSame = Buffer.compare(guest.memory.arena.bytes, before) === 0;
    assert.ok(isSame, "memory of a guest is touched after its ring was left");
    assert.ok(rig.xen.left.every((byte) => byte === 0), "released memory is written to");
    const changes = entries.flatMap((entry) => this.#changes(entry, true));
    this.#model.apply(changes);
    this.#connected(random);
    return entries.length;
  }

  /** A ring of random bytes, and grants of the ring itself. Nobody knows what its requests do. */
  #wild(random: Random, context: SearchContext): number {
    const { guest, disk } = this.#all;
    const { bytes } = guest.memory.arena;
    const count = 1 + random.below(guest.entries);
    context.trace(`${count} requests of random bytes`);
    this.#askOther(random);
    guest.memory.beforeCopy = () => void (bytes[random.below(PAGE)] = random.bits());
    for (let i = 0; i < count; i++) {
      const at = guest.entryAt(i);
      for (let j = 0; j < 108; j++) bytes[at + j] = random.chance(0.5) ? 0 : random.bits();
      bytes[at] = pick(random, OPERATIONS);
      bytes[at + 1] = random.below(12);
      for (let j = 20; j < 108; j += 8) bytes.set([8 + random.below(50), 0, 0, 0, 0, 7], at + j);
    }
    guest.claim(guest.put + count);
    guest.notify();
    this.#settle();
    this.#checkOther();
    this.#connected(random);
    disk.device.zero(0, DISK_SECTORS);
    disk.device.settle();
    this.#model = new WordModel();
    return count;
  }

  #segment(random: Random, isHostile: boolean): Segment {
    const { guest } = this.#all;
    const own = this.#page < PAGES ? this.#page++ : DATA_PAGE;
    const reference = isHostile && random.chance(0.2) ? noReference(random) : guest.reference(own);
    if (isHostile && random.chance(0.2)) {
      const limits = [0, 1, PAGE_SECTORS - 1, PAGE_SECTORS, PAGE_SECTORS + 1, 255];
      return [reference, pick(random, limits), pick(random, limits)];
    }
    const first = random.chance(0.6) ? 0 : random.below(PAGE_SECTORS);
    return [reference, first, random.chance(0.6) ? 7 : first + random.below(PAGE_SECTORS - first)];
  }

  #entry(random: Random): Entry {
    const any = random.chance(0.4) ? random.below(7) : -1;
    const operation = any === 0 ? random.below(256) : pick(random, OPERATIONS);
    const isIndirect = operation === Op.Indirect;
    const isLong = isIndirect && random.chance(0.05);
    const length = 1 +
      random.below(isLong ? MOST_INDIRECT : random.chance(0.8) ? 2 : MOST_SEGMENTS);
    const isEmpty = (operation === Op.Flush || operation === Op.Barrier) && random.chance(0.7);
    const segments = Array.from(
      { length: isEmpty ? 0 : length },
      () => this.#segment(random, any === 1),
    );
    const far = random.chance(0.5)
      ? BigInt(DISK_SECTORS - random.below(91) + 1)
      : hostileLong(random, [DISK_SECTORS]);
    const table = any === 2 && random.chance(0.5) ? PAGES + random.below(9) : this.#table++;
    const inner = any === 3 ? random.below(256) : random.below(2);
    const count = any === 4 ? random.below(isIndirect ? 65536 : 16) : segments.length;
    // What nobody has written into an entry is a segment, too.
    while (!isIndirect && segments.length < count) segments.push([0, 0, 0]);
    return {
      id: hostileLong(random),
      operation,
      count,
      segments,
      sector: any === 5 ? far : BigInt(random.below(DISK_SECTORS - 8 * MOST_INDIRECT)),
      sectors: any === 6 ? far : BigInt(random.below(89)),
      indirect: isIndirect ? { operation: inner, page: table } : undefined,
      word: this.#word = (this.#word + 1) & 0x7fff_ffff,
    };
  }

  /** Puts some requests into the ring, with data in their pages, and takes some grants back. */
  #put(random: Random): Entry[] {
    const { guest } = this.#all;
    const { bytes } = guest.memory.arena;
    bytes.fill(0xee, TABLE_PAGE * PAGE, this.#dirty * PAGE);
    guest.memory.access.fill(Access.Write);
    this.#page = DATA_PAGE;
    this.#table = TABLE_PAGE;
    const entries: Entry[] = [];
    const most = 1 + random.below(guest.entries);
    while (
      entries.length < most && this.#page < PAGES - MOST_INDIRECT && this.#table < DATA_PAGE
    ) {
      entries.push(this.#entry(random));
    }
    this.#dirty = this.#page;
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    for (const entry of entries) {
      guest.add(inTable(entry));
      if (isRead(entry)) continue;
      for (const [, at] of this.#places(entry)) {
        words.fill(entry.word, at / 4, (at + SECTOR) / 4);
      }
    }
    if (random.chance(0.3)) {
      for (let left = 1 + random.below(6); left > 0; left--) {
        const page = TABLE_PAGE + random.below(this.#page - TABLE_PAGE);
        guest.memory.access[page] = random.chance(0.5) ? Access.None : Access.Read;
      }
    }
    return entries;
  }

  /** What the first pages hold now. */
  #remember(pages: number): Uint8Array<ArrayBuffer> {
    const before = this.#before.subarray(0, pages * PAGE);
    before.set(this.#all.guest.memory.arena.bytes.subarray(0, pages * PAGE));
    return before;
  }

  /** Changes requests in the ring while their data is copied: they were copied before. */
  #race(random: Random): () => void {
    const { guest } = this.#all;
    const { bytes } = guest.memory.arena;
    return () => {
      if (random.below(4) > 0) return;
      // The first twelve bytes may have a response already.
      const at = guest.entryAt(random.below(guest.entries)) + 12 + random.below(96);
      bytes[at] = random.bits();
    };
  }

  /** Requests at once; all are answered as the model says. */
  #batch(random: Random, context: SearchContext): number {
    const { guest } = this.#all;
    const entries = this.#put(random);
    context.trace(`${entries.length} requests`);
    const used = random.chance(WHOLE) ? PAGES : Math.min(PAGES, this.#dirty + 8);
    const before = this.#remember(used);
    if (random.chance(0.2)) guest.askAt(word(random) | 0);
    if (random.chance(0.1)) guest.words[1] = word(random) | 0;
    if (random.chance(0.3)) guest.memory.beforeCopy = this.#race(random);
    const isBroken = random.chance(0.02);
    if (isBroken) guest.memory.copyErrno = Errno.EFAULT;
    this.#askOther(random);
    guest.push();
    guest.notify();
    this.#settle();
    guest.memory.beforeCopy = null;
    guest.memory.copyErrno = 0;
    this.#checkOther();
    const got = guest.take().map(({ id, operation, status }) => `${id}:${operation}:${status}`);
    if (isBroken) {
      assert.equal(got.length, entries.length);
      this.#model.apply(entries.flatMap((entry) => this.#changes(entry, true)));
      return entries.length;
    }
    const wanted = entries.map((entry) => `${entry.id}:${doing(entry)}:${this.#status(entry)}`);
    assert.deepEqual(got.sort(), wanted.sort());
    this.#check(entries, before);
    return entries.length;
  }

  #check(entries: readonly Entry[], before: Uint8Array<ArrayBuffer>): void {
    const { guest } = this.#all;
    const { bytes } = guest.memory.arena;
    const changes = entries.flatMap((entry) => this.#changes(entry, false));
    const busy = new Uint8Array(DISK_SECTORS);
    for (const { first, count } of changes) busy.fill(1, first, first + count);
    for (const entry of entries) {
      if (!isRead(entry)) continue;
      const isWhole = this.#status(entry) === OKAY;
      for (const [sector, at] of this.#places(entry)) {
        const data = bytes.subarray(at, at + SECTOR);
        // Of a read that failed, some sectors may be there.
        if (isWhole) this.#model.check(sector, data, busy[sector] === 1);
        before.set(data, at);
      }
    }
    // With the data of reads, all is as it was.
    const from = TABLE_PAGE * PAGE;
    const now = bytes.subarray(from, before.length);
    assert.ok(
      Buffer.compare(now, before.subarray(from)) === 0,
      "a page changed that no read names",
    );
    this.#model.apply(changes);
  }

  /** Whether the segments of a request make sense, apart from their grants. */
  #isSound(entry: Entry): boolean {
    const { count, segments, sector, operation, indirect } = entry;
    const most = operation === Op.Indirect ? MOST_INDIRECT : MOST_SEGMENTS;
    const isEmpty = count === 0 && (operation === Op.Flush || operation === Op.Barrier);
    if (isEmpty) return true;
    // A table ends in bytes that are no segments.
    if (count < 1 || count > most || count > segments.length) return false;
    if (indirect !== undefined && this.#accessOf(indirect.page) === Access.None) return false;
    if (segments.slice(0, count).some(([, first, last]) => first > last || last >= PAGE_SECTORS)) {
      return false;
    }
    return sector + BigInt(sectorsOf(entry)) <= BigInt(DISK_SECTORS);
  }

  #accessOf(page: number): number {
    return this.#all.guest.memory.access[page] ?? Access.None;
  }

  #status(entry: Entry): number {
    const kind = doing(entry);
    const isKnown = entry.operation === Op.Indirect ? kind < 2 : kind < 4 || kind === Op.Discard;
    if (!isKnown) return NOT_SUPPORTED;
    if (kind === Op.Discard) {
      return entry.sector + entry.sectors > BigInt(DISK_SECTORS) ? ERROR : OKAY;
    }
    if (!this.#isSound(entry)) return ERROR;
    const { guest } = this.#all;
    const isGranted = used(entry).every(([reference]) => {
      const page = guest.memory.pageOf(reference);
      return page >= 0 && (kind !== Op.Read || this.#accessOf(page) === Access.Write);
    });
    return isGranted ? OKAY : ERROR;
  }

  /** The sectors of a sound read or write, and where in the guest's memory each lies. */
  *#places(entry: Entry): Generator<[sector: number, at: number]> {
    if (doing(entry) > Op.Flush || !this.#isSound(entry)) return;
    let sector = Number(entry.sector);
    for (const [reference, first, last] of used(entry)) {
      const page = reference - 8;
      for (let i = first; i <= last; i++, sector++) {
        if (page >= DATA_PAGE && page < PAGES) yield [sector, page * PAGE + i * SECTOR];
      }
    }
  }

  /** @param isMaybe Whether nobody knows if the request was carried out. */
  #changes(entry: Entry, isMaybe: boolean): WordChange[] {
    const kind = doing(entry);
    const first = Number(entry.sector);
    const status = this.#status(entry);
    if (kind === Op.Discard) {
      if (status !== OKAY) return [];
      return [{ first, count: Number(entry.sectors), word: 0, isMaybe: true }];
    }
    const isWrite = kind === Op.Write || kind === Op.Barrier || kind === Op.Flush;
    if (!isWrite || !this.#isSound(entry)) return [];
    const count = sectorsOf(entry);
    if (status !== OKAY && count <= PART_SECTORS && !isMaybe) return [];
    return [{ first, count, word: entry.word, isMaybe: isMaybe || status !== OKAY }];
  }

  // ---- the other guest --------------------------------------------------------------------

  /** Writes, and reads any place after that. */
  #askOther(random: Random): void {
    const { other } = this.#all;
    const sector = random.below(DISK_SECTORS - 8);
    const from = random.chance(0.5) ? sector : random.below(DISK_SECTORS - 8);
    const stamp = word(random);
    const page = other.sectors(DATA_PAGE, 0, 7);
    new Uint32Array(page.buffer, page.byteOffset, page.length / 4).fill(stamp);
    const segments: Segment[] = [[other.reference(DATA_PAGE), 0, 7]];
    other.add({ operation: Op.Write, id: 1n, sector, segments });
    other.add({ operation: Op.Barrier, id: 2n });
    const reading: Segment[] = [[other.reference(DATA_PAGE + 1), 0, 7]];
    other.add({ operation: Op.Read, id: 3n, sector: from, segments: reading });
    other.push();
    this.#otherModel.apply([{ first: sector, count: 8, word: stamp, isMaybe: false }]);
    this.#otherFrom = from;
  }

  #checkOther(): void {
    const { other } = this.#all;
    const answers = other.take().map(({ id, status }) => `${id}:${status}`);
    assert.deepEqual(answers, ["1:0", "2:0", "3:0"], "the other guest");
    for (let i = 0; i < PAGE_SECTORS; i++) {
      const data = other.sectors(DATA_PAGE + 1, i, i);
      this.#otherModel.check(this.#otherFrom + i, data, false);
    }
  }

  tearDown(): void {
    const { rig, guest } = this.#all;
    rig.guests.push(guest);
    rig.close();
  }
}

/** A grant reference of no page. */
function noReference(random: Random): number {
  const reference = hostileWord(random, [0, 8 + PAGES]);
  return reference >= 8 && reference < 8 + PAGES ? 0 : reference;
}

/** An entry as a guest puts it. */
function inTable(entry: Entry): Entry {
  const { indirect } = entry;
  if (indirect === undefined || indirect.page < PAGES) return entry;
  // There is no such page to write segments to.
  return { ...entry, segments: [] };
}

export const target: Target = new XenblkifTarget();
