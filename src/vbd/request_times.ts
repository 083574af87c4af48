import { Latencies, type LatencySummary } from "./latency.ts";
import { RequestKind, SLOTS } from "./slots.ts";

/** Where a request is. */
export const Stage = {
  /** It has ended, or not begun. */
  None: 0,
  /** Behind others, for room in the disk queue. */
  Room: 1,
  /** Held back by a pause. */
  Paused: 2,
  /** Failed, and waits to be tried again. */
  Retry: 3,
  /** In the hands of the image. */
  Disk: 4,
} as const;
/** One of `Stage`. */
export type Stage = (typeof Stage)[keyof typeof Stage];

/** What made requests wait before they went to the disk. */
export interface Wait {
  /** How often a request came to wait for this, and for how long in all. */
  requests: number;
  milliseconds: number;
}

/** How requests have fared in time, as `tap-ctl stats` shows it. */
export interface TimesSummary {
  /** From when a request came until it ended, all waiting included; microseconds. */
  latency_us: { read: LatencySummary; write: LatencySummary; flush: LatencySummary };
  /** Requests that have not ended: the most of them, and what those that came found on average. */
  queue_depth: { now: number; highest: number; average: number };
  /** Time that requests spent in their slots, while the disk had nothing to do with them. */
  waited: { room: Wait; pause: Wait; retry: Wait };
}

const STAGES = 5;

/**
 * When each request came, where it is, and since when. It reads no clock: what the loop last read,
 * at the start of a turn and as the disk's answers came, is good for all requests of that batch.
 */
export class RequestTimes {
  /** Where each request is. */
  readonly stage = new Uint8Array(SLOTS);
  /** Since when, milliseconds. */
  readonly sinceMs = new Float64Array(SLOTS);
  /** When it came, milliseconds. */
  readonly cameMs = new Float64Array(SLOTS);
  readonly #clock: Float64Array;
  /** By stage: milliseconds that requests were there, and how many came to be. */
  readonly #spentMs = new Float64Array(STAGES);
  readonly #entered = new Float64Array(STAGES);
  /** By kind; those that it has not are not counted. */
  readonly #latencies: readonly (Latencies | undefined)[];
  readonly #reads = new Latencies();
  readonly #writes = new Latencies();
  readonly #flushes = new Latencies();
  #depth = 0;
  #highestDepth = 0;
  /** Requests that came, and the sum of those that were there then, themselves included. */
  readonly #arrivals = new Float64Array(2);

  /** @param clock Where the loop keeps the time that it read last. */
  constructor(clock: Float64Array) {
    this.#clock = clock;
    const latencies: (Latencies | undefined)[] = new Array(Object.keys(RequestKind).length);
    latencies.fill(undefined);
    latencies[RequestKind.Read] = this.#reads;
    latencies[RequestKind.Write] = this.#writes;
    latencies[RequestKind.Flush] = this.#flushes;
    this.#latencies = latencies;
  }

  /** A request came. */
  begin(slot: number): void {
    this.cameMs[slot] = this.#clock[0];
    this.sinceMs[slot] = this.#clock[0];
    if (++this.#depth > this.#highestDepth) this.#highestDepth = this.#depth;
    this.#arrivals[0]++;
    this.#arrivals[1] += this.#depth;
  }

  /** It goes from where it was to another stage. */
  move(slot: number, stage: Stage): void {
    if (stage === this.stage[slot]) return;
    this.#settle(slot);
    this.stage[slot] = stage;
    this.#entered[stage]++;
  }

  #settle(slot: number): void {
    this.#spentMs[this.stage[slot]] += this.#clock[0] - this.sinceMs[slot];
    this.sinceMs[slot] = this.#clock[0];
  }

  /** All that are in one stage go to another: a pause begins, or ends. */
  moveAll(from: Stage, to: Stage): void {
    for (let slot = 0; slot < SLOTS; slot++) if (this.stage[slot] === from) this.move(slot, to);
  }

  /** A request ended. */
  end(slot: number, kind: RequestKind): void {
    this.#latencies[kind]?.note(this.cameMs, slot, this.#clock);
    this.drop(slot);
  }

  /** A request ended without having been tried to its end. */
  drop(slot: number): void {
    this.#settle(slot);
    this.stage[slot] = Stage.None;
    this.#depth--;
  }

  /** For how long the oldest of the requests in one stage has been there, milliseconds. */
  longestMs(stage: Stage, nowMs: number): number {
    let longestMs = 0;
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.stage[slot] === stage) longestMs = Math.max(longestMs, nowMs - this.sinceMs[slot]);
    }
    return longestMs;
  }

  /** What there is to say of all requests. */
  summary(): TimesSummary {
    const spentMs = this.#spentMs.slice();
    for (let slot = 0; slot < SLOTS; slot++) {
      spentMs[this.stage[slot]] += this.#clock[0] - this.sinceMs[slot];
    }
    const [came, found] = this.#arrivals;
    const wait = (stage: Stage): Wait => ({
      requests: this.#entered[stage],
      milliseconds: Math.round(spentMs[stage] * 1000) / 1000,
    });
    return {
      latency_us: {
        read: this.#reads.summary(),
        write: this.#writes.summary(),
        flush: this.#flushes.summary(),
      },
      queue_depth: {
        now: this.#depth,
        highest: this.#highestDepth,
        average: came === 0 ? 0 : Math.round(100 * found / came) / 100,
      },
      waited: { room: wait(Stage.Room), pause: wait(Stage.Paused), retry: wait(Stage.Retry) },
    };
  }
}
