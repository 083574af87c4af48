import { assert } from "../../ffi/assert.ts";
import { Errno, errnoName } from "../../ffi/errno.ts";
import { copySectors } from "../../ffi/memory.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import { type ImageDriver, type ImageSpec, REQUEST_SLOTS, type RequestSink } from "./driver.ts";
import { FilterImage } from "./filter.ts";

/** Runs of sectors of one read that are kept; more are read, and not kept. */
const MOST_RUNS = 8;
/** How long nothing is kept after an image had no room for it, or failed. */
const REST_MS = 60_000;

/** What a slot does. */
const Doing = {
  Nothing: 0,
  Reading: 1,
  /** A change of a client is at the image. */
  Changing: 2,
  /** A change of a client waits for the end of a store that it meets. */
  Held: 3,
  /** What was read is being written to the image. */
  Storing: 4,
} as const;

/** Which change of a client a slot has. */
const Change = { Write: 0, Zero: 1, Fill: 2, Discard: 3 } as const;

/** Slots for requests that an image makes itself. */
export interface OwnSlots {
  /** Takes a slot and room for a write of so many sectors; -1 when clients need them. */
  takeOwn(sectors: number): number;
  /** Gives such a slot back, whose request has ended. */
  giveOwn(slot: number): void;
  /** Sector of I/O memory at which a slot's memory begins. */
  slotSector(slot: number): number;
}

/**
 * Keeps in an image what is read from the images below it, so that it is read there only once. As in
 * the original, the image is a copy on fast storage, and the images below are on shared storage.
 *
 * This filter stands in front of the image; `LocalCacheBelow` stands below it and tells which sectors
 * the image lacked. They are written after the read has ended, in slots that clients do not need. Two
 * rules keep a client's data: what it changed since a read began is not stored, and a change waits for
 * the end of a store that it meets. An image without room is as it was: nothing is stored for a while.
 */
class LocalCache extends FilterImage implements RequestSink {
  override readonly sinkBelow = this;
  override readonly isUnlisted = true;
  readonly #sink: RequestSink;
  readonly #slots: OwnSlots;
  readonly #scheduler: Scheduler;
  readonly #log: (message: string) => void;
  readonly #doing = new Uint8Array(REQUEST_SLOTS);
  readonly #sector = new Float64Array(REQUEST_SLOTS);
  readonly #count = new Float64Array(REQUEST_SLOTS);
  readonly #left = new Float64Array(REQUEST_SLOTS);
  readonly #change = new Uint8Array(REQUEST_SLOTS);
  readonly #memory = new Int32Array(REQUEST_SLOTS);
  readonly #error = new Int32Array(REQUEST_SLOTS);
  /** Of a read: whether what it brings may be stored, and the runs that the image lacked. */
  readonly #mayStore = new Uint8Array(REQUEST_SLOTS);
  readonly #runs = new Uint8Array(REQUEST_SLOTS);
  readonly #runSector = new Float64Array(REQUEST_SLOTS * MOST_RUNS);
  readonly #runCount = new Int32Array(REQUEST_SLOTS * MOST_RUNS);
  readonly #runMemory = new Int32Array(REQUEST_SLOTS * MOST_RUNS);
  /** How many slots do what, by `Doing`. */
  readonly #doers = new Int32Array(Doing.Storing + 1);
  #restsUntilMs = 0;

  /** @param spec The image. */
  constructor(
    spec: ImageSpec,
    { sink, slots, scheduler, log }: LocalCacheWish & { sink: RequestSink },
  ) {
    super(spec, spec);
    this.#sink = sink;
    this.#slots = slots;
    this.#scheduler = scheduler;
    this.#log = log;
  }

  #set(slot: number, doing: number): void {
    this.#doers[this.#doing[slot]]--;
    this.#doers[doing]++;
    this.#doing[slot] = doing;
  }

  #note(slot: number, doing: number, sector: number, count: number): void {
    this.#set(slot, doing);
    this.#sector[slot] = sector;
    this.#count[slot] = count;
    this.#left[slot] = count;
    this.#error[slot] = 0;
  }

  /** Whether a slot that does this has some of these sectors. */
  #meets(doing: number, sector: number, count: number): boolean {
    if (this.#doers[doing] === 0) return false;
    for (let slot = 0; slot < REQUEST_SLOTS; slot++) {
      if (this.#doing[slot] === doing && this.#overlaps(slot, sector, count)) return true;
    }
    return false;
  }

  #overlaps(slot: number, sector: number, count: number): boolean {
    return this.#sector[slot] < sector + count && sector < this.#sector[slot] + this.#count[slot];
  }

  // ---- reads ------------------------------------------------------------------------------

  override read(slot: number, sector: number, count: number, memorySector: number): void {
    const isChanging = this.#meets(Doing.Changing, sector, count) ||
      this.#meets(Doing.Held, sector, count);
    const rests = this.#scheduler.lastMs[0] < this.#restsUntilMs;
    this.#note(slot, Doing.Reading, sector, count);
    this.#mayStore[slot] = isChanging || rests ? 0 : 1;
    this.#runs[slot] = 0;
    this.below.read(slot, sector, count, memorySector);
  }

  /** The image lacks sectors that a read asks for, and reads them from below. */
  noteMiss(slot: number, sector: number, count: number, memorySector: number): void {
    if (this.#doing[slot] !== Doing.Reading || this.#mayStore[slot] === 0) return;
    const runs = this.#runs[slot];
    if (runs > 0) {
      const last = slot * MOST_RUNS + runs - 1;
      if (this.#runSector[last] + this.#runCount[last] === sector) {
        this.#runCount[last] += count;
        return;
      }
    }
    if (runs === MOST_RUNS) return;
    const run = slot * MOST_RUNS + runs;
    this.#runSector[run] = sector;
    this.#runCount[run] = count;
    this.#runMemory[run] = memorySector;
    this.#runs[slot] = runs + 1;
  }

  pieceDone(slot: number, sectors: number, errno: number): void {
    const doing = this.#doing[slot];
    if (doing === Doing.Nothing) return this.#sink.pieceDone(slot, sectors, errno);
    if (errno !== 0 && this.#error[slot] === 0) this.#error[slot] = errno;
    this.#left[slot] -= sectors;
    if (this.#left[slot] === 0) {
      this.#set(slot, Doing.Nothing);
      if (doing === Doing.Storing) return this.#stored(slot);
      // The data is in the memory of the request only until the request has ended.
      if (doing === Doing.Reading) this.#store(slot);
    }
    if (doing !== Doing.Storing) this.#sink.pieceDone(slot, sectors, errno);
  }

  /** Writes what a read brought to the image. */
  #store(slot: number): void {
    if (this.#mayStore[slot] === 0 || this.#error[slot] !== 0) return;
    for (let i = 0; i < this.#runs[slot]; i++) {
      const run = slot * MOST_RUNS + i;
      const sector = this.#runSector[run];
      const count = this.#runCount[run];
      if (this.#meets(Doing.Storing, sector, count)) continue;
      const own = this.#slots.takeOwn(count);
      if (own < 0) return;
      const memorySector = this.#slots.slotSector(own);
      copySectors(memorySector, this.#runMemory[run], count);
      this.#note(own, Doing.Storing, sector, count);
      this.below.write(own, sector, count, memorySector);
    }
  }

  #stored(own: number): void {
    const errno = this.#error[own];
    this.#slots.giveOwn(own);
    if (errno !== 0) this.#rest(errno);
    if (this.#doers[Doing.Held] === 0) return;
    for (let slot = 0; slot < REQUEST_SLOTS; slot++) {
      if (this.#doing[slot] !== Doing.Held) continue;
      if (this.#meets(Doing.Storing, this.#sector[slot], this.#count[slot])) continue;
      this.#set(slot, Doing.Changing);
      this.#makeChange(slot);
    }
  }

  #rest(errno: number): void {
    const nowMs = this.#scheduler.nowMs();
    if (nowMs >= this.#restsUntilMs) {
      const why = errno === Errno.ENOSPC ? "it has no room" : errnoName(errno);
      const what = `${this.spec.path} does not keep what is read from below it (${why})`;
      this.#log(`${what}; it tries again in ${REST_MS / 1000} seconds`);
    }
    this.#restsUntilMs = nowMs + REST_MS;
  }

  // ---- changes ----------------------------------------------------------------------------

  override write(slot: number, sector: number, count: number, memorySector: number): void {
    this.#begin(Change.Write, slot, sector, count, memorySector);
  }

  override zero(slot: number, sector: number, count: number): void {
    this.#begin(Change.Zero, slot, sector, count, 0);
  }

  override fill(slot: number, sector: number, count: number): void {
    this.#begin(Change.Fill, slot, sector, count, 0);
  }

  override discard(slot: number, sector: number, count: number): void {
    this.#begin(Change.Discard, slot, sector, count, 0);
  }

  #begin(change: number, slot: number, sector: number, count: number, memorySector: number): void {
    this.#change[slot] = change;
    this.#memory[slot] = memorySector;
    if (this.#doers[Doing.Reading] > 0) this.#forbidStores(sector, count);
    const isHeld = this.#meets(Doing.Storing, sector, count);
    this.#note(slot, isHeld ? Doing.Held : Doing.Changing, sector, count);
    if (!isHeld) this.#makeChange(slot);
  }

  /** What reads under way bring of these sectors is older than what the client writes now. */
  #forbidStores(sector: number, count: number): void {
    for (let slot = 0; slot < REQUEST_SLOTS; slot++) {
      if (this.#doing[slot] !== Doing.Reading) continue;
      if (this.#overlaps(slot, sector, count)) this.#mayStore[slot] = 0;
    }
  }

  #makeChange(slot: number): void {
    const sector = this.#sector[slot];
    const count = this.#count[slot];
    switch (this.#change[slot]) {
      case Change.Write:
        return this.below.write(slot, sector, count, this.#memory[slot]);
      case Change.Zero:
        return this.below.zero(slot, sector, count);
      case Change.Fill:
        return this.below.fill(slot, sector, count);
      default:
        return this.below.discard(slot, sector, count);
    }
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    return this.#sink.extent(slot, sectors, isData);
  }

  statusDone(slot: number, errno: number): void {
    this.#sink.statusDone(slot, errno);
  }

  override abandon(): void {
    for (let slot = 0; slot < REQUEST_SLOTS; slot++) {
      if (this.#doing[slot] !== Doing.Storing) continue;
      this.#set(slot, Doing.Nothing);
      this.#slots.giveOwn(slot);
    }
  }
}

/** Stands below an image with a `LocalCache` and counts what is read below it. */
export class LocalCacheBelow extends FilterImage {
  /** DISK_TYPE_LCACHE of the original. */
  readonly typeNumber = 11;
  readonly #cache: LocalCache;

  constructor(spec: ImageSpec, cache: LocalCache) {
    super({ ...spec, type: "lc" }, spec);
    this.#cache = cache;
  }

  override read(slot: number, sector: number, count: number, memorySector: number): void {
    this.counts.readSectors += count;
    this.#cache.noteMiss(slot, sector, count, memorySector);
    this.below.read(slot, sector, count, memorySector);
  }
}

/** What a local cache needs of its device. */
export interface LocalCacheWish {
  readonly slots: OwnSlots;
  readonly scheduler: Scheduler;
  readonly log: (message: string) => void;
}

/** The two parts of a local cache: in front of the image, and below it. */
export function localCache(
  spec: ImageSpec,
  wish: LocalCacheWish,
): { front: (sink: RequestSink) => ImageDriver; below: () => ImageDriver } {
  let cache: LocalCache | null = null;
  return {
    front(sink): ImageDriver {
      cache = new LocalCache(spec, { ...wish, sink });
      return cache;
    },
    below(): ImageDriver {
      assert(cache !== null, "The front of a local cache is made first");
      return new LocalCacheBelow(spec, cache);
    },
  };
}

/** Whether an image can have a local cache: it has images below it, and can be written. */
export function canCache({ parent, spec }: ImageDriver): boolean {
  return parent !== null && !spec.readOnly;
}
