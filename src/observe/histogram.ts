import type { Histogram } from "./sample.ts";

/** A histogram without requests. */
export const NO_REQUESTS: Histogram = { requests: 0, sumUs: 0, highestUs: 0, buckets: [] };

/**
 * The requests that ended between two samples. Of a histogram that began anew in between, all of the later one.
 * The slowest is not known: it is the bound of the last pair, or the slowest of all if that is less.
 */
export function between(before: Histogram, after: Histogram): Histogram {
  if (after.requests < before.requests) return after;
  const counted = new Map(before.buckets);
  const buckets: [number, number][] = [];
  let came = 0;
  for (const [belowUs, requests] of after.buckets) {
    const more = requests - (counted.get(belowUs) ?? 0);
    if (more < 0) return after;
    if (more > 0) buckets.push([belowUs, more]);
    came += more;
  }
  const highestUs = Math.min(buckets.at(-1)?.[0] ?? 0, after.highestUs);
  const requests = after.requests - before.requests;
  // Some of those before are not there any more.
  if (came > requests) return after;
  return { requests, sumUs: Math.max(0, after.sumUs - before.sumUs), highestUs, buckets };
}

/** The requests of several histograms. */
export function together(...histograms: readonly Histogram[]): Histogram {
  const counted = new Map<number, number>();
  for (const { buckets } of histograms) {
    for (const [belowUs, requests] of buckets) {
      counted.set(belowUs, (counted.get(belowUs) ?? 0) + requests);
    }
  }
  const sum = (of: (each: Histogram) => number): number =>
    histograms.reduce((total, each) => total + of(each), 0);
  return {
    requests: sum(({ requests }) => requests),
    sumUs: sum(({ sumUs }) => sumUs),
    highestUs: Math.max(0, ...histograms.map(({ highestUs }) => highestUs)),
    buckets: [...counted].sort(([a], [b]) => a - b),
  };
}

/**
 * So many of 1 of the requests took no longer than this, microseconds; null without requests. At most 25 % too
 * high, as times are counted in buckets.
 */
export function quantileUs({ buckets, highestUs }: Histogram, share: number): number | null {
  // What the buckets have, which counts also when their sum is not `requests`.
  const all = buckets.reduce((total, [, requests]) => total + requests, 0);
  if (all === 0) return null;
  let left = Math.max(1, Math.ceil(share * all));
  for (const [belowUs, requests] of buckets) {
    left -= requests;
    if (left <= 0) return Math.min(belowUs, highestUs);
  }
  return highestUs;
}

/** The mean time of a request, microseconds; null without requests. */
export function meanUs({ requests, sumUs }: Histogram): number | null {
  return requests === 0 ? null : sumUs / requests;
}
