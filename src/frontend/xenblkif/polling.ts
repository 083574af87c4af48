import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { GuestRing } from "./guest.ts";

/** How often the load of the machine is looked at, milliseconds. */
const LOOK_MS = 1000;

/** The time that the machine's processors have had since it started, in any unit. */
export interface ProcessorTimes {
  readonly idle: number;
  readonly all: number;
}

/** Tells how the processors spend their time. */
export type ProcessorClock = () => ProcessorTimes;

const CPU_LINE = /^cpu +(.*)$/m;
/** Fields of the first line of /proc/stat (proc(5)): user, nice, system, idle, iowait, ... steal. */
const IDLE_FIELD = 3;
const COUNTED_FIELDS = 8;

/** The times of this machine; all zeros when the kernel does not tell them. */
export function kernelProcessorTimes(): ProcessorTimes {
  try {
    return parseProcessorTimes(Deno.readTextFileSync("/proc/stat"));
  } catch {
    return { idle: 0, all: 0 };
  }
}

/** The times in the text of /proc/stat. */
export function parseProcessorTimes(text: string): ProcessorTimes {
  const fields = (CPU_LINE.exec(text)?.[1] ?? "").split(" ").slice(0, COUNTED_FIELDS).map(Number);
  return { idle: fields[IDLE_FIELD] ?? 0, all: fields.reduce((sum, field) => sum + field, 0) };
}

/**
 * Decides when a ring is polled. After a request it is looked at in every turn of the loop, which does
 * not sleep meanwhile, until none has come for a while. The guest then need not notify, and no time is
 * lost with going to sleep. It costs the time of a processor, so that there is none on a busy machine.
 */
export class Polling {
  /** Whether the ring is polled. */
  isOn = false;
  readonly #scheduler: Scheduler;
  readonly #durationMs: number;
  readonly #threshold: number;
  readonly #clock: ProcessorClock;
  #untilMs = 0;
  /** The turn in which the ring was looked at last. */
  #lookedIn = -1;
  /** When the load was looked at, and what it was. */
  #lookedMs = -Infinity;
  #times: ProcessorTimes = { idle: 0, all: 0 };
  #idlePercent = 0;

  constructor(
    scheduler: Scheduler,
    { pollDurationUs, pollIdleThreshold }: GuestRing,
    clock: ProcessorClock,
  ) {
    this.#scheduler = scheduler;
    this.#durationMs = pollDurationUs / 1000;
    this.#threshold = pollIdleThreshold;
    this.#clock = clock;
  }

  /** Requests came. */
  noteRequests(): void {
    if (this.#durationMs === 0) return;
    const nowMs = this.#scheduler.lastMs[0];
    this.#untilMs = nowMs + this.#durationMs;
    if (nowMs >= this.#lookedMs + LOOK_MS) this.#look(nowMs);
    this.isOn = this.#idlePercent > this.#threshold;
  }

  /**
   * Whether the ring is to be looked at now: once in a turn, as a guest that adds requests without a
   * pause would keep the loop from all others. It may end here, as no request has come for a while.
   */
  isDue(): boolean {
    if (!this.isOn) return false;
    const { lastMs, turns } = this.#scheduler;
    this.#scheduler.stayAwake();
    if (this.#lookedIn === turns[0]) return false;
    this.#lookedIn = turns[0];
    this.isOn = lastMs[0] < this.#untilMs;
    return true;
  }

  #look(nowMs: number): void {
    const times = this.#clock();
    const all = times.all - this.#times.all;
    this.#idlePercent = all > 0 ? 100 * (times.idle - this.#times.idle) / all : 0;
    this.#times = times;
    this.#lookedMs = nowMs;
  }
}
