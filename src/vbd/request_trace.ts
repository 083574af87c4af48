import { MOST_COUNT, NO_SLOT, RECEIVING, RecordType } from "../trace/records.ts";
import type { SlotFinder } from "../trace/file_traces.ts";
import type { TraceRing } from "../trace/trace_ring.ts";
import { REQUEST_SECTORS } from "../driver/driver.ts";
import { type RequestTimes, Stage, type StageTrace } from "./request_times.ts";
import { SLOTS, type SlotTable } from "./slots.ts";
import type { Vbd } from "./vbd.ts";

const NEVER = 0;

/**
 * Records what becomes of the requests of a device: when they come, which stages they go through, and
 * when they end. A stage is recorded when it ends. Those in which no time passed are left out, but for
 * those at the image.
 */
export class RequestTrace implements StageTrace, SlotFinder {
  readonly #ring: TraceRing;
  readonly #slots: SlotTable;
  readonly #times: RequestTimes;
  readonly #clock: Float64Array;
  /** By slot: when it was taken for its request, and when the request ended; 0 before that. */
  readonly #takenMs = new Float64Array(SLOTS);
  readonly #endedMs = new Float64Array(SLOTS);
  /** Since when clients have waited for slots; 0: they do not. */
  readonly #wantedMs = new Float64Array(1);
  readonly #nothing = new Float64Array(1);

  /** @param clock The time that the loop read last, milliseconds, at index 0. */
  constructor(ring: TraceRing, times: RequestTimes, clock: Float64Array) {
    this.#ring = ring;
    this.#times = times;
    this.#slots = times.slots;
    this.#clock = clock;
    const { stage, cameMs } = times;
    for (let slot = 0; slot < SLOTS; slot++) {
      if (stage[slot] !== Stage.None) this.#takenMs[slot] = cameMs[slot];
    }
  }

  taken(slot: number): void {
    this.#takenMs[slot] = this.#clock[0];
  }

  /** A request begins, after the data of a write was received. */
  began(slot: number): void {
    this.#endedMs[slot] = NEVER;
    // A block device keeps its slots: they are not taken for each request.
    if (this.#takenMs[slot] === NEVER) this.#takenMs[slot] = this.#clock[0];
    else if (this.#takenMs[slot] < this.#clock[0]) {
      this.#stage(slot, RECEIVING, 0, this.#takenMs);
    }
  }

  /** A request leaves a stage. */
  left(slot: number, stage: number): void {
    if (stage === Stage.None) return;
    const { sinceMs } = this.#times;
    const isAtImage = stage === Stage.Disk;
    if (!isAtImage && sinceMs[slot] === this.#clock[0]) return;
    this.#stage(slot, stage, isAtImage ? this.#slots.error[slot] : 0, sinceMs);
  }

  #stage(slot: number, stage: number, errno: number, sinceMs: Float64Array): void {
    const { progress } = this.#slots;
    const { Stage: type } = RecordType;
    this.#ring.put(
      type,
      stage,
      slot,
      0,
      0,
      errno,
      sinceMs,
      slot,
      sinceMs,
      slot,
      progress,
      slot,
    );
  }

  /** A request ends. */
  ended(slot: number, errno: number): void {
    this.#request(slot, errno, 0);
    this.#takenMs[slot] = NEVER;
    this.#endedMs[slot] = this.#clock[0];
  }

  #request(slot: number, errno: number, unfinished: number): void {
    const { kind, count, sector } = this.#slots;
    this.#ring.put(
      RecordType.Request,
      kind[slot],
      slot,
      unfinished,
      count[slot] > MOST_COUNT ? MOST_COUNT : count[slot],
      errno,
      this.#takenMs,
      slot,
      this.#times.cameMs,
      slot,
      sector,
      slot,
    );
  }

  given(slot: number): void {
    if (this.#endedMs[slot] !== NEVER && this.#endedMs[slot] < this.#clock[0]) {
      this.#span(RecordType.Reply, slot, this.#endedMs, slot);
    }
    this.#endedMs[slot] = NEVER;
    this.#takenMs[slot] = NEVER;
  }

  wanted(isWanted: boolean): void {
    if (isWanted) {
      if (this.#wantedMs[0] === NEVER) this.#wantedMs[0] = this.#clock[0];
      return;
    }
    if (this.#wantedMs[0] === NEVER) return;
    this.#span(RecordType.SlotWait, NO_SLOT, this.#wantedMs, 0);
    this.#wantedMs[0] = NEVER;
  }

  #span(type: number, slot: number, sinceMs: Float64Array, at: number): void {
    this.#ring.put(type, 0, slot, 0, 0, 0, sinceMs, at, sinceMs, at, this.#nothing, 0);
  }

  slotAt(memorySector: number): number {
    const { arena, dataSector, count } = this.#slots;
    const slot = Math.floor((memorySector - arena.sector) / REQUEST_SECTORS);
    if (slot >= 0 && slot < SLOTS) return slot;
    // A block device may have the data of its requests elsewhere.
    for (let other = 0; other < SLOTS; other++) {
      const within = memorySector - dataSector[other];
      if (within >= 0 && within < count[other] && this.#slots.isOpen(other)) return other;
    }
    return NO_SLOT;
  }

  /** The trace ends: records requests that have not, as far as they have come. */
  finish(): void {
    const { stage } = this.#times;
    for (let slot = 0; slot < SLOTS; slot++) {
      if (stage[slot] === Stage.None || this.#takenMs[slot] === NEVER) continue;
      this.left(slot, stage[slot]);
      this.#request(slot, 0, 1);
    }
    this.wanted(false);
  }
}

/** Records what becomes of the requests of a device, in a ring. */
export function beginTrace(
  { tracing, requests: { times } }: Vbd,
  ring: TraceRing,
  clock: Float64Array,
): RequestTrace {
  const trace = new RequestTrace(ring, times, clock);
  tracing.begin(ring, trace);
  times.trace = trace;
  return trace;
}

/** Records no more, and what has not ended as far as it has come. */
export function endTrace({ tracing, requests: { times } }: Vbd, trace: RequestTrace): void {
  times.trace = null;
  tracing.end();
  trace.finish();
}
