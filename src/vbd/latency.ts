/** Latencies of one kind of request, as `tap-ctl stats` shows them; microseconds. */
export interface LatencySummary {
  /** How many requests ended. */
  requests: number;
  /** How long all took together. */
  sum: number;
  mean: number;
  highest: number;
  /** Percentiles: 50, 90, 99 and 99.9 of 100 requests took no longer. At most 25 % too high. */
  p50: number;
  p90: number;
  p99: number;
  p99_9: number;
  /** Pairs: an upper bound, and the requests between the bound of the pair before and this one. */
  histogram: [below: number, requests: number][];
}

/** Buckets of each power of two. */
const STEPS_LOG2 = 2;
const STEPS = 1 << STEPS_LOG2;
const MOST_MICROSECONDS = 2 ** 31 - 1;
const BUCKETS = (32 - STEPS_LOG2) * STEPS;
const MICROSECONDS_PER_MS = 1000;

/** The bucket of a time: exact below four microseconds, then four to each power of two. */
function bucketOf(microseconds: number): number {
  if (microseconds < STEPS) return microseconds;
  const octave = 31 - Math.clz32(microseconds) - STEPS_LOG2;
  return octave * STEPS + (microseconds >>> octave);
}

/** The upper bound of a bucket, microseconds; it is not in the bucket. */
function endOf(bucket: number): number {
  if (bucket < STEPS) return bucket + 1;
  const octave = Math.floor(bucket / STEPS) - 1;
  return (bucket - octave * STEPS + 1) * 2 ** octave;
}

/** A histogram of how long requests took. It never grows. */
export class Latencies {
  readonly #requests = new Float64Array(BUCKETS);
  /** Sum and highest, milliseconds. */
  readonly #totals = new Float64Array(2);

  /** Counts a request that began at `times[at]` and ended at `now[0]`, milliseconds. */
  note(times: Float64Array, at: number, now: Float64Array): void {
    const tookMs = now[0] - times[at];
    this.#totals[0] += tookMs;
    if (tookMs > this.#totals[1]) this.#totals[1] = tookMs;
    const microseconds = Math.min(tookMs * MICROSECONDS_PER_MS, MOST_MICROSECONDS) | 0;
    this.#requests[bucketOf(microseconds)]++;
  }

  /** All figures of the histogram. */
  summary(): LatencySummary {
    const requests = this.#requests.reduce((sum, count) => sum + count, 0);
    const [sumMs, highestMs] = this.#totals;
    const highest = Math.round(highestMs * MICROSECONDS_PER_MS);
    const histogram: [number, number][] = [];
    this.#requests.forEach((count, bucket) => {
      if (count > 0) histogram.push([endOf(bucket), count]);
    });
    const within = (share: number): number => {
      let left = share * requests;
      const found = histogram.find(([, count]) => (left -= count) <= 0);
      return found === undefined ? 0 : Math.min(found[0], highest);
    };
    const sum = Math.round(sumMs * MICROSECONDS_PER_MS);
    const mean = requests === 0 ? 0 : Math.round(sumMs * MICROSECONDS_PER_MS / requests);
    return {
      requests,
      sum,
      mean,
      highest,
      p50: within(0.5),
      p90: within(0.9),
      p99: within(0.99),
      p99_9: within(0.999),
      histogram,
    };
  }
}
