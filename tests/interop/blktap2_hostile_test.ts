import assert from "node:assert/strict";
import fc from "fast-check";
import { Random } from "../../src/testing/random.ts";
import { PlayedKernel } from "../support/blktap2/played_kernel.ts";
import {
  READ,
  sectorMemory,
  sectorsOf,
  type Segment,
  TRIM,
  WRITE,
} from "../support/blktap2/ring_disk.ts";

/** A failed run is repeated with its seed in BLKTAP_TEST_SEED. */
const SEED = Number(
  Deno.env.get("BLKTAP_TEST_SEED") ?? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1,
);
const RUNS = 150;
const DISK_SECTORS = 2048;
const PAGE = 4096;
const FREE = "control 201 7";
const BACKGROUND = 0x5a;

/** A request as the driver may put it into the ring, valid or invalid. */
interface Entry {
  /** The id of the request; null: its index in the round. */
  readonly id: bigint | null;
  readonly operation: number;
  readonly segmentCount: number;
  readonly segments: readonly Segment[];
  readonly sector: bigint;
  readonly trimSectors: bigint;
  readonly data: number;
}

interface Round {
  readonly entries: readonly Entry[];
  /** Whether the driver overwrites the requests while the tapdisk reads them. */
  readonly scribble: boolean;
}

const anyByte = fc.integer({ min: 0, max: 255 });
const goodSegment = fc.tuple(fc.integer({ min: 0, max: 7 }), fc.integer({ min: 0, max: 7 }))
  .map(([a, b]): Segment => [Math.min(a, b), Math.max(a, b)]);
const anySegment = fc.oneof(
  { weight: 12, arbitrary: goodSegment },
  { weight: 6, arbitrary: fc.constant<Segment>([0, 7]) },
  { weight: 1, arbitrary: fc.tuple(anyByte, anyByte) },
);
const anyNumber = fc.oneof(
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  fc.bigInt({ min: BigInt(DISK_SECTORS) - 90n, max: BigInt(DISK_SECTORS) + 90n }),
  fc.constantFrom(2n ** 31n, 2n ** 32n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n),
);
const goodNumber = fc.bigInt({ min: 0n, max: BigInt(DISK_SECTORS) - 89n });
const mostly = <T>(good: fc.Arbitrary<T>, any: fc.Arbitrary<T>): fc.Arbitrary<T> =>
  fc.oneof({ weight: 9, arbitrary: good }, { weight: 1, arbitrary: any });

const anyEntry: fc.Arbitrary<Entry> = fc.record({
  id: mostly<bigint | null>(fc.constant(null), anyNumber.map((id) => id < 32n ? id + 32n : id)),
  operation: mostly(fc.constantFrom(0, 0, 1, 1, 2, 3), anyByte),
  segmentCount: mostly(fc.integer({ min: 1, max: 11 }), anyByte),
  segments: fc.array(anySegment, { minLength: 11, maxLength: 11 }),
  sector: mostly(goodNumber, anyNumber),
  trimSectors: mostly(fc.bigInt({ min: 0n, max: 89n }), anyNumber),
  data: fc.integer({ min: 1, max: 2 ** 31 - 1 }),
});
const anyRound: fc.Arbitrary<Round> = fc.record({
  entries: fc.array(anyEntry, { minLength: 1, maxLength: 32 }),
  scribble: fc.integer({ min: 0, max: 9 }).map((dice) => dice === 0),
});
const anyRun = fc.record({
  rounds: fc.array(anyRound, { minLength: 1, maxLength: 6 }),
  /** The increment of the producer index at the end, without new requests. */
  jump: fc.oneof(
    { weight: 12, arbitrary: fc.constant(0) },
    { weight: 1, arbitrary: fc.integer({ min: 33, max: 2 ** 31 }) },
    { weight: 1, arbitrary: fc.integer({ min: -(2 ** 31), max: -1 }) },
  ),
});

/** The sectors that a request reads or writes; null for a request that must be refused. */
function transferOf(entry: Entry): { sector: number; segments: Segment[] } | null {
  const { operation, segmentCount, sector } = entry;
  if (entry.id !== null || (operation !== READ && operation !== WRITE)) return null;
  if (segmentCount < 1 || segmentCount > 11) return null;
  const segments = entry.segments.slice(0, segmentCount);
  if (segments.some(([first, last]) => first > last || last > 7)) return null;
  if (sector + BigInt(sectorsOf(segments)) > BigInt(DISK_SECTORS)) return null;
  return { sector: Number(sector), segments };
}

function statusOf(entry: Entry): number {
  if (entry.id !== null) return -1;
  if (entry.operation > 3) return -2;
  if (entry.operation === 2) return 0;
  if (entry.operation === TRIM) {
    return entry.sector + entry.trimSectors > BigInt(DISK_SECTORS) ? -1 : 0;
  }
  return transferOf(entry) === null ? -1 : 0;
}

/** The contents of a sector as one word; sectors of these tests hold copies of one word only. */
function wordOf(sector: Uint8Array): number {
  const words = new Uint32Array(sector.buffer, sector.byteOffset, 128);
  assert.ok(words.every((word) => word === words[0]), "a sector is torn");
  return words[0];
}

/** An arbitrary driver on the kernel's side, and a model of the disk on the other side. */
class Hostility {
  readonly #path: string;
  /** The contents of each sector. */
  #model = new Uint32Array(DISK_SECTORS);
  #kernel: PlayedKernel | null = null;

  constructor(readonly folder: string) {
    this.#path = `${folder}/disk.raw`;
    Deno.writeFileSync(this.#path, new Uint8Array(DISK_SECTORS * 512));
  }

  async kernel(): Promise<PlayedKernel> {
    this.#kernel ??= await PlayedKernel.start(this.folder, `aio:${this.#path}`);
    return this.#kernel;
  }

  /** The tapdisk has closed its device, as it should; the next round uses a new one. */
  async renew(): Promise<void> {
    await this.check();
    await this.#kernel?.close();
    this.#kernel = null;
    Deno.removeSync(`${this.folder}/kernel`);
  }

  async check(): Promise<void> {
    if (this.#kernel === null) return;
    assert.equal(await this.#kernel.order("guards"), true, "memory beside the ring has changed");
    assert.equal(Deno.statSync(this.#path).size, DISK_SECTORS * 512);
  }

  async close(): Promise<void> {
    await this.#kernel?.close();
  }

  #content(): Uint32Array<ArrayBuffer> {
    const bytes = Deno.readFileSync(this.#path);
    return Uint32Array.from(
      { length: DISK_SECTORS },
      (_, i) => wordOf(bytes.subarray(i * 512, (i + 1) * 512)),
    );
  }

  /** Puts the requests of a round into the ring. */
  #put(kernel: PlayedKernel, entries: readonly Entry[]): void {
    const { view } = kernel.arena;
    kernel.arena.bytes.fill(BACKGROUND, PAGE);
    for (const [index, entry] of entries.entries()) {
      const { operation, sector, trimSectors } = entry;
      const at = kernel.putRequest({
        operation,
        segments: entry.segmentCount,
        id: index,
        sector: 0,
      });
      if (entry.id !== null) view.setBigUint64(at + 8, entry.id, true);
      view.setBigUint64(at + 16, sector, true);
      if (operation === TRIM) view.setBigUint64(at + 24, trimSectors, true);
      else for (const [i, [a, b]] of entry.segments.entries()) kernel.setSegment(at, i, a, b);
      const transfer = transferOf(entry);
      if (transfer === null || operation !== WRITE) continue;
      for (const memory of sectorMemory(kernel, index, transfer.segments)) {
        new Uint32Array(memory.buffer, memory.byteOffset, 128).fill(entry.data);
      }
    }
  }

  /** The possible contents of each sector after the requests of a round, in any order. */
  #candidates(entries: readonly Entry[]): Map<number, Set<number>> {
    const candidates = new Map<number, Set<number>>();
    const add = (sector: number, word: number): void => {
      const set = candidates.get(sector) ?? new Set();
      candidates.set(sector, set.add(word));
    };
    for (const entry of entries) {
      const transfer = transferOf(entry);
      if (transfer !== null && entry.operation === WRITE) {
        const end = transfer.sector + sectorsOf(transfer.segments);
        for (let s = transfer.sector; s < end; s++) add(s, entry.data);
      }
      if (entry.operation !== TRIM || statusOf(entry) !== 0) continue;
      for (let s = entry.sector; s < entry.sector + entry.trimSectors; s++) {
        add(Number(s), 0);
        add(Number(s), this.#model[Number(s)]);
      }
    }
    return candidates;
  }

  /** A round whose responses, data and disk contents are all known in advance. */
  async quietRound(entries: readonly Entry[]): Promise<void> {
    const kernel = await this.kernel();
    this.#put(kernel, entries);
    const before = kernel.arena.bytes.slice();
    kernel.publish();
    const answers = await kernel.answers(entries.length);
    const wanted = entries.map((entry, index) =>
      [entry.id ?? BigInt(index), entry.operation, statusOf(entry)].join()
    );
    const got = answers.map(({ id, operation, status }) => [id, operation, status].join());
    assert.deepEqual(got.sort(), wanted.sort());
    const candidates = this.#candidates(entries);
    this.#checkReads(kernel, entries, candidates, before);
    assert.deepEqual(kernel.arena.bytes.subarray(PAGE), before.subarray(PAGE), "pages beside");
    this.#checkRingPage(kernel, before);
    this.#checkDisk(candidates);
  }

  /** Checks the data of reads and adds it to the known contents of the disk. */
  #checkReads(
    kernel: PlayedKernel,
    entries: readonly Entry[],
    candidates: Map<number, Set<number>>,
    before: Uint8Array,
  ): void {
    for (const [index, entry] of entries.entries()) {
      const transfer = transferOf(entry);
      if (transfer === null || entry.operation !== READ) continue;
      let { sector } = transfer;
      for (const memory of sectorMemory(kernel, index, transfer.segments)) {
        const word = wordOf(memory);
        const right = word === this.#model[sector] || candidates.get(sector)?.has(word);
        assert.ok(right, `sector ${sector} reads as ${word}`);
        before.set(memory, memory.byteOffset - kernel.arena.bytes.byteOffset);
        sector++;
      }
    }
  }

  /**
   * Checks that the tapdisk wrote nothing but responses, and their number, to the page of the ring.
   */
  #checkRingPage(kernel: PlayedKernel, before: Uint8Array): void {
    const page = kernel.arena.bytes.subarray(0, PAGE);
    for (const [from, to] of [[4, 8], [12, 64], [64 + 32 * 112, PAGE]]) {
      assert.deepEqual(page.subarray(from, to), before.subarray(from, to), `bytes from ${from}`);
    }
  }

  #checkDisk(candidates: Map<number, Set<number>>): void {
    const content = this.#content();
    for (let sector = 0; sector < DISK_SECTORS; sector++) {
      const word = content[sector];
      const right = candidates.get(sector)?.has(word) ?? word === this.#model[sector];
      assert.ok(right, `sector ${sector} holds ${word} instead of ${this.#model[sector]}`);
    }
    this.#model = content;
  }

  /**
   * A round that is overwritten while the tapdisk reads it: any change within the disk is
   * permitted.
   */
  async scribbledRound(entries: readonly Entry[]): Promise<void> {
    const kernel = await this.kernel();
    this.#put(kernel, entries);
    for (let at = PAGE; at < kernel.arena.sizeBytes; at += 512) {
      // With any data, a sector is not torn.
      new Uint32Array(kernel.arena.bytes.buffer, kernel.arena.bytes.byteOffset + at, 128).fill(at);
    }
    const random = new Random(entries[0].data);
    kernel.publish();
    const untilMs = performance.now() + 3;
    while (performance.now() < untilMs) {
      const entry = random.below(entries.length);
      const at = kernel.entryAt(kernel.put - entries.length + entry);
      kernel.arena.bytes[at + random.below(112)] = random.chance(0.5)
        ? random.below(12)
        : random.below(256);
    }
    const closed = () => kernel.calls.includes(FREE);
    await kernel.until(
      "all are answered or the ring is closed",
      () => closed() || kernel.waiting === entries.length,
    );
    if (closed()) return await this.#expectClosed(kernel);
    while (kernel.waiting > 0) kernel.takeAnswer();
    this.#model = this.#content();
  }

  async #expectClosed(kernel: PlayedKernel): Promise<void> {
    const log = (await kernel.order("log") as string[]).join("\n");
    assert.match(log, /Closing \/dev\/xen\/blktap-2\/tapdev7: its ring makes no sense \(.+\)/);
    this.#model = this.#content();
    await this.renew();
  }

  /** Sets an impossible producer index. */
  async jump(by: number): Promise<void> {
    const kernel = await this.kernel();
    kernel.put += by;
    kernel.publish();
    await kernel.until("the ring is closed", () => kernel.calls.includes(FREE));
    await this.#expectClosed(kernel);
  }
}

Deno.test(`requests of any kind do what they may, and nothing else (seed ${SEED})`, async () => {
  const folder = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "blktap-test-" });
  const hostility = new Hostility(folder);
  try {
    const property = fc.asyncProperty(anyRun, async ({ rounds, jump }) => {
      for (const { entries, scribble } of rounds) {
        if (scribble) await hostility.scribbledRound(entries);
        else await hostility.quietRound(entries);
      }
      if (jump !== 0) await hostility.jump(jump);
    });
    // A run starts with the disk of the previous run, so a failing case cannot be shrunk.
    await fc.assert(property, { seed: SEED, numRuns: RUNS, endOnFailure: true });
    await hostility.check();
  } finally {
    await hostility.close();
    Deno.removeSync(folder, { recursive: true });
  }
});
