/**
 * What a disk must hold, sector by sector.
 *
 * A sector holds the generation of the last write that ended. A write whose end nobody heard of
 * leaves a sector in doubt: it holds the old or the new content. A sector in doubt is not written
 * until the doubt has *settled*, that is, until no request from before can still be on its way; the
 * next read then decides what it holds.
 *
 * @module
 */
import { Finding } from "./finding.ts";
import { describeSector, FOREIGN, generationOf, SECTOR_BYTES, wordsOf, ZEROS } from "./stamps.ts";

/** The content of a discarded sector: zeros, or anything that was ever written to it. */
export const DISCARDED = -2;

interface Doubt {
  readonly generations: Set<number>;
  readonly sinceMs: number;
  settled: boolean;
}

/** A write whose reply has not come yet. */
export interface Flight {
  readonly sector: number;
  readonly count: number;
  readonly generation: number;
}

/** What a disk held at some moment. */
export interface Moment {
  readonly generations: Int32Array;
  /** Sectors that are in doubt or being written, with all that they may hold. */
  readonly open: ReadonlyMap<number, ReadonlySet<number>>;
  /** No later generation was in use. */
  readonly newest: number;
}

/** The expected content of a disk. */
export class DiskModel {
  readonly firstSector: number;
  readonly #isEncrypted: boolean;
  #generations: Int32Array;
  readonly #doubts = new Map<number, Doubt>();
  readonly #flights = new Set<Flight>();
  #last = 0;

  /**
   * @param disk The number in the stamps of its sectors.
   * @param firstSector Sectors in front of this one belong to other programs.
   * @param isEncrypted A hole in an encrypted image is read as noise.
   */
  constructor(
    readonly disk: number,
    { firstSector, sectors, isEncrypted }: {
      firstSector: number;
      sectors: number;
      isEncrypted: boolean;
    },
  ) {
    this.firstSector = firstSector;
    this.#isEncrypted = isEncrypted;
    this.#generations = new Int32Array(sectors);
  }

  get sectors(): number {
    return this.#generations.length;
  }

  /** A generation that was not used before. */
  newGeneration(): number {
    return ++this.#last;
  }

  /** The disk is larger; new sectors are zeros. */
  grow(sectors: number): void {
    const grown = new Int32Array(sectors);
    grown.set(this.#generations);
    this.#generations = grown;
  }

  /** The disk has lost its content. */
  reset(): void {
    this.#generations.fill(ZEROS);
    this.#doubts.clear();
  }

  /** A write is being sent; `ZEROS` for a write of zeros, `DISCARDED` for a discard. */
  begin(sector: number, count: number, generation: number): Flight {
    if (generation === DISCARDED) this.#generations.fill(DISCARDED, sector, sector + count);
    const flight = { sector, count, generation };
    this.#flights.add(flight);
    return flight;
  }

  /** A write has ended. */
  end(flight: Flight): void {
    this.#flights.delete(flight);
    const { sector, count, generation } = flight;
    this.#generations.fill(generation, sector, sector + count);
  }

  /** Nobody knows whether a write has reached the disk, or still will. */
  lose(flight: Flight): void {
    this.#flights.delete(flight);
    const sinceMs = performance.now();
    const { sector, count, generation } = flight;
    for (let at = sector; at < sector + count; at++) {
      const known = this.#doubts.get(at);
      const generations = known?.generations ?? new Set([this.#generations[at]]);
      this.#doubts.set(at, { generations: generations.add(generation), sinceMs, settled: false });
    }
  }

  isInDoubt(sector: number, count: number): boolean {
    if (this.#doubts.size === 0) return false;
    for (let at = sector; at < sector + count; at++) if (this.#doubts.has(at)) return true;
    return false;
  }

  /** No request that was lost before this moment can still change anything. */
  settle(untilMs = performance.now()): void {
    for (const doubt of this.#doubts.values()) if (doubt.sinceMs <= untilMs) doubt.settled = true;
  }

  /** The first sector in doubt that a read would decide; null without one. */
  get firstSettled(): number | null {
    for (const [sector, { settled }] of this.#doubts) if (settled) return sector;
    return null;
  }

  /** A copy of what is expected now. */
  moment(): Moment {
    const open = new Map<number, Set<number>>();
    for (const [sector, { generations }] of this.#doubts) open.set(sector, new Set(generations));
    for (const { sector, count, generation } of this.#flights) {
      for (let at = sector; at < sector + count; at++) {
        open.set(at, (open.get(at) ?? new Set([this.#generations[at]])).add(generation));
      }
    }
    return { generations: this.#generations.slice(), open, newest: this.#last };
  }

  /** Checks what was read, and decides the doubts that have settled. */
  check(data: Uint8Array, sector: number, how: string): void {
    const words = wordsOf(data);
    for (let index = 0; index < data.length / SECTOR_BYTES; index++) {
      const at = sector + index;
      if (at < this.firstSector) continue;
      const found = generationOf(words, index, { disk: this.disk, sector: at });
      const expected = this.#generations[at];
      if (found === expected && this.#doubts.size === 0) continue;
      const doubt = this.#doubts.get(at);
      const allowed = doubt === undefined
        ? this.#isAllowed(found, expected)
        : [...doubt.generations].some((one) => this.#isAllowed(found, one));
      if (!allowed) {
        throw this.#wrong(how, at, describeSector(words, index), doubt?.generations ?? [expected]);
      }
      if (doubt === undefined || !doubt.settled) continue;
      this.#doubts.delete(at);
      this.#generations[at] = doubt.generations.has(DISCARDED) ? DISCARDED : found;
    }
  }

  /**
   * Checks data that was the content of the disk at some moment between two: a snapshot, a copy.
   * Generations rise with time, so a sector may have any between those of the two moments.
   */
  checkBetween(
    data: Uint8Array,
    sector: number,
    { before, after, how }: { before: Moment; after: Moment; how: string },
  ): void {
    const words = wordsOf(data);
    for (let index = 0; index < data.length / SECTOR_BYTES; index++) {
      const at = sector + index;
      if (at < this.firstSector) continue;
      const found = generationOf(words, index, { disk: this.disk, sector: at });
      if (this.#couldBe(found, { before, after, at })) continue;
      const expected = [...expectedAt(before, at), ...expectedAt(after, at)];
      throw this.#wrong(how, at, describeSector(words, index), expected);
    }
  }

  #isAllowed(found: number, expected: number): boolean {
    if (expected !== DISCARDED) return found === expected;
    return found !== FOREIGN || this.#isEncrypted;
  }

  /** Whether a sector may have held this at some moment between two. */
  #couldBe(
    found: number,
    { before, after, at }: { before: Moment; after: Moment; at: number },
  ): boolean {
    if (found === before.generations[at] || found === after.generations[at]) return true;
    const first = expectedAt(before, at);
    const last = expectedAt(after, at);
    if ([...first, ...last].some((one) => this.#isAllowed(found, one))) return true;
    if (found === FOREIGN || new Set([...first, ...last]).size === 1) return false;
    // It has been changed between the moments, perhaps more than once.
    if (found === ZEROS) return true;
    const newest = last.includes(ZEROS) ? after.newest : Math.max(...last);
    return found > Math.min(...first) && found <= newest;
  }

  #wrong(how: string, sector: number, found: string, expected: Iterable<number>): Finding {
    const wanted = [...new Set(expected)].map(describeGeneration).join(" or ");
    return new Finding(
      `WRONG BYTES, ${how}: sector ${sector} of disk ${this.disk}: ` +
        `expected ${wanted}, found ${found}`,
    );
  }
}

function expectedAt({ generations, open }: Moment, sector: number): number[] {
  return [generations[sector] ?? ZEROS, ...open.get(sector) ?? []];
}

function describeGeneration(generation: number): string {
  if (generation === DISCARDED) return "anything that was ever written there (discarded)";
  return generation === ZEROS ? "zeros" : `generation ${generation}`;
}
