/**
 * A disk on the kernel's side of a ring: single requests with their data, and a load that checks
 * every sector that it reads.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Random } from "../../../src/testing/random.ts";
import type { PlayedKernel, RingAnswer } from "./played_kernel.ts";

export const READ = 0;
export const WRITE = 1;
export const FLUSH = 2;
export const TRIM = 3;

const SECTOR_BYTES = 512;
const SECTOR_WORDS = 128;
const RING_ENTRIES = 32;
const MOST_SEGMENTS = 11;
const IDLE = -1;

/** A segment of a request: the first and last sector in its page. */
export type Segment = readonly [number, number];

export function sectorsOf(segments: readonly Segment[]): number {
  return segments.reduce((sum, [first, last]) => sum + last - first + 1, 0);
}

/** The memory of each sector of a request's data, in order. */
export function* sectorMemory(
  kernel: PlayedKernel,
  id: number,
  segments: readonly Segment[],
): Generator<Uint8Array> {
  for (const [index, [first, last]] of segments.entries()) {
    for (let sector = first; sector <= last; sector++) {
      const at = kernel.pageAt(id, index) + sector * SECTOR_BYTES;
      yield kernel.arena.bytes.subarray(at, at + SECTOR_BYTES);
    }
  }
}

/** Adds a read or a write with the given segments. */
export function putTransfer(
  kernel: PlayedKernel,
  operation: number,
  { id, sector, segments }: { id: number; sector: number; segments: readonly Segment[] },
): void {
  const at = kernel.putRequest({ operation, segments: segments.length, id, sector });
  for (const [index, [first, last]] of segments.entries()) {
    kernel.setSegment(at, index, first, last);
  }
}

/** Writes `data` and waits for the response. */
export async function writeSectors(
  kernel: PlayedKernel,
  data: Uint8Array,
  place: { id: number; sector: number; segments: readonly Segment[] },
): Promise<RingAnswer> {
  let offset = 0;
  for (const memory of sectorMemory(kernel, place.id, place.segments)) {
    memory.set(data.subarray(offset, offset + SECTOR_BYTES));
    offset += SECTOR_BYTES;
  }
  putTransfer(kernel, WRITE, place);
  kernel.publish();
  return (await kernel.answers(1))[0];
}

/** Reads and waits for the response. */
export async function readSectors(
  kernel: PlayedKernel,
  place: { id: number; sector: number; segments: readonly Segment[] },
): Promise<{ answer: RingAnswer; data: Uint8Array }> {
  putTransfer(kernel, READ, place);
  kernel.publish();
  const [answer] = await kernel.answers(1);
  const data = new Uint8Array(sectorsOf(place.segments) * SECTOR_BYTES);
  let offset = 0;
  for (const memory of sectorMemory(kernel, place.id, place.segments)) {
    data.set(memory, offset);
    offset += SECTOR_BYTES;
  }
  return { answer, data };
}

export interface LoadOptions {
  readonly seed: number;
  readonly sectors: number;
  readonly requests: number;
  readonly depth: number;
  /** The share of writes among all requests. */
  readonly writes: number;
  readonly flushes?: number;
  /** Segments of every request, whole pages; without it any number, of any sectors. */
  readonly wholePages?: number;
  /** Whether every sector is written and checked. */
  readonly verify: boolean;
}

/** A load at full queue depth whose data is checked. It allocates only at the start. */
export class RingLoad {
  /** Requests that have ended. */
  ended = 0;
  readonly #kernel: PlayedKernel;
  readonly #random: Random;
  readonly #options: LoadOptions;
  readonly #words: Int32Array<ArrayBuffer>;
  /** By sector: its stamp; 0 for zeros. */
  readonly #stamps: Uint32Array;
  readonly #operation = new Int32Array(RING_ENTRIES).fill(IDLE);
  readonly #sector = new Int32Array(RING_ENTRIES);
  readonly #count = new Int32Array(RING_ENTRIES);
  readonly #segments = new Int32Array(RING_ENTRIES);
  readonly #first = new Uint8Array(RING_ENTRIES * MOST_SEGMENTS);
  readonly #last = new Uint8Array(RING_ENTRIES * MOST_SEGMENTS);
  #stamp = 0;
  #started = 0;
  #underWay = 0;

  constructor(kernel: PlayedKernel, options: LoadOptions) {
    this.#kernel = kernel;
    this.#options = options;
    this.#random = new Random(options.seed);
    this.#words = new Int32Array(kernel.arena.bytes.buffer);
    this.#stamps = new Uint32Array(options.sectors);
  }

  /** Runs to the end. Throws for a wrong response or wrong data. */
  async run(): Promise<void> {
    const { requests } = this.#options;
    let silentMs = 0;
    while (this.ended < requests) {
      this.#startSome();
      const before = this.ended;
      this.#takeAnswers();
      if (this.ended > before) {
        silentMs = 0;
        continue;
      }
      if (this.#kernel.hear(10)) continue;
      silentMs += 10;
      if (silentMs > 20_000) throw new Error(`No answer after ${this.ended} requests`);
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
  }

  #startSome(): void {
    const { requests, depth } = this.#options;
    let any = false;
    for (let id = 0; id < RING_ENTRIES && this.#underWay < depth; id++) {
      if (this.#started === requests) break;
      if (this.#operation[id] === IDLE) any = this.#start(id) || any;
    }
    if (any) this.#kernel.publish();
  }

  /** Starts a request; false when its random place has another request in flight. */
  #start(id: number): boolean {
    const random = this.#random;
    const { wholePages = 0, sectors, writes, flushes = 0 } = this.#options;
    const segments = wholePages || 1 + random.below(random.chance(0.2) ? MOST_SEGMENTS : 3);
    let count = 0;
    for (let i = id * MOST_SEGMENTS; i < id * MOST_SEGMENTS + segments; i++) {
      const whole = wholePages > 0 || random.chance(0.7);
      this.#first[i] = whole ? 0 : random.below(8);
      this.#last[i] = whole ? 7 : this.#first[i] + random.below(8 - this.#first[i]);
      count += this.#last[i] - this.#first[i] + 1;
    }
    const room = sectors - count + 1;
    const sector = wholePages > 0 ? random.below(room >> 3) << 3 : random.below(room);
    const dice = random.next();
    const operation = dice < flushes ? FLUSH : dice < flushes + writes ? WRITE : READ;
    if (operation !== FLUSH && this.#isTaken(sector, count, operation)) return false;
    this.#operation[id] = operation;
    this.#sector[id] = sector;
    this.#count[id] = operation === FLUSH ? 0 : count;
    this.#segments[id] = segments;
    if (operation === WRITE) this.#fill(id);
    const at = this.#kernel.putRequest({
      operation,
      segments: operation === FLUSH ? 0 : segments,
      id,
      sector: operation === FLUSH ? 0 : sector,
    });
    for (let i = 0; i < segments && operation !== FLUSH; i++) {
      const index = id * MOST_SEGMENTS + i;
      this.#kernel.setSegment(at, i, this.#first[index], this.#last[index]);
    }
    this.#started++;
    this.#underWay++;
    return true;
  }

  #isTaken(sector: number, count: number, operation: number): boolean {
    for (let id = 0; id < RING_ENTRIES; id++) {
      if (this.#operation[id] === IDLE || this.#operation[id] === FLUSH) continue;
      if (operation === READ && this.#operation[id] === READ) continue;
      const apart = sector + count <= this.#sector[id] ||
        this.#sector[id] + this.#count[id] <= sector;
      if (!apart) return true;
    }
    return false;
  }

  /** Fills the sectors of a write: the sector number in the first word, the stamp in all others. */
  #fill(id: number): void {
    if (!this.#options.verify) return;
    const stamp = ++this.#stamp;
    let sector = this.#sector[id];
    for (let i = 0; i < this.#segments[id]; i++) {
      const index = id * MOST_SEGMENTS + i;
      for (let in_ = this.#first[index]; in_ <= this.#last[index]; in_++) {
        const at = (this.#kernel.pageAt(id, i) >> 2) + in_ * SECTOR_WORDS;
        this.#words.fill(stamp, at, at + SECTOR_WORDS);
        this.#words[at] = sector;
        this.#stamps[sector++] = stamp;
      }
    }
  }

  #takeAnswers(): void {
    const kernel = this.#kernel;
    const { view } = kernel.arena;
    for (let left = kernel.waiting; left > 0; left--) {
      const at = kernel.entryAt(kernel.taken++);
      const id = view.getUint32(at, true);
      const operation = view.getUint8(at + 8);
      const status = view.getInt16(at + 10, true);
      const right = view.getUint32(at + 4, true) === 0 && id < RING_ENTRIES && status === 0 &&
        this.#operation[id] === operation;
      if (!right) {
        throw new Error(`Request ${id} (${this.#operation[id]}): ${operation} ended ${status}`);
      }
      if (operation === READ && this.#options.verify) this.#verify(id);
      this.#operation[id] = IDLE;
      this.#underWay--;
      this.ended++;
    }
  }

  #verify(id: number): void {
    let sector = this.#sector[id];
    for (let i = 0; i < this.#segments[id]; i++) {
      const index = id * MOST_SEGMENTS + i;
      for (let in_ = this.#first[index]; in_ <= this.#last[index]; in_++) {
        const at = (this.#kernel.pageAt(id, i) >> 2) + in_ * SECTOR_WORDS;
        const stamp = this.#stamps[sector] | 0;
        let wrong = this.#words[at] ^ (stamp === 0 ? 0 : sector);
        for (let word = 1; word < SECTOR_WORDS; word++) wrong |= this.#words[at + word] ^ stamp;
        if (wrong !== 0) {
          assert.fail(`Sector ${sector} of request ${id} holds something else than ${stamp}`);
        }
        sector++;
      }
    }
  }
}
