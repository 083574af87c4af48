import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import { Arena, copySectors } from "../../ffi/memory.ts";
import {
  type DriverType,
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  REQUEST_SLOTS,
  type RequestSink,
  SECTOR_BYTES,
} from "./driver.ts";
import { FilterImage } from "./filter.ts";
import { parseImageName } from "./image_name.ts";

const MIB = 1 << 20;
const DEFAULT_MIB = 64;
const MOST_MIB = 4096;
/** Sectors of a line, the unit in which the cache finds things; which of them it has, is a bit. */
const LINE_SECTORS = 8;
const NONE = -1;

/** What a slot is doing below. */
const Doing = { Nothing: 0, Reading: 1, Changing: 2 } as const;

/**
 * A cache in memory of what was read from a slow image. `bc:TYPE:PATH` has 64 MiB of it,
 * `bc:MIB:TYPE:PATH` as much as that. Writes go through. Each opening starts with an empty cache, as the
 * image may have been changed by others while the device was paused.
 */
export const bcDriver: DriverType = {
  type: "bc",
  where: "[MIB:]IMAGE",
  summary: "A read cache in memory in front of another image",
  number: 7,
  named: (rest: string) => ({ kind: "image", at: rest.length - parseCachePath(rest).below.length }),

  open(spec: ImageSpec, _context: ImageContext, sink: RequestSink): ImageDriver {
    const { sizeMib, below } = parseCachePath(spec.path);
    const mib = sizeMib ?? DEFAULT_MIB;
    if (mib < 1 || mib > MOST_MIB) {
      const what = `Cannot open bc:${spec.path}: a cache has from 1 to ${MOST_MIB} MiB`;
      throw new SystemError(Errno.EINVAL, what);
    }
    return new CacheImage(spec, { below, sizeBytes: mib * MIB, sink });
  },
};

/** The parts of `bc:[MIB:]IMAGE` behind `bc:`; the size is null where it is left out. */
function parseCachePath(path: string): { sizeMib: number | null; below: string } {
  const sized = /^(\d+):(.*)$/s.exec(path);
  return sized === null
    ? { sizeMib: null, below: path }
    : { sizeMib: Number(sized[1]), below: sized[2] };
}

/** The lines of a cache. A line of the disk has one place; which, its number says. */
class LineTable {
  readonly #lines: number;
  readonly #data: Arena;
  /** Which line of the disk is in each place. */
  readonly #line: Int32Array;
  /** Which sectors of it are there: a bit each. */
  readonly #has: Uint8Array;
  /** When something of each place last began or ended to change. */
  readonly #changedAt: Float64Array;
  /** A clock that counts changes. */
  readonly #clock = new Float64Array(1);

  constructor(sizeBytes: number) {
    this.#lines = sizeBytes / (LINE_SECTORS * SECTOR_BYTES);
    this.#data = new Arena(sizeBytes);
    this.#line = new Int32Array(this.#lines).fill(NONE);
    this.#has = new Uint8Array(this.#lines);
    this.#changedAt = new Float64Array(this.#lines);
  }

  /** The time on the clock of changes. */
  get now(): number {
    return this.#clock[0];
  }

  /** How many sectors from `sector` on, at most `count`, are here. */
  runFrom(sector: number, count: number): number {
    let run = 0;
    while (run < count && this.#holds(sector + run)) run++;
    return run;
  }

  /** How many sectors before `end`, at most `count`, are here. */
  runBefore(end: number, count: number): number {
    let run = 0;
    while (run < count && this.#holds(end - run - 1)) run++;
    return run;
  }

  #holds(sector: number): boolean {
    const line = Math.floor(sector / LINE_SECTORS);
    const place = line % this.#lines;
    return this.#line[place] === line &&
      (this.#has[place] & (1 << (sector - line * LINE_SECTORS))) !== 0;
  }

  /** Copies sectors that are here to I/O memory. */
  copyTo(memorySector: number, sector: number, count: number): void {
    for (let done = 0; done < count;) {
      const at = sector + done;
      const inLine = at % LINE_SECTORS;
      const part = Math.min(count - done, LINE_SECTORS - inLine);
      const place = Math.floor(at / LINE_SECTORS) % this.#lines;
      const from = this.#data.sector + place * LINE_SECTORS + inLine;
      copySectors(memorySector + done, from, part);
      done += part;
    }
  }

  /** Takes in what was read, but for lines that changed after `since`. */
  put(sector: number, count: number, memorySector: number, since: number): void {
    for (let done = 0; done < count;) {
      const at = sector + done;
      const line = Math.floor(at / LINE_SECTORS);
      const inLine = at - line * LINE_SECTORS;
      const part = Math.min(count - done, LINE_SECTORS - inLine);
      const place = line % this.#lines;
      if (this.#changedAt[place] <= since) {
        if (this.#line[place] !== line) this.#has[place] = 0;
        this.#line[place] = line;
        this.#has[place] |= ((1 << part) - 1) << inLine;
        copySectors(this.#data.sector + place * LINE_SECTORS + inLine, memorySector + done, part);
      }
      done += part;
    }
  }

  /**
   * Sectors begin, or end, to change: forgets them, and what is being read of them. What was read
   * in between is forgotten at the end.
   */
  noteChange(sector: number, count: number): void {
    const now = ++this.#clock[0];
    const first = Math.floor(sector / LINE_SECTORS);
    const last = Math.floor((sector + count - 1) / LINE_SECTORS);
    // More lines than there are places: each place once.
    const end = Math.min(last, first + this.#lines - 1);
    for (let line = first; line <= end; line++) {
      const place = line % this.#lines;
      this.#has[place] = 0;
      this.#changedAt[place] = now;
    }
  }

  release(): void {
    this.#data.release();
  }
}

/** A filter that keeps what is read. */
class CacheImage extends FilterImage implements RequestSink {
  override readonly counts = { readSectors: 0, writtenSectors: 0, missedSectors: 0 };
  override readonly sinkBelow = this;
  readonly #sink: RequestSink;
  readonly #lines: LineTable;
  #isOpen = true;
  /** By slot: what the image below does, where, how many sectors have not ended, and whether any failed. */
  readonly #doing = new Uint8Array(REQUEST_SLOTS);
  readonly #sector = new Float64Array(REQUEST_SLOTS);
  readonly #count = new Float64Array(REQUEST_SLOTS);
  readonly #left = new Float64Array(REQUEST_SLOTS);
  readonly #memory = new Int32Array(REQUEST_SLOTS);
  readonly #failed = new Uint8Array(REQUEST_SLOTS);
  /** When the read began, on the clock of changes. */
  readonly #since = new Float64Array(REQUEST_SLOTS);

  constructor(
    spec: ImageSpec,
    { below, sizeBytes, sink }: { below: string; sizeBytes: number; sink: RequestSink },
  ) {
    super(spec, parseImageName(below));
    this.#sink = sink;
    this.#lines = new LineTable(sizeBytes);
  }

  #begin(slot: number, doing: number, sector: number, count: number): void {
    this.#doing[slot] = doing;
    this.#sector[slot] = sector;
    this.#count[slot] = count;
    this.#left[slot] = count;
    this.#failed[slot] = 0;
  }

  /** What the cache has of the start and the end is copied; all between is one read below. */
  override read(slot: number, sector: number, count: number, memorySector: number): void {
    const head = this.#lines.runFrom(sector, count);
    const tail = head === count ? 0 : this.#lines.runBefore(sector + count, count - head);
    const hits = head + tail;
    const missing = count - hits;
    this.#lines.copyTo(memorySector, sector, head);
    this.#lines.copyTo(memorySector + count - tail, sector + count - tail, tail);
    this.counts.readSectors += hits;
    this.counts.missedSectors += missing;
    if (missing > 0) {
      this.#begin(slot, Doing.Reading, sector + head, missing);
      this.#memory[slot] = memorySector + head;
      this.#since[slot] = this.#lines.now;
      this.below.read(slot, sector + head, missing, memorySector + head);
    }
    if (hits > 0) this.#sink.pieceDone(slot, hits, 0);
  }

  #beginChange(slot: number, sector: number, count: number): void {
    this.#begin(slot, Doing.Changing, sector, count);
    this.#lines.noteChange(sector, count);
  }

  override write(slot: number, sector: number, count: number, memorySector: number): void {
    this.#beginChange(slot, sector, count);
    this.below.write(slot, sector, count, memorySector);
  }

  override zero(slot: number, sector: number, count: number): void {
    this.#beginChange(slot, sector, count);
    this.below.zero(slot, sector, count);
  }

  override fill(slot: number, sector: number, count: number): void {
    this.#beginChange(slot, sector, count);
    this.below.fill(slot, sector, count);
  }

  override discard(slot: number, sector: number, count: number): void {
    this.#beginChange(slot, sector, count);
    this.below.discard(slot, sector, count);
  }

  pieceDone(slot: number, sectors: number, errno: number): void {
    if (this.#doing[slot] !== Doing.Nothing) this.#notePiece(slot, sectors, errno);
    this.#sink.pieceDone(slot, sectors, errno);
  }

  #notePiece(slot: number, sectors: number, errno: number): void {
    if (errno !== 0) this.#failed[slot] = 1;
    this.#left[slot] -= sectors;
    if (this.#left[slot] > 0) return;
    const doing = this.#doing[slot];
    this.#doing[slot] = Doing.Nothing;
    if (doing === Doing.Changing) this.#lines.noteChange(this.#sector[slot], this.#count[slot]);
    else if (this.#failed[slot] === 0) {
      this.#lines.put(
        this.#sector[slot],
        this.#count[slot],
        this.#memory[slot],
        this.#since[slot],
      );
    }
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    return this.#sink.extent(slot, sectors, isData);
  }

  statusDone(slot: number, errno: number): void {
    this.#sink.statusDone(slot, errno);
  }

  override close(done: Done): void {
    this.abandon();
    done(null);
  }

  override abandon(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#lines.release();
  }
}
