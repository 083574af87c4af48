/**
 * What images must hold. The model is sparse: it knows only the sectors that a world touches.
 *
 * A sector of an image has a history of changes. A change has a start and, once it was answered, an
 * end. Of two changes of a sector that overlap in time, either may come last. A change is durable
 * when a flush that began after its end was answered. So a sector may hold what any change of its
 * history left, unless a later change has taken its place for certain:
 *
 * - while nothing fails, one that was answered and that began after the other's end;
 * - after a power cut, such a change that is durable.
 *
 * A change that failed may have been carried out in part. It takes no other's place.
 *
 * @module
 */
import { isHoleDecrypted } from "./formats/keys.ts";
import { SECTOR_BYTES, stampAt } from "./stamps.ts";

/** The value of a sector that an image does not hold: the image below shows, or zeros. */
export const FALL = -1;
/** The value of a discarded sector of an encrypted image: its hole in the file, decrypted. */
export const NOISE = -2;

/** Something that changes sectors: a request, or a step of offline work. */
export class Change {
  end = Infinity;
  /** Whether it was answered without an error. */
  answered = false;
  durable = false;

  constructor(
    /** What it is, for people. */
    readonly what: string,
    readonly start: number,
  ) {}
}

/** What a change leaves in a sector. */
export interface Mark {
  readonly change: Change;
  /** What the sector may hold afterwards. */
  readonly values: readonly number[];
  /** Whether the sector may also keep what it held. */
  readonly keeps: boolean;
}

/** At which moment a sector is looked at. */
export type Moment =
  /** What a reader sees who started at `since`, and ends now. */
  | { readonly kind: "read"; readonly since: number }
  /** After a power cut now. */
  | { readonly kind: "cut" };

/** The moment of a reader who starts and ends now. */
export const NOW: Moment = { kind: "read", since: Infinity };
/** The moment of a power cut. */
export const CUT: Moment = { kind: "cut" };

const BEFORE_ALL = Object.assign(new Change("as it was made", -2), {
  end: -1,
  answered: true,
  durable: true,
});
const UNTOUCHED: Mark = { change: BEFORE_ALL, values: [FALL], keeps: false };

/** A number that grows with each event of a world. */
export class Ticks {
  #now = 0;

  next(): number {
    return ++this.#now;
  }
}

/** A sector that does not hold what it must. */
export class WrongSectorError extends Error {
  override readonly name = "WrongSectorError";

  constructor(
    readonly path: string,
    readonly sector: number,
    message: string,
  ) {
    super(message);
  }
}

/** One image: what it holds itself, and what shows through from below. */
export class ImageModel {
  readonly #marks = new Map<number, Mark[]>();
  /** Sectors with changes that are not durable. */
  readonly #open = new Set<number>();

  constructor(
    public path: string,
    public sectors: number,
    public parent: ImageModel | null,
    /** The name of its format; see `formats/`. */
    readonly format: string,
  ) {}

  /** Records that a change is about to be made to a sector. */
  mark(sector: number, mark: Mark): void {
    const known = this.#marks.get(sector);
    if (known === undefined) this.#marks.set(sector, [UNTOUCHED, mark]);
    else known.push(mark);
    this.#open.add(sector);
  }

  /** Sets a sector to exactly this, durable value. */
  settle(sector: number, value: number): void {
    this.#open.delete(sector);
    if (value === FALL) this.#marks.delete(sector);
    else this.#marks.set(sector, [{ change: BEFORE_ALL, values: [value], keeps: false }]);
  }

  /** Makes durable what was answered before `start`. */
  flushed(start: number): void {
    for (const sector of this.#open) {
      let all = true;
      for (const { change } of this.#marks.get(sector) ?? []) {
        if (change.answered && change.end < start) change.durable = true;
        all &&= change.durable;
      }
      if (all) this.#open.delete(sector);
    }
  }

  /** Forgets changes whose place others took for certain. No reader may be under way. */
  tidy(): void {
    for (const [sector, marks] of this.#marks) {
      if (marks.length < 2) continue;
      const left = marks.filter((mark) => !isOver(mark, marks, CUT));
      if (left.length < marks.length) this.#marks.set(sector, left);
    }
  }

  /** Moves what has not been answered to an image above, where it will be carried out. */
  handOver(to: ImageModel, now: number): void {
    for (const sector of this.#open) {
      for (const mark of this.#marks.get(sector) ?? []) {
        if (mark.change.end !== Infinity) continue;
        // A part of it may have reached this image, and then a change that it met at this sector came
        // last: the image above has nothing there.
        to.mark(sector, { ...mark, keeps: mark.keeps || this.#meets(sector, mark) });
        this.#replace(sector, mark, now);
      }
    }
  }

  /** Whether another change of a sector was under way at the same time. */
  #meets(sector: number, mark: Mark): boolean {
    const marks = this.#marks.get(sector) ?? [];
    return marks.some(({ change }) => change !== mark.change && change.end > mark.change.start);
  }

  #replace(sector: number, mark: Mark, now: number): void {
    const { what, start } = mark.change;
    const change = Object.assign(new Change(what, start), { end: now });
    const marks = this.#marks.get(sector) ?? [];
    this.#marks.set(sector, marks.map((each) => each === mark ? { ...mark, change } : each));
  }

  /** The sectors of this image itself that were ever touched. */
  get touched(): number[] {
    return [...this.#marks.keys()];
  }

  /** What this image itself may hold at a sector. */
  own(sector: number, moment: Moment): Mark[] {
    const marks = this.#marks.get(sector);
    if (marks === undefined) return [UNTOUCHED];
    return marks.filter((mark) => !isOver(mark, marks, moment));
  }

  /** All values that a sector of the disk may have, as seen from this image. */
  values(sector: number, moment: Moment): Set<number> {
    const found = new Set<number>();
    if (sector >= this.sectors) return found.add(0);
    let falls = false;
    for (const { values } of this.own(sector, moment)) {
      for (const value of values) {
        if (value === FALL) falls = true;
        else found.add(value);
      }
    }
    if (!falls) return found;
    if (this.parent === null) found.add(0);
    else for (const value of this.parent.values(sector, moment)) found.add(value);
    return found;
  }

  /** Whether this image, or one below it, was ever changed at a sector. */
  isTouched(sector: number): boolean {
    return this.#marks.has(sector) || (this.parent?.isTouched(sector) ?? false);
  }

  /** Explains the history of a sector. */
  history(sector: number): string[] {
    const lines = (this.#marks.get(sector) ?? [UNTOUCHED]).map(({ change, values, keeps }) => {
      const end = change.end === Infinity ? "under way" : `${change.end}`;
      const state = change.durable ? "durable" : change.answered ? "answered" : "not answered";
      const shown = values.map((value) => value === FALL ? "what is below" : value).join("|");
      return `${this.path}: ${change.start}..${end} ${state}: ${change.what} -> ` +
        `${shown}${keeps ? "|as before" : ""}`;
    });
    return this.parent === null ? lines : [...lines, ...this.parent.history(sector)];
  }

  /**
   * Compares sectors with the model.
   *
   * @throws {WrongSectorError}
   */
  compare(data: Uint8Array, sector: number, moment: Moment, where: string): void {
    const words = new Uint32Array(data.buffer, data.byteOffset, data.length / 4);
    for (let i = 0; i < data.length / SECTOR_BYTES; i++) {
      const found = valueAt(words, i, sector + i);
      if (found === 0 && !this.isTouched(sector + i)) continue;
      const allowed = this.values(sector + i, moment);
      if (typeof found === "number" && allowed.has(found)) continue;
      const message = `${where}: sector ${sector + i} of ${this.path} holds ${found}, ` +
        `not ${[...allowed].join(" or ")}\n  ${this.history(sector + i).join("\n  ")}`;
      throw new WrongSectorError(this.path, sector + i, message);
    }
  }
}

/** The value of sector `index` of some sectors; a text about a content that no change leaves. */
export function valueAt(words: Uint32Array, index: number, sector: number): number | string {
  const found = stampAt(words, index, sector);
  if (typeof found === "number") return found;
  const start = words.byteOffset + index * SECTOR_BYTES;
  const bytes = new Uint8Array(words.buffer.slice(start, start + SECTOR_BYTES) as ArrayBuffer);
  return isHoleDecrypted(bytes, sector) ? NOISE : found;
}

/** Whether other changes took the place of a change for certain. */
function isOver(mark: Mark, marks: readonly Mark[], moment: Moment): boolean {
  const { end } = mark.change;
  return marks.some(({ change, keeps }) =>
    !keeps && change.start > end && change.answered &&
    (moment.kind === "cut" ? change.durable : change.end < moment.since)
  );
}
