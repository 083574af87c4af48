import type { Histogram } from "../observe/sample.ts";
import type { Activity } from "./activity.ts";

/** Samples that are kept of each disk: five minutes while somebody looks. */
export const HISTORY_SAMPLES = 300;
/** Bounds of the rows of the heat map: from 32 µs, a power of two each, up to 16.8 s. */
const HEAT_ROWS = 20;
const FIRST_HEAT_BOUND_US = 32;

/** The upper bounds of the rows of a heat map, microseconds; the last row has no bound. */
export const HEAT_BOUNDS_US: readonly number[] = Array.from(
  { length: HEAT_ROWS },
  (_, row) => FIRST_HEAT_BOUND_US * 2 ** row,
);

/** The row of a heat map for requests that took less than a bound. */
export function heatRow(belowUs: number): number {
  const row = HEAT_BOUNDS_US.findIndex((bound) => belowUs <= bound);
  return row < 0 ? HEAT_ROWS : row;
}

/** A histogram as a column of a heat map: requests by row. */
export function heatColumn({ buckets }: Histogram): number[] {
  const column = new Array<number>(HEAT_ROWS + 1).fill(0);
  for (const [below, count] of buckets) column[heatRow(below)] += count;
  return column;
}

/** What is drawn of one sample: see `pointOf`. */
export type Point = readonly (number | null)[];

/** Numbers are sent to many browsers each second: three digits behind the point are enough. */
function rounded(value: number | null): number | null {
  return value === null ? null : Math.round(value * 1000) / 1000;
}

/**
 * A sample as it is drawn: seconds since 1970; IOPS of reads and of writes; MB/s of reads and of
 * writes; p50 and p99 in milliseconds; requests in flight. Null where something is not known.
 */
export function pointOf(timeMs: number, activity: Activity | null): Point {
  const time = timeMs / 1000;
  if (activity === null) return [time, null, null, null, null, null, null, null];
  const ms = (us: number | null): number | null => us === null ? null : us / 1000;
  return [
    time,
    activity.readsPerSecond,
    activity.writesPerSecond,
    activity.readBytesPerSecond / 1e6,
    activity.writtenBytesPerSecond / 1e6,
    ms(activity.p50Us),
    ms(activity.p99Us),
    activity.inFlight,
  ].map(rounded);
}

/** The last samples of a disk, or of all disks together. */
export class History {
  readonly #points: Point[] = [];
  readonly #columns: number[][] = [];

  add(point: Point, column: number[]): void {
    this.#points.push(point);
    this.#columns.push(column);
    if (this.#points.length <= HISTORY_SAMPLES) return;
    this.#points.shift();
    this.#columns.shift();
  }

  /** The oldest first. */
  get points(): readonly Point[] {
    return this.#points;
  }

  /** Columns of the heat map, one for each point. */
  get columns(): readonly (readonly number[])[] {
    return this.#columns;
  }
}
