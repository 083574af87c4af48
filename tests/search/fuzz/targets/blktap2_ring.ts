/**
 * A blktap2 ring in which the driver or a guest writes anything: operations, segments, sectors, ids
 * that are used twice, indexes that jump, messages. Every request that can be answered has the
 * right answer, and no byte changes that none of them names.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import type { Random } from "../../../../src/testing/random.ts";
import type { SearchContext } from "../../search.ts";
import type { Target } from "../target.ts";
import { hostileLong, pick } from "../wire/choose.ts";
import { MOST_SEGMENTS, RING_ENTRIES, RingKernel, type RingResponse } from "../wire/ring_kernel.ts";
import { type WordChange, WordModel } from "../wire/word_model.ts";

const READ = 0;
const WRITE = 1;
const FLUSH = 2;
const TRIM = 3;
const PAGE_SECTORS = 8;
const BATCHES = 12;
const CLOSE_MESSAGE = 3;
const RESUME_MESSAGE = 2;

interface Entry {
  readonly id: bigint;
  readonly operation: number;
  readonly segmentCount: number;
  readonly segments: readonly (readonly [number, number])[];
  readonly sector: bigint;
  readonly trimSectors: bigint;
  readonly word: number;
}

class Blktap2Target implements Target {
  #kernel: RingKernel | null = null;
  readonly #model = new WordModel();
  #word = 0;

  setUp(): void {
    this.#kernel = new RingKernel(7, 3);
  }

  run(random: Random, context: SearchContext): number {
    const kernel = this.#kernel;
    if (kernel === null) throw new TypeError("It is not set up");
    let cases = 0;
    for (let i = 0; i < BATCHES; i++) {
      kernel.log.length = 0;
      assert.ok(!kernel.device.gone);
      const dice = random.below(12);
      if (dice === 0) cases += this.#jump(random, kernel, context);
      else if (dice === 1) cases += this.#message(random, kernel, context);
      else cases += this.#batch(random, kernel, context);
    }
    return cases;
  }

  /** An index that says more than 32 requests are there, or fewer than none. */
  #jump(random: Random, kernel: RingKernel, context: SearchContext): number {
    const jump = random.chance(0.5) ? 33 + random.below(2 ** 30) : -1 - random.below(2 ** 30);
    context.trace(`the index jumps by ${jump}`);
    kernel.publish(jump);
    kernel.settle();
    assert.ok(kernel.isGone, `a ring goes on whose index jumped by ${jump}`);
    assert.ok(kernel.log.some((line) => line.includes("makes no sense")));
    return 1;
  }

  #message(random: Random, kernel: RingKernel, context: SearchContext): number {
    const message = 1 + random.below(255);
    context.trace(`message ${message}`);
    kernel.message(message);
    kernel.settle();
    assert.equal(kernel.isGone, message === CLOSE_MESSAGE, `after message ${message}`);
    if (!kernel.isGone) {
      kernel.message(RESUME_MESSAGE);
      kernel.settle();
    }
    assert.equal(kernel.vbd.phase, "open");
    return 1;
  }

  #entry(random: Random, kernel: RingKernel, index: number): Entry {
    const last = BigInt(kernel.sectors);
    const any = random.chance(0.4) ? random.below(6) : -1;
    const good = random.below(kernel.sectors - 88);
    const near = last - BigInt(random.below(91)) + 1n;
    const segments = Array.from({ length: MOST_SEGMENTS }, (): [number, number] => {
      if (any === 0 && random.chance(0.3)) return hostileSegment(random);
      const first = random.chance(0.6) ? 0 : random.below(PAGE_SECTORS);
      return [first, random.chance(0.6) ? 7 : first + random.below(PAGE_SECTORS - first)];
    });
    const far = random.chance(0.5) ? near : hostileLong(random, [kernel.sectors]);
    return {
      id: any === 1 ? hostileLong(random, [RING_ENTRIES]) : BigInt(index),
      operation: any === 2
        ? random.below(256)
        : pick(random, [READ, READ, WRITE, WRITE, FLUSH, TRIM]),
      segmentCount: any === 3 ? random.below(256) : 1 + random.below(MOST_SEGMENTS),
      segments,
      sector: any === 4 ? far : BigInt(good),
      trimSectors: any === 5 ? far : BigInt(random.below(89)),
      word: this.#word = (this.#word + 1) & 0x7fff_ffff,
    };
  }

  /** Requests at once; all that have an id of their own are answered as the model says. */
  #batch(random: Random, kernel: RingKernel, context: SearchContext): number {
    const count = 1 + random.below(RING_ENTRIES);
    const entries = Array.from({ length: count }, (_, i) => this.#entry(random, kernel, i));
    context.trace(`${count} requests`);
    const pages = kernel.arena.bytes;
    // No sector of the model holds this.
    pages.fill(0xee, 4096);
    for (const entry of entries) put(kernel, entry);
    const before = pages.slice();
    kernel.publish();
    kernel.settle();
    if (hasSecondOfOneId(entries, kernel.sectors)) {
      assert.ok(kernel.isGone, "a ring goes on in which two requests have one id");
      this.#forget(entries, kernel);
      return count;
    }
    assert.ok(!kernel.isGone, kernel.log.join("; "));
    this.#check(kernel.responses(), entries, kernel, before);
    return count;
  }

  /** Nobody knows which requests of a ring that broke were carried out. */
  #forget(entries: readonly Entry[], kernel: RingKernel): void {
    this.#model.apply(changesOf(entries, kernel).map((change) => ({ ...change, isMaybe: true })));
  }

  #check(
    responses: readonly RingResponse[],
    entries: readonly Entry[],
    kernel: RingKernel,
    before: Uint8Array,
  ): void {
    const shown = (id: bigint, operation: number, status: number): string =>
      [id, operation, status].join(":");
    const wanted = entries.map((entry) =>
      shown(entry.id, entry.operation, statusOf(entry, kernel.sectors))
    );
    const got = responses.map(({ id, operation, status }) => shown(id, operation, status));
    assert.deepEqual(got.sort(), wanted.sort());
    const changes = changesOf(entries, kernel);
    const isBusy = (sector: number): boolean =>
      changes.some(({ first, count }) => sector >= first && sector < first + count);
    for (const entry of entries) {
      if (entry.operation !== READ || statusOf(entry, kernel.sectors) !== 0) continue;
      for (const [sector, at] of places(entry, kernel)) {
        const data = kernel.arena.bytes.subarray(at, at + 512);
        this.#model.check(sector, data, isBusy(sector));
        before.set(data, at);
      }
    }
    // With the data of reads, all is as it was.
    const now = kernel.arena.bytes;
    const isSame = Buffer.compare(now.subarray(4096), before.subarray(4096)) === 0;
    assert.ok(isSame, "a page changed that no read names");
    this.#model.apply(changes);
  }
}

/** A segment that ends at or beyond the limits of a page, before its start, or anywhere. */
function hostileSegment(random: Random): [number, number] {
  const limits = [0, 1, PAGE_SECTORS - 1, PAGE_SECTORS, PAGE_SECTORS + 1, 255];
  if (random.chance(0.3)) return [random.below(256), random.below(256)];
  return [pick(random, limits), pick(random, limits)];
}

function put(kernel: RingKernel, entry: Entry): void {
  const at = kernel.nextEntry();
  const { view } = kernel.arena;
  view.setUint8(at, entry.operation);
  view.setUint8(at + 1, entry.segmentCount);
  view.setBigUint64(at + 8, entry.id, true);
  view.setBigUint64(at + 16, entry.sector, true);
  entry.segments.forEach(([first, last], i) => {
    view.setUint8(at + 24 + 8 * i + 4, first);
    view.setUint8(at + 24 + 8 * i + 5, last);
  });
  if (entry.operation === TRIM) view.setBigUint64(at + 24, entry.trimSectors, true);
  if (entry.operation !== WRITE || statusOf(entry, kernel.sectors) !== 0) return;
  for (const [, place] of places(entry, kernel)) {
    const { bytes } = kernel.arena;
    new Uint32Array(bytes.buffer, bytes.byteOffset + place, 128).fill(entry.word);
  }
}

/** The sectors of a valid read or write, and where in the mapped memory each lies. */
function* places(entry: Entry, kernel: RingKernel): Generator<[sector: number, at: number]> {
  let sector = Number(entry.sector);
  for (const [index, [first, last]] of entry.segments.slice(0, entry.segmentCount).entries()) {
    for (let i = first; i <= last; i++) {
      yield [sector++, kernel.pageAt(Number(entry.id), index) + i * 512];
    }
  }
}

function statusOf(entry: Entry, sectors: number): number {
  const { id, operation, segmentCount, sector } = entry;
  if (id >= BigInt(RING_ENTRIES)) return -1;
  if (operation > TRIM) return -2;
  if (operation === FLUSH) return 0;
  if (operation === TRIM) return sector + entry.trimSectors > BigInt(sectors) ? -1 : 0;
  if (segmentCount < 1 || segmentCount > MOST_SEGMENTS) return -1;
  const segments = entry.segments.slice(0, segmentCount);
  if (segments.some(([first, last]) => first > last || last >= PAGE_SECTORS)) return -1;
  const count = segments.reduce((sum, [first, last]) => sum + last - first + 1, 0);
  return sector + BigInt(count) > BigInt(sectors) ? -1 : 0;
}

/** Whether a request has the id of one before it that is under way. */
function hasSecondOfOneId(entries: readonly Entry[], sectors: number): boolean {
  return entries.some((entry, index) =>
    entries.slice(0, index).some((earlier) =>
      earlier.id === entry.id && statusOf(earlier, sectors) === 0
    )
  );
}

function changesOf(entries: readonly Entry[], kernel: RingKernel): WordChange[] {
  return entries.flatMap((entry) => {
    const isTrim = entry.operation === TRIM;
    if ((entry.operation !== WRITE && !isTrim) || statusOf(entry, kernel.sectors) !== 0) return [];
    const first = Number(entry.sector);
    const count = isTrim ? Number(entry.trimSectors) : [...places(entry, kernel)].length;
    return [{ first, count, word: isTrim ? 0 : entry.word, isMaybe: isTrim }];
  });
}

export const target: Target = new Blktap2Target();
