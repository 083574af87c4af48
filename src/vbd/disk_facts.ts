import { errnoName } from "../../ffi/errno.ts";
import type { ImageCondition } from "../driver/condition.ts";
import type { DiskQueue } from "../queue/disk_queue.ts";
import { SECTOR_BYTES } from "../driver/driver.ts";
import { type RateLimits, type RateLimitsSummary, summaryOfLimits } from "./rate_limits.ts";
import type { StageFacts } from "./request_times.ts";
import type { LatencySummary } from "./latency.ts";
import type { ClaimFacts } from "./slot_shares.ts";
import { SLOTS } from "./slots.ts";
import type { SecondarySummary } from "./statistics.ts";
import type { Vbd } from "./vbd.ts";
import type { VbdPhase } from "./vbd_phase.ts";

/** An image of a disk, and the operations on its file. */
export interface ImageFacts {
  /** `type:path` */
  readonly name: string;
  /** The file; null for an image that is none. */
  readonly file: string | null;
  /** Operations that have not ended. */
  readonly pending: number;
  /** How long operations took of late, milliseconds; null when none has ended. */
  readonly meanMs: number | null;
  /** How long ago one ended, milliseconds; null when none has. */
  readonly endedMs: number | null;
  /**
   * How long it has had operations and none has ended, milliseconds; null while it has none. A tapdisk of before
   * does not say.
   */
  readonly quietMs?: number | null;
  /** What it depends on besides; null for nothing. */
  readonly condition: ImageCondition | null;
}

/** What is known of a disk just now. Times are milliseconds before now. */
export interface DiskFacts {
  readonly minor: number;
  /** `type:path`; empty without an image. */
  readonly name: string;
  readonly phase: VbdPhase;
  readonly bytes: number;
  /** Requests that have not ended, by where they are. */
  readonly requests: Readonly<Record<"room" | "pause" | "retry" | "disk" | "limit", StageFacts>>;
  /** How many slots are free, of how many. */
  readonly slots: { readonly free: number; readonly all: number };
  /** Those that fail and are tried again; null without. */
  readonly trouble: {
    readonly sinceMs: number;
    readonly requests: number;
    readonly tries: number;
    readonly errno: number;
    readonly error: string;
    readonly file: string | null;
  } | null;
  /** Why the images are being opened anew, or wait for that; null while they are not. */
  readonly reopening: string | null;
  readonly images: readonly ImageFacts[];
  readonly secondary: SecondarySummary | null;
  readonly limits: RateLimitsSummary | null;
  readonly clients: readonly ClaimFacts[];
  /** Requests that have ended, and their mean and highest latency (µs), since the disk was opened. */
  readonly ended: Readonly<Record<"read" | "write" | "flush", EndedFacts>>;
}

/** Requests of a kind that have ended. */
export type EndedFacts = Pick<LatencySummary, "requests" | "mean" | "highest">;

function endedOf({ requests, mean, highest }: LatencySummary): EndedFacts {
  return { requests, mean, highest };
}

function imageFacts(vbd: Vbd, queue: DiskQueue, nowMs: number): ImageFacts[] {
  return vbd.images.map((image): ImageFacts => {
    const { spec: { type, path }, file } = image;
    const condition = image.condition?.(nowMs) ?? null;
    const name = `${type}:${path}`;
    if (file === undefined) {
      return { name, file: null, pending: 0, meanMs: null, endedMs: null, condition };
    }
    const endedMs = queue.endedMs(file);
    const hasEnded = Number.isFinite(endedMs);
    const pending = queue.pendingOf(file);
    return {
      name,
      file: path,
      pending,
      meanMs: hasEnded ? queue.meanMs(file) : null,
      endedMs: hasEnded ? nowMs - endedMs : null,
      quietMs: pending === 0 ? null : nowMs - Math.max(endedMs, queue.busySinceMs(file)),
      condition,
    };
  });
}

/** What is known of a disk. */
export function factsOf(vbd: Vbd, queue: DiskQueue, nowMs: number): DiskFacts {
  const { requests, reopening } = vbd;
  const { latency_us: latency } = requests.times.summary();
  const trouble = requests.trouble.facts;
  const limits: RateLimits = requests.limits;
  return {
    minor: vbd.minor,
    name: vbd.name,
    phase: vbd.phase,
    bytes: vbd.sectors * SECTOR_BYTES,
    requests: requests.times.facts(nowMs),
    slots: { free: requests.freeSlots, all: SLOTS },
    trouble: trouble === null
      ? null
      : { ...trouble, sinceMs: nowMs - trouble.sinceMs, error: errnoName(trouble.errno) },
    reopening: reopening.isRunning ? reopening.why : null,
    images: imageFacts(vbd, queue, nowMs),
    secondary: vbd.statistics().secondary,
    limits: summaryOfLimits(limits),
    clients: requests.shares.facts(),
    ended: {
      read: endedOf(latency.read),
      write: endedOf(latency.write),
      flush: endedOf(latency.flush),
    },
  };
}
