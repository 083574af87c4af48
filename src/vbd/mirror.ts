import { assert } from "../../ffi/assert.ts";
import { type Done, Errno, errnoName, SystemError } from "../../ffi/errno.ts";
import {
  type ImageDriver,
  type ImageSpec,
  REQUEST_SLOTS,
  type RequestSink,
} from "../driver/driver.ts";
import { FilterImage } from "../driver/filter.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import type { Redirects } from "./redirects.ts";
import type { Second, SecondSink } from "./second.ts";
import { RequestKind } from "./slots.ts";

/**
 * How long the secondary image may take for one request, while the image itself has the data as
 * well. A client waits no longer than that, and `LOOK_MS`, for the secondary image.
 */
const SECONDARY_TIMEOUT_MS = 10_000;
/** How often the oldest request to the secondary image is looked at. */
const LOOK_MS = 1_000;

/** What writes do. */
const MirrorMode = {
  /** They go to the image alone; the secondary image takes over when that is full. */
  Standby: 0,
  /** They go to both images. */
  Mirror: 1,
  /** The image is full: they go to the secondary image alone. */
  Redirect: 2,
  /** The secondary image has failed: they go to the image alone. */
  Off: 3,
} as const;
/** One of `MirrorMode`. */
type MirrorMode = (typeof MirrorMode)[keyof typeof MirrorMode];

/** What a request is doing; a union of bits. */
const Part = {
  /** The leaf has not ended it. */
  Leaf: 1,
  /** The secondary image has not ended it. */
  Second: 2,
  /** The leaf lacked room for it: the secondary image alone has the data. */
  Redirected: 4,
  /** It is a read, one run of sectors after the other. */
  Reading: 8,
  /** The loop that starts its runs is in a call. */
  Calling: 16,
  /** The secondary image has it. */
  Held: 32,
} as const;

const WAITING = Part.Leaf | Part.Second;

/** What a mirror tells its device. */
export interface MirrorKeeper {
  /** Whether the leaf was full, so that sectors are at the secondary image alone. */
  readonly isFull: boolean;
  /** Which sectors, of a disk of so many. Throws `SystemError` EFBIG, ENOMEM. */
  redirectsOf(sectors: number): Redirects;
  /** The leaf is full now. */
  leafFull(): void;
  /** The secondary image has failed and is not used any more. */
  mirrorFailed(why: SystemError): void;
  /** A write of so many sectors went to the secondary image alone. */
  redirected(sectors: number): void;
}

/**
 * A filter in front of an image that has a secondary image. While both are there, what is acknowledged
 * is on both. When the image is full, it is only read from then on: what is written goes to the secondary
 * image, and a map in memory tells which sectors are there.
 */
export class MirrorImage extends FilterImage implements RequestSink, SecondSink {
  override readonly sinkBelow = this;
  override readonly isUnlisted = true;
  readonly second: Second;
  readonly #sink: RequestSink;
  readonly #scheduler: Scheduler;
  readonly #keeper: MirrorKeeper;
  #mode: MirrorMode;
  #map: Redirects | null = null;
  /** Whether the secondary image has been closed, or will be. */
  #isLeft = false;
  /** By slot: a union of `Part` bits, and the request. */
  readonly #parts = new Uint8Array(REQUEST_SLOTS);
  readonly #kind = new Uint8Array(REQUEST_SLOTS);
  readonly #sector = new Float64Array(REQUEST_SLOTS);
  readonly #count = new Float64Array(REQUEST_SLOTS);
  readonly #memory = new Int32Array(REQUEST_SLOTS);
  /** Sectors that the leaf has not ended, and how far a read has come. */
  readonly #leafLeft = new Float64Array(REQUEST_SLOTS);
  readonly #progress = new Float64Array(REQUEST_SLOTS);
  readonly #leafError = new Int32Array(REQUEST_SLOTS);
  readonly #error = new Int32Array(REQUEST_SLOTS);
  readonly #startMs = new Float64Array(REQUEST_SLOTS);
  #lookTimer = 0;
  readonly #look = (): void => this.#checkOldest();

  constructor(
    leaf: ImageSpec,
    { secondFor, standby, sink, scheduler, keeper }: {
      /** Makes the secondary image, which tells this mirror of the ends of requests. */
      secondFor: (mirror: SecondSink) => Second;
      standby: boolean;
      sink: RequestSink;
      scheduler: Scheduler;
      keeper: MirrorKeeper;
    },
  ) {
    super(leaf, leaf);
    this.second = secondFor(this);
    this.#sink = sink;
    this.#scheduler = scheduler;
    this.#keeper = keeper;
    this.#mode = standby ? MirrorMode.Standby : MirrorMode.Mirror;
    if (keeper.isFull) this.#mode = MirrorMode.Redirect;
  }

  /** Whether reads ask the secondary image: before the leaf, behind it, or not at all. */
  get reads(): "before" | "behind" | "not" {
    if (this.#mode === MirrorMode.Redirect) return "before";
    return this.#mode === MirrorMode.Mirror ? "behind" : "not";
  }

  override get zeroSectors(): number {
    return Math.min(this.below.zeroSectors, this.second.zeroSectors);
  }

  override get fillSectors(): number {
    return Math.min(this.below.fillSectors, this.second.fillSectors);
  }

  override operationsFor(sectors: number): number {
    return this.below.operationsFor(sectors) + this.second.operationsFor(sectors);
  }

  /** @throws {SystemError} EINVAL for disks of two sizes. */
  override putBelow(below: ImageDriver): void {
    super.putBelow(below);
    const { name, sectors } = this.second;
    if (sectors !== below.sectors) {
      const sizes = `it has ${sectors} sectors, and ${below.spec.path} has ${below.sectors}`;
      throw new SystemError(Errno.EINVAL, `Cannot use the secondary image ${name} (${sizes})`);
    }
    this.#map = this.#keeper.redirectsOf(sectors);
  }

  get #redirects(): Redirects {
    assert(this.#map !== null, "A mirror has an image below it");
    return this.#map;
  }

  // ---- writes -----------------------------------------------------------------------------

  override write(slot: number, sector: number, count: number, memorySector: number): void {
    if (!this.#begin(slot, RequestKind.Write, sector, count, memorySector)) return;
    this.below.write(slot, sector, count, memorySector);
  }

  override zero(slot: number, sector: number, count: number): void {
    if (!this.#begin(slot, RequestKind.Zero, sector, count, 0)) return;
    this.below.zero(slot, sector, count);
  }

  override fill(slot: number, sector: number, count: number): void {
    if (!this.#begin(slot, RequestKind.Fill, sector, count, 0)) return;
    this.below.fill(slot, sector, count);
  }

  override discard(slot: number, sector: number, count: number): void {
    if (!this.#begin(slot, RequestKind.Discard, sector, count, 0)) return;
    this.below.discard(slot, sector, count);
  }

  /** A leaf that is full has data from before, which must become durable too. */
  override flush(slot: number): void {
    this.#begin(slot, RequestKind.Flush, 0, 1, 0);
    this.below.flush(slot);
  }

  /**
   * Notes a request, and starts the part of the secondary image, which goes first: a leaf that fails at
   * once must find it. Returns whether the leaf has a part.
   */
  #begin(
    slot: number,
    kind: RequestKind,
    sector: number,
    count: number,
    memorySector: number,
  ): boolean {
    this.#kind[slot] = kind;
    this.#sector[slot] = sector;
    this.#count[slot] = count;
    this.#memory[slot] = memorySector;
    this.#leafLeft[slot] = count;
    this.#leafError[slot] = 0;
    this.#error[slot] = 0;
    if (this.#mode === MirrorMode.Standby || this.#mode === MirrorMode.Off) {
      this.#parts[slot] = Part.Leaf;
      return true;
    }
    if (this.#mode === MirrorMode.Redirect && kind !== RequestKind.Flush) {
      this.#parts[slot] = Part.Second | Part.Redirected;
      this.#startSecond(slot, sector, count, memorySector);
      return false;
    }
    this.#parts[slot] = Part.Leaf | Part.Second;
    this.#startSecond(slot, sector, count, memorySector);
    return true;
  }

  #startSecond(slot: number, sector: number, count: number, memorySector: number): void {
    const kind = this.#kind[slot] as RequestKind;
    this.#startMs[slot] = this.#scheduler.lastMs[0];
    const isWatched = this.#mode === MirrorMode.Mirror && !this.second.isNeeded;
    if (isWatched && this.#lookTimer === 0) this.#lookLater();
    const sectors = kind === RequestKind.Flush ? 0 : count;
    this.second.start(slot, kind, sector, sectors, memorySector);
  }

  pieceDone(slot: number, sectors: number, errno: number): void {
    // Reads of a leaf that is not full are none of the mirror's business.
    if (this.#parts[slot] === 0) return this.#sink.pieceDone(slot, sectors, errno);
    if (errno !== 0 && this.#leafError[slot] === 0) this.#leafError[slot] = errno;
    this.#leafLeft[slot] -= sectors;
    if (this.#leafLeft[slot] > 0) return;
    this.#parts[slot] &= ~Part.Leaf;
    if ((this.#parts[slot] & Part.Reading) !== 0) return this.#runDone(slot, this.#leafError[slot]);
    this.#leafDone(slot, this.#leafError[slot]);
  }

  #leafDone(slot: number, errno: number): void {
    const canRedirect = errno === Errno.ENOSPC && this.#kind[slot] !== RequestKind.Flush &&
      this.#mode !== MirrorMode.Off;
    if (!canRedirect) {
      if (errno !== 0) this.#error[slot] = errno;
      return this.#endIfDone(slot);
    }
    if (this.#mode !== MirrorMode.Redirect) {
      this.#mode = MirrorMode.Redirect;
      this.#keeper.leafFull();
    }
    this.#parts[slot] |= Part.Redirected;
    if ((this.#parts[slot] & (Part.Second | Part.Held)) !== 0) return this.#endIfDone(slot);
    this.#parts[slot] |= Part.Second;
    this.#startSecond(slot, this.#sector[slot], this.#count[slot], this.#memory[slot]);
  }

  secondDone(slot: number, errno: number): void {
    if ((this.#parts[slot] & Part.Reading) !== 0) {
      this.#parts[slot] &= ~Part.Second;
      return this.#runDone(slot, errno);
    }
    if (errno !== 0 && this.#mode === MirrorMode.Mirror && !this.second.isNeeded) {
      this.#fail(new SystemError(errno, `a request to it failed (${errnoName(errno)})`));
    }
    this.#secondEnded(slot, this.#mode === MirrorMode.Off ? 0 : errno);
  }

  #secondEnded(slot: number, errno: number): void {
    this.#parts[slot] &= ~Part.Second;
    if (errno !== 0) this.#error[slot] = errno;
    else this.#parts[slot] |= Part.Held;
    this.#endIfDone(slot);
  }

  #endIfDone(slot: number): void {
    const parts = this.#parts[slot];
    if ((parts & WAITING) !== 0) return;
    const count = this.#count[slot];
    const errno = this.#error[slot];
    if ((parts & Part.Redirected) !== 0 && errno === 0) {
      this.#redirects.mark(this.#sector[slot], count);
      if (this.#kind[slot] === RequestKind.Write) this.#keeper.redirected(count);
    }
    this.#parts[slot] = 0;
    this.#sink.pieceDone(slot, count, errno);
  }

  // ---- a secondary image that fails ----------------------------------------------------------

  /** Goes on without the secondary image: what waits for it alone ends well, as the leaf has it. */
  #fail(why: SystemError): void {
    this.#mode = MirrorMode.Off;
    this.#scheduler.cancelTimer(this.#lookTimer);
    this.#lookTimer = 0;
    this.#keeper.mirrorFailed(why);
    for (let slot = 0; slot < REQUEST_SLOTS; slot++) {
      if (!this.second.has(slot)) continue;
      this.second.forget(slot);
      this.#secondEnded(slot, 0);
    }
    this.#leaveSecond();
  }

  /** Closes the secondary image, when its requests have ended. The caller does not wait for that. */
  #leaveSecond(): void {
    this.#isLeft = true;
    this.second.close(() => {});
    this.second.hurry();
  }

  #lookLater(): void {
    this.#lookTimer = this.#scheduler.addTimer(LOOK_MS, this.#look);
  }

  #checkOldest(): void {
    this.#lookTimer = 0;
    if (this.#mode !== MirrorMode.Mirror) return;
    let oldestMs = Infinity;
    for (let slot = 0; slot < REQUEST_SLOTS; slot++) {
      if (this.second.has(slot)) oldestMs = Math.min(oldestMs, this.#startMs[slot]);
    }
    if (oldestMs === Infinity) return;
    if (this.#scheduler.nowMs() - oldestMs < SECONDARY_TIMEOUT_MS) return this.#lookLater();
    const seconds = SECONDARY_TIMEOUT_MS / 1000;
    this.#fail(new SystemError(Errno.ETIMEDOUT, `it has not answered for ${seconds} seconds`));
  }

  // ---- reads of a leaf that is full -----------------------------------------------------------

  override read(slot: number, sector: number, count: number, memorySector: number): void {
    if (this.#mode !== MirrorMode.Redirect) {
      return this.below.read(slot, sector, count, memorySector);
    }
    this.#sector[slot] = sector;
    this.#count[slot] = count;
    this.#memory[slot] = memorySector;
    this.#progress[slot] = 0;
    this.#error[slot] = 0;
    this.#parts[slot] = Part.Reading;
    this.#readOn(slot);
  }

  /** Reads one run of sectors after the other, each from where it is. */
  #readOn(slot: number): void {
    while (this.#error[slot] === 0 && this.#progress[slot] < this.#count[slot]) {
      this.#parts[slot] |= Part.Calling;
      this.#readRun(slot, this.#progress[slot]);
      this.#parts[slot] &= ~Part.Calling;
      if ((this.#parts[slot] & WAITING) !== 0) return;
    }
    this.#parts[slot] = 0;
    this.#sink.pieceDone(slot, this.#count[slot], this.#error[slot]);
  }

  #readRun(slot: number, progress: number): void {
    const sector = this.#sector[slot] + progress;
    const run = this.#redirects.runFrom(sector, this.#count[slot] - progress);
    const memorySector = this.#memory[slot] + progress;
    this.#progress[slot] += Math.abs(run);
    if (run > 0) {
      this.#parts[slot] |= Part.Second;
      this.second.start(slot, RequestKind.Read, sector, run, memorySector);
    } else {
      this.#parts[slot] |= Part.Leaf;
      this.#leafLeft[slot] = -run;
      this.#leafError[slot] = 0;
      this.below.read(slot, sector, -run, memorySector);
    }
  }

  #runDone(slot: number, errno: number): void {
    if (errno !== 0) this.#error[slot] = errno;
    if ((this.#parts[slot] & Part.Calling) === 0) this.#readOn(slot);
  }

  override status(slot: number, sector: number, count: number): void {
    if (this.#mode !== MirrorMode.Redirect) return this.below.status(slot, sector, count);
    const run = this.#redirects.runFrom(sector, count);
    if (run < 0) return this.below.status(slot, sector, -run);
    this.#sink.extent(slot, run, true);
    this.#sink.statusDone(slot, 0);
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    return this.#sink.extent(slot, sectors, isData);
  }

  statusDone(slot: number, errno: number): void {
    this.#sink.statusDone(slot, errno);
  }

  // ---- the end ------------------------------------------------------------------------------

  /** What is under way at others, such as a server, ends at once. */
  giveUp(): void {
    if (!this.#isLeft) this.second.hurry();
  }

  override close(done: Done): void {
    this.#scheduler.cancelTimer(this.#lookTimer);
    this.#lookTimer = 0;
    if (this.#isLeft) return done(null);
    this.#isLeft = true;
    this.second.close((error) => {
      // The image itself has all data, unless it was full.
      if (error === null || this.#mode === MirrorMode.Redirect) return done(error);
      if (this.#mode === MirrorMode.Mirror) this.#keeper.mirrorFailed(error);
      done(null);
    });
  }

  override abandon(): void {
    this.#scheduler.cancelTimer(this.#lookTimer);
    this.#lookTimer = 0;
    // The device goes on with other requests in these slots, while the secondary image may hang.
    for (let slot = 0; slot < REQUEST_SLOTS; slot++) this.second.forget(slot);
    // The device ignores an error of a close that is under way.
    this.#mode = MirrorMode.Off;
    if (!this.#isLeft) this.#leaveSecond();
  }
}
