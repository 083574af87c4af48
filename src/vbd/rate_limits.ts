/** Names of the limits, in the order of their numbers. */
export const RATE_LIMIT_NAMES = [
  "readIops",
  "writeIops",
  "totalIops",
  "readBps",
  "writeBps",
  "totalBps",
] as const;
/** One of `RATE_LIMIT_NAMES`. */
export type RateLimitName = (typeof RATE_LIMIT_NAMES)[number];

/**
 * The most that a device does in a second: requests (`Iops`) and bytes (`Bps`) that are read, that
 * are written, and both together. 0 is no limit.
 */
export interface RateLimits extends Readonly<Record<RateLimitName, number>> {
  /** What was not used in so many milliseconds may be caught up at once. */
  readonly burstMs: number;
}

/** The highest limit, and the shortest and longest time of a burst. */
export const MOST_RATE = Number.MAX_SAFE_INTEGER;
export const LEAST_BURST_MS = 10;
export const MOST_BURST_MS = 3_600_000;

/** A device without limits. */
export const NO_LIMITS: RateLimits = {
  readIops: 0,
  writeIops: 0,
  totalIops: 0,
  readBps: 0,
  writeBps: 0,
  totalBps: 0,
  burstMs: 100,
};

/** Whether there is any limit. */
export function isLimited(limits: RateLimits): boolean {
  return RATE_LIMIT_NAMES.some((name) => limits[name] > 0);
}

function isWhole(value: unknown, least: number, most: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= least && value <= most;
}

/** Whether these can be limits of a device. */
export function areRateLimits(value: unknown): value is RateLimits {
  if (typeof value !== "object" || value === null) return false;
  const limits: { readonly [Name in keyof RateLimits]?: unknown } = value;
  return RATE_LIMIT_NAMES.every((name) => isWhole(limits[name], 0, MOST_RATE)) &&
    isWhole(limits.burstMs, LEAST_BURST_MS, MOST_BURST_MS);
}

/** Limits as `tap-ctl` prints them in JSON. */
export interface RateLimitsSummary {
  read_iops: number;
  write_iops: number;
  total_iops: number;
  read_bps: number;
  write_bps: number;
  total_bps: number;
  burst_ms: number;
}

/** The limits of a device as `tap-ctl` prints them in JSON; null without any. */
export function summaryOfLimits(limits: RateLimits): RateLimitsSummary | null {
  if (!isLimited(limits)) return null;
  return {
    read_iops: limits.readIops,
    write_iops: limits.writeIops,
    total_iops: limits.totalIops,
    read_bps: limits.readBps,
    write_bps: limits.writeBps,
    total_bps: limits.totalBps,
    burst_ms: limits.burstMs,
  };
}

/** Limits in words, for the log. */
export function describeLimits(limits: RateLimits): string {
  const given = RATE_LIMIT_NAMES.filter((name) => limits[name] > 0);
  return given.map((name) => `${name} ${limits[name]}`).join(", ") || "none";
}
