import { ClientTimes } from "./client_times.ts";
import { Latencies, type LatencySummary } from "./latency.ts";
import { RequestKind, SLOTS, type SlotTable, type SlotTrace } from "./slots.ts";

/** Where a request is, from its start to its end. */
export const Stage = {
  /** There is no request. */
  None: 0,
  /** It waits for room in the disk queue. */
  Room: 1,
  /** It waits for the end of a pause. */
  Paused: 2,
  /** It failed, and waits for its next try. */
  Retry: 3,
  /** It is at the image. */
  Disk: 4,
  /** It waits because a limit of the device is used up. */
  Limit: 5,
} as const;
/** One of `Stage`. */
export type Stage = (typeof Stage)[keyof typeof Stage];

/** Records what becomes of requests. */
export interface StageTrace extends SlotTrace {
  /** A request begins. */
  began(slot: number): void;
  /** A request leaves a stage; `sinceMs` still has when it came there. */
  left(slot: number, stage: number): void;
  /** A request ends. */
  ended(slot: number, errno: number): void;
}

/** What requests waited for before they went to the disk. */
export interface Wait {
  /** How many waits there were, and their length in all. */
  requests: number;
  milliseconds: number;
}

/** Requests that are in a stage: how many, and how long the first of them has been there. */
export interface StageFacts {
  readonly requests: number;
  readonly longestMs: number;
}

/** Times of requests, as `tap-ctl stats` shows them. */
export interface TimesSummary {
  /** From the start of a request to its end, waits included; microseconds. */
  latency_us: { read: LatencySummary; write: LatencySummary; flush: LatencySummary };
  /** Open requests: now, the most there were, and the average that a new request found. */
  queue_depth: { now: number; highest: number; average: number };
  /** Time that requests spent waiting, and not at the disk. */
  waited: { room: Wait; pause: Wait; retry: Wait; limit: Wait };
  /** Time that requests spent at the images and at the disks below them, milliseconds. */
  at_disk_ms: number;
  /** Places of requests that wait for a client: for data of a write, or until it takes an answer. */
  at_client: { now: number; milliseconds: number };
}

const STAGES = Object.keys(Stage).length;

/** Milliseconds, to the microsecond. */
function rounded(milliseconds: number): number {
  return Math.round(milliseconds * 1000) / 1000;
}

/**
 * When each request began, where it is, and since when. It reads no clock, but the time that the loop
 * read last: at the start of a turn, and when answers of the disk came.
 */
export class RequestTimes {
  /** Where each request is. */
  readonly stage = new Uint8Array(SLOTS);
  /** Since when, milliseconds. */
  readonly sinceMs = new Float64Array(SLOTS);
  /** When it began, milliseconds. */
  readonly cameMs = new Float64Array(SLOTS);
  /** How long clients keep slots. */
  readonly clients: ClientTimes;
  readonly slots: SlotTable;
  #trace: StageTrace | null = null;
  readonly #clock: Float64Array;
  /** By stage: milliseconds that requests spent there, and how many entered. */
  readonly #spentMs = new Float64Array(STAGES);
  readonly #entered = new Float64Array(STAGES);
  /** By kind of request; undefined for kinds that are not counted. */
  readonly #latencies: readonly (Latencies | undefined)[];
  readonly #reads = new Latencies();
  readonly #writes = new Latencies();
  readonly #flushes = new Latencies();
  #depth = 0;
  #highestDepth = 0;
  /** Requests that began, and the sum of the depths that they found, themselves included. */
  readonly #arrivals = new Float64Array(2);

  /**
   * @param clock The time that the loop read last, milliseconds, at index 0.
   * @param slots What the requests are.
   */
  constructor(clock: Float64Array, slots: SlotTable) {
    this.#clock = clock;
    this.clients = new ClientTimes(clock);
    this.slots = slots;
    const latencies: (Latencies | undefined)[] = new Array(Object.keys(RequestKind).length);
    latencies.fill(undefined);
    latencies[RequestKind.Read] = this.#reads;
    latencies[RequestKind.Write] = this.#writes;
    latencies[RequestKind.Flush] = this.#flushes;
    this.#latencies = latencies;
  }

  /** Records what becomes of each request from now on; null for no more. */
  set trace(trace: StageTrace | null) {
    this.#trace = trace;
    this.slots.trace = trace;
  }

  /** A request begins. */
  begin(slot: number): void {
    this.clients.begin(slot);
    this.cameMs[slot] = this.#clock[0];
    this.sinceMs[slot] = this.#clock[0];
    if (++this.#depth > this.#highestDepth) this.#highestDepth = this.#depth;
    this.#arrivals[0]++;
    this.#arrivals[1] += this.#depth;
    if (this.#trace !== null) this.#trace.began(slot);
  }

  /** A request goes to another stage. */
  move(slot: number, stage: Stage): void {
    if (stage === this.stage[slot]) return;
    this.#settle(slot);
    this.stage[slot] = stage;
    this.#entered[stage]++;
  }

  #settle(slot: number): void {
    if (this.#trace !== null) this.#trace.left(slot, this.stage[slot]);
    this.#spentMs[this.stage[slot]] += this.#clock[0] - this.sinceMs[slot];
    this.sinceMs[slot] = this.#clock[0];
  }

  /** All requests of one stage go to another: a pause begins, or ends. */
  moveAll(from: Stage, to: Stage): void {
    for (let slot = 0; slot < SLOTS; slot++) if (this.stage[slot] === from) this.move(slot, to);
  }

  /** A request ends. */
  end(slot: number, kind: RequestKind, errno: number): void {
    this.#latencies[kind]?.note(this.cameMs, slot, this.#clock);
    this.drop(slot, errno);
  }

  /** A request ends that the device did not try to its end; its latency does not count. */
  drop(slot: number, errno: number): void {
    this.#settle(slot);
    this.stage[slot] = Stage.None;
    this.clients.end(slot);
    if (this.#trace !== null) this.#trace.ended(slot, errno);
    this.#depth--;
  }

  /** The longest time that a request has been in a stage, milliseconds. */
  longestMs(stage: Stage, nowMs: number): number {
    let longestMs = 0;
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.stage[slot] === stage) longestMs = Math.max(longestMs, nowMs - this.sinceMs[slot]);
    }
    return longestMs;
  }

  /** When times were counted last, milliseconds. */
  get clockMs(): number {
    return this.#clock[0];
  }

  /** Where requests are just now. */
  facts(nowMs: number): Record<"room" | "pause" | "retry" | "disk" | "limit", StageFacts> {
    const stage = (which: Stage): StageFacts => ({
      requests: this.stage.reduce((sum, each) => sum + (each === which ? 1 : 0), 0),
      longestMs: this.longestMs(which, nowMs),
    });
    return {
      room: stage(Stage.Room),
      pause: stage(Stage.Paused),
      retry: stage(Stage.Retry),
      disk: stage(Stage.Disk),
      limit: stage(Stage.Limit),
    };
  }

  /** The times of all requests. */
  summary(): TimesSummary {
    const spentMs = this.#spentMs.slice();
    for (let slot = 0; slot < SLOTS; slot++) {
      spentMs[this.stage[slot]] += this.#clock[0] - this.sinceMs[slot];
    }
    const [came, found] = this.#arrivals;
    const wait = (stage: Stage): Wait => ({
      requests: this.#entered[stage],
      milliseconds: rounded(spentMs[stage]),
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
      waited: {
        room: wait(Stage.Room),
        pause: wait(Stage.Paused),
        retry: wait(Stage.Retry),
        limit: wait(Stage.Limit),
      },
      at_disk_ms: rounded(spentMs[Stage.Disk]),
      at_client: { now: this.clients.waiting(), milliseconds: rounded(this.clients.totalMs()) },
    };
  }
}
