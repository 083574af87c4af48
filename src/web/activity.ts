import { between, quantileUs, together } from "../observe/histogram.ts";
import { ratesBetween } from "../observe/rates.ts";
import type { DiskSample, Histogram } from "../observe/sample.ts";

/** What a disk, or all disks together, did between two samples. */
export interface Activity {
  readonly readsPerSecond: number;
  readonly writesPerSecond: number;
  readonly readBytesPerSecond: number;
  readonly writtenBytesPerSecond: number;
  /** Microseconds; null when no request ended. */
  readonly p50Us: number | null;
  readonly p99Us: number | null;
  readonly inFlight: number;
  /** How long the requests took that ended. */
  readonly ended: Histogram;
}

/** What a disk did between two samples; null when counters do not go on from one to the other. */
export function activityBetween(before: DiskSample, after: DiskSample): Activity | null {
  const rates = ratesBetween(before, after);
  if (rates === null) return null;
  return {
    readsPerSecond: rates.readsPerSecond,
    writesPerSecond: rates.writesPerSecond,
    readBytesPerSecond: rates.readBytesPerSecond,
    writtenBytesPerSecond: rates.writtenBytesPerSecond,
    p50Us: rates.latency.p50Us,
    p99Us: rates.latency.p99Us,
    inFlight: after.inFlight,
    ended: together(
      between(before.latency.read, after.latency.read),
      between(before.latency.write, after.latency.write),
      between(before.latency.flush, after.latency.flush),
    ),
  };
}

/** What disks did together; null of none. */
export function sumOf(all: readonly Activity[]): Activity | null {
  if (all.length === 0) return null;
  const sum = (of: (activity: Activity) => number): number =>
    all.reduce((total, activity) => total + of(activity), 0);
  const ended = together(...all.map((activity) => activity.ended));
  return {
    readsPerSecond: sum(({ readsPerSecond }) => readsPerSecond),
    writesPerSecond: sum(({ writesPerSecond }) => writesPerSecond),
    readBytesPerSecond: sum(({ readBytesPerSecond }) => readBytesPerSecond),
    writtenBytesPerSecond: sum(({ writtenBytesPerSecond }) => writtenBytesPerSecond),
    p50Us: quantileUs(ended, 0.5),
    p99Us: quantileUs(ended, 0.99),
    inFlight: sum(({ inFlight }) => inFlight),
    ended,
  };
}
