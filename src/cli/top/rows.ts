import { type DiskRates, ratesBetween } from "../../observe/rates.ts";
import type { DiskSample, HostSample } from "../../observe/sample.ts";
import { DISK_STATES, type DiskState, stateOf } from "../../observe/state.ts";

/** A disk, and what it did since the sample before; null without one to compare with. */
export interface Row {
  readonly disk: DiskSample;
  readonly state: DiskState;
  readonly rates: DiskRates | null;
}

/** By what rows are sorted. */
export const SORT_KEYS = [
  "iops",
  "throughput",
  "latency",
  "depth",
  "flight",
  "retries",
  "errors",
  "minor",
  "image",
  "state",
] as const;
/** One of `SORT_KEYS`. */
export type SortKey = (typeof SORT_KEYS)[number];

/** Requests of all kinds in a second. */
export function iopsOf(rates: DiskRates): number {
  const { readsPerSecond, writesPerSecond, flushesPerSecond, discardsPerSecond } = rates;
  return readsPerSecond + writesPerSecond + flushesPerSecond + discardsPerSecond;
}

/** Bytes in a second, both ways. */
export function throughputOf({ readBytesPerSecond, writtenBytesPerSecond }: DiskRates): number {
  return readBytesPerSecond + writtenBytesPerSecond;
}

/** `type:path`; empty without an image. */
export function imageOf({ type, path }: DiskSample): string {
  return type === "" ? path : `${type}:${path}`;
}

/** The rows of a sample, in the order of minors. */
export function rowsOf(before: HostSample | null, now: HostSample): Row[] {
  const earlier = new Map(before?.disks.map((disk) => [disk.minor, disk]));
  return now.disks.map((disk) => {
    const other = earlier.get(disk.minor);
    return {
      disk,
      state: stateOf(disk),
      rates: other === undefined ? null : ratesBetween(other, disk),
    };
  });
}

/** What a row is sorted by: larger comes first, but for `minor`, `image` and `state`. */
const VALUES: Readonly<Record<Exclude<SortKey, "image">, (row: Row) => number>> = {
  iops: ({ rates }) => rates === null ? -1 : iopsOf(rates),
  throughput: ({ rates }) => rates === null ? -1 : throughputOf(rates),
  latency: ({ rates }) => rates?.latency.p99Us ?? -1,
  depth: ({ rates }) => rates?.depth ?? -1,
  flight: ({ disk }) => disk.inFlight,
  retries: ({ disk, rates }) => disk.retrying + (rates?.retriesPerSecond ?? 0),
  errors: ({ rates }) => rates?.errorsPerSecond ?? -1,
  minor: ({ disk }) => -disk.minor,
  state: ({ state }) => -DISK_STATES.indexOf(state),
};

/** Rows in the order of a key; equal ones in the order of minors. */
export function sorted(rows: readonly Row[], key: SortKey, isReversed: boolean): Row[] {
  const compare = (a: Row, b: Row): number =>
    key === "image"
      ? imageOf(a.disk) < imageOf(b.disk) ? -1 : imageOf(a.disk) > imageOf(b.disk) ? 1 : 0
      : VALUES[key](b) - VALUES[key](a);
  return rows.toSorted((a, b) =>
    (isReversed ? -compare(a, b) : compare(a, b)) || a.disk.minor - b.disk.minor
  );
}

/** Rows of which a word occurs in the image, the node or the state, or is the minor or the process. */
export function filtered(rows: readonly Row[], word: string): Row[] {
  if (word === "") return [...rows];
  const wanted = word.toLowerCase();
  return rows.filter(({ disk, state }) =>
    [imageOf(disk), disk.node ?? "", state].some((text) => text.toLowerCase().includes(wanted)) ||
    [disk.minor, disk.pid].some((number) => String(number) === wanted)
  );
}
