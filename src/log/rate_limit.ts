import { Bucket } from "./bucket.ts";
import type { LogFields, LogLevel } from "./log_fields.ts";

/** Entries of one shape that pass in a row, and the time after which one more passes. */
const BURST = 6;
const ONE_MORE_MS = 10_000;
/** The same for changes of a disk's state that are no warnings: of each kind and disk. */
const STATE_BURST = 60;
const STATE_ONE_MORE_MS = 1_000;
/** The same as the first for all shapes together. */
const TOTAL_BURST = 200;
const TOTAL_ONE_MORE_MS = 100;
/** Shapes that are counted separately. */
const MOST_SHAPES = 1024;
const SHAPE_CHARACTERS = 160;

/**
 * Limits the number of similar entries in a log. Entries of one disk that tell the same event, or differ
 * only in numbers, have the same shape. Of each shape a few pass, then one every ten seconds, with the
 * number of those that were left out before it. Of ordinary changes of a disk's state more pass.
 */
export class RateLimit {
  readonly #shapes = new Map<string, { bucket: Bucket; leftOut: number }>();
  readonly #nowMs: () => number;
  readonly #total: Bucket;
  #leftOut = 0;

  /** @param nowMs The time, milliseconds; for tests. */
  constructor(nowMs: () => number = () => performance.now()) {
    this.#nowMs = nowMs;
    this.#total = new Bucket(TOTAL_BURST, TOTAL_ONE_MORE_MS, nowMs());
  }

  /** The entry to write; null to leave it out. */
  admit(message: string, level: LogLevel = "warning", fields: LogFields = {}): string | null {
    const nowMs = this.#nowMs();
    const isState = level === "info";
    const shape = this.#shapeOf(keyOf(message, fields), isState, nowMs);
    if (!shape.bucket.take(nowMs)) {
      shape.leftOut++;
      return null;
    }
    if (!isState && !this.#total.take(nowMs)) {
      this.#leftOut++;
      return null;
    }
    const notes = [];
    if (shape.leftOut > 0) notes.push(`${shape.leftOut} more like this were left out`);
    if (this.#leftOut > 0) notes.push(`${this.#leftOut} other entries were left out`);
    shape.leftOut = 0;
    this.#leftOut = 0;
    return notes.length === 0 ? message : `${message} (${notes.join("; ")})`;
  }

  #shapeOf(key: string, isState: boolean, nowMs: number): { bucket: Bucket; leftOut: number } {
    const known = this.#shapes.get(key);
    if (known !== undefined) return known;
    if (this.#shapes.size === MOST_SHAPES) {
      const [oldest] = this.#shapes.keys();
      this.#leftOut += this.#shapes.get(oldest)?.leftOut ?? 0;
      this.#shapes.delete(oldest);
    }
    const bucket = isState
      ? new Bucket(STATE_BURST, STATE_ONE_MORE_MS, nowMs)
      : new Bucket(BURST, ONE_MORE_MS, nowMs);
    const shape = { bucket, leftOut: 0 };
    this.#shapes.set(key, shape);
    return shape;
  }
}

/** What entries of one shape have in common. */
function keyOf(message: string, { event, minor }: LogFields): string {
  const shape = event ?? message.slice(0, SHAPE_CHARACTERS).replaceAll(/\d+/g, "#");
  return minor === undefined ? shape : `${minor} ${shape}`;
}
