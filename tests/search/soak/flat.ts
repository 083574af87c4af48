/**
 * Whether a figure stays flat over the time of a soak.
 *
 * @module
 */

/** A figure at a moment. */
export interface Sample {
  readonly atMs: number;
  readonly value: number;
}

/** A value of a figure in two quarters of the time. */
export interface Flatness {
  /** The second quarter; the first is the warm-up. */
  readonly early: number;
  /** The last quarter. */
  readonly late: number;
  readonly highest: number;
}

/** A value that a share of the values does not exceed; NaN without values. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length === 0 ? NaN : sorted[Math.ceil(share * sorted.length) - 1] ?? sorted[0];
}

/** Compares the last quarter of the time with the second by a share, by default the median. */
export function flatness(samples: readonly Sample[], share = 0.5): Flatness {
  const first = samples[0]?.atMs ?? 0;
  const last = samples[samples.length - 1]?.atMs ?? 0;
  const within = (from: number, to: number): number =>
    quantile(
      samples.filter(({ atMs }) => {
        const part = (atMs - first) / Math.max(1, last - first);
        return part >= from && part <= to;
      }).map(({ value }) => value),
      share,
    );
  const highest = samples.reduce((most, { value }) => Math.max(most, value), 0);
  return { early: within(0.25, 0.5), late: within(0.75, 1), highest };
}
