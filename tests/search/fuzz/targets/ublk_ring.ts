/**
 * Descriptors of ublk requests with anything in them. Each has the result that it must have, reads
 * have the data of a model, and the memory of no other tag changes.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { memoryAt } from "../../../../ffi/libc.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { createDynamic } from "../../../../src/vhd/create.ts";
import { DEPTH, PlayedUblk, QUEUES } from "../../../support/played_ublk.ts";
import { type SimulatedDevice, Simulation } from "../../../support/sim.ts";
import type { SearchContext } from "../../search.ts";
import type { Target } from "../target.ts";
import { hostileLong, hostileWord, pick } from "../wire/choose.ts";
import { type WordChange, WordModel } from "../wire/word_model.ts";

const Op = { Read: 0, Write: 1, Flush: 2, Discard: 3, WriteZeroes: 5 } as const;
const KNOWN: readonly number[] = Object.values(Op);
const TAGS = QUEUES * DEPTH;
const SECTORS = 8 * 2048;
const MOST_SECTORS = 512;
const SLOT_BYTES = 256 * 1024;
const FLAG_FUA = 1 << 13;
const FLAG_NOUNMAP = 1 << 15;
const BATCHES = 10;
const POISON = 0xee;
const POISONED = new Uint8Array(SLOT_BYTES).fill(POISON);
const EIO = 5;
const ENOSPC = 28;
const EOPNOTSUPP = 95;

interface Request {
  readonly tag: number;
  readonly operation: number;
  readonly sector: bigint;
  readonly count: number;
  readonly word: number;
}

class UblkTarget implements Target {
  #device: SimulatedDevice | null = null;
  #kernel: PlayedUblk | null = null;
  readonly #model = new WordModel();
  #word = 0;

  setUp(): void {
    const simulation = new Simulation({ seed: 5, latencyMs: 3 });
    const storage = simulation.disk;
    createDynamic("/disk.vhd", { storage, sizeBytes: SECTORS * 512 });
    this.#device = simulation.open("vhd:/disk.vhd");
    this.#kernel = new PlayedUblk(this.#device);
  }

  run(random: Random, context: SearchContext): number {
    const [device, kernel] = [this.#device, this.#kernel];
    if (device === null || kernel === null) throw new TypeError("It is not set up");
    let cases = 0;
    for (let i = 0; i < BATCHES; i++) cases += this.#batch(random, { device, kernel }, context);
    return cases;
  }

  #request(random: Random, tag: number): Request {
    const good = pick(random, KNOWN);
    const flags = pick(random, [0, 0, FLAG_FUA, FLAG_NOUNMAP, hostileWord(random) & ~0xff]);
    const operation = random.chance(0.9) ? good : random.below(256);
    const count = 1 + random.below(random.chance(0.2) ? MOST_SECTORS : 24);
    const hostileCount = hostileWord(random, [MOST_SECTORS, SECTORS]);
    const sector = BigInt(random.below(SECTORS - count));
    return {
      tag,
      operation: (operation | flags) >>> 0,
      sector: random.chance(0.85) ? sector : hostileLong(random, [SECTORS]),
      count: random.chance(0.85) ? count : hostileCount,
      word: this.#word = (this.#word + 1) & 0x7fff_ffff,
    };
  }

  #batch(
    random: Random,
    { device, kernel }: { device: SimulatedDevice; kernel: PlayedUblk },
    context: SearchContext,
  ): number {
    const requests = Array.from({ length: TAGS }, (_, tag) => tag)
      .filter(() => random.chance(0.3)).map((tag) => this.#request(random, tag));
    context.trace(`${requests.length} requests`);
    for (const request of requests) this.#put(kernel, request);
    for (const { tag } of requests) kernel.deliver(tag);
    const { simulation } = device;
    const isThere = (): boolean => {
      kernel.take();
      return requests.every(({ tag }) => kernel.holds(tag));
    };
    simulation.runUntil(isThere, "A request");
    const changes = requests.flatMap((request) => changeOf(request));
    for (const request of requests) this.#check(kernel, request, changes);
    this.#model.apply(changes);
    return requests.length;
  }

  #put(kernel: PlayedUblk, { tag, operation, sector, count, word }: Request): void {
    kernel.describe(tag, operation, sector, count);
    const memory = new Uint8Array(memoryAt(kernel.addresses[tag], SLOT_BYTES));
    memory.fill(POISON);
    const isWrite = (operation & 0xff) === Op.Write && count <= MOST_SECTORS;
    if (isWrite) new Uint32Array(memory.buffer, 0, count * 128).fill(word);
  }

  #check(kernel: PlayedUblk, request: Request, changes: readonly WordChange[]): void {
    const { tag, operation, sector, count, word } = request;
    const what = JSON.stringify({ ...request, sector: `${sector}` });
    const wanted = resultOf(request);
    assert.equal(kernel.results[tag], wanted, what);
    const memory = new Uint8Array(memoryAt(kernel.addresses[tag], SLOT_BYTES));
    const isRead = (operation & 0xff) === Op.Read && wanted > 0;
    const isWrite = (operation & 0xff) === Op.Write && count <= MOST_SECTORS;
    const used = isRead || isWrite ? count * 512 : 0;
    const isUntouched = Buffer.compare(memory.subarray(used), POISONED.subarray(used)) === 0;
    assert.ok(isUntouched, `memory behind ${what}`);
    const first = Number(sector);
    for (let i = 0; isRead && i < count; i++) {
      const isBusy = changes.some((change) =>
        first + i >= change.first && first + i < change.first + change.count
      );
      this.#model.check(first + i, memory.subarray(i * 512, (i + 1) * 512), isBusy);
    }
    const data = new Uint8Array(new Uint32Array(used / 4).fill(word).buffer);
    const isKept = !isWrite || Buffer.compare(data, memory.subarray(0, used)) === 0;
    assert.ok(isKept, `the memory of ${what}`);
  }

  tearDown(): void {
    this.#kernel?.stop();
    this.#kernel?.close();
  }
}

/** What the kernel must get for a request: bytes, 0, or a negative errno. */
function resultOf({ operation, sector, count }: Request): number {
  const kind = operation & 0xff;
  const isData = kind === Op.Read || kind === Op.Write;
  if (!KNOWN.includes(kind) || (isData && count > MOST_SECTORS)) return -EOPNOTSUPP;
  if (kind === Op.Flush) return 0;
  if (sector + BigInt(count) > BigInt(SECTORS)) return kind === Op.Write ? -ENOSPC : -EIO;
  return isData ? count * 512 : 0;
}

function changeOf(request: Request): WordChange[] {
  const kind = request.operation & 0xff;
  const changes = kind === Op.Write || kind === Op.WriteZeroes || kind === Op.Discard;
  if (!changes || resultOf(request) < 0) return [];
  return [{
    first: Number(request.sector),
    count: request.count,
    word: kind === Op.Write ? request.word : 0,
    isMaybe: kind === Op.Discard,
  }];
}

export const target: Target = new UblkTarget();
