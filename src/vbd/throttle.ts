import { SECTOR_BYTES } from "../driver/driver.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import { isLimited, NO_LIMITS, RATE_LIMIT_NAMES, type RateLimits } from "./rate_limits.ts";
import { SlotQueue } from "./slot_queue.ts";
import { RequestKind, type SlotTable } from "./slots.ts";

const READ = 0;
const WRITE = 1;
/** A request that no limit holds back: a flush must not wait for writes that come after it. */
const FREE = -1;
/** By kind of request: the direction whose limits it counts for. */
const DIRECTIONS = new Int8Array(Object.keys(RequestKind).length).fill(WRITE);
DIRECTIONS[RequestKind.Read] = READ;
DIRECTIONS[RequestKind.Flush] = FREE;
DIRECTIONS[RequestKind.Status] = FREE;

/** Where in the arrays the limits of a direction are, and those of both together. */
const TOTAL = 2;
const IOPS = 0;
const BPS = 3;
const NONE = -1;
/** The shortest time between two calls of the timer: more requests share one. */
const LEAST_WAIT_MS = 1;

/**
 * Holds requests back that would go beyond the limits of their device.
 *
 * Each limit has the time at which it is used up to: a request that passes puts it off by what the
 * request takes at the limit's rate. A request passes when none of its limits is used beyond the
 * present, so that a request of any length passes in the end, and those behind it pay for it. The
 * time is never longer ago than the burst: what was not used before is lost. So the sum of what
 * passed in any period is exact to a burst and one request, however late the timer comes.
 */
export class Throttle {
  /** Whether there are limits. */
  isOn = false;
  limits: RateLimits = NO_LIMITS;
  readonly #slots: SlotTable;
  readonly #scheduler: Scheduler;
  readonly #faults: FaultOwner;
  readonly #clock: Float64Array;
  readonly #due: () => void;
  /** By limit: milliseconds that a unit takes, 0 without a limit; and the time it is used up to. */
  readonly #unitMs = new Float64Array(RATE_LIMIT_NAMES.length);
  readonly #usedToMs = new Float64Array(RATE_LIMIT_NAMES.length).fill(-Infinity);
  /** The burst in milliseconds. */
  #burstMs = 0;
  /** Requests that wait, by direction. */
  readonly #held: readonly SlotQueue[] = [new SlotQueue(), new SlotQueue()];
  /** The direction that had its turn last. */
  #last = WRITE;
  #timer = 0;
  #timerMs = 0;
  readonly #fire = (): void => {
    this.#timer = 0;
    this.#due();
  };

  /**
   * @param faults The disk.
   * @param due Called when the first request that waits may pass: `release` has it.
   */
  constructor(
    slots: SlotTable,
    { scheduler, faults, due }: { scheduler: Scheduler; faults: FaultOwner; due: () => void },
  ) {
    this.#slots = slots;
    this.#scheduler = scheduler;
    this.#faults = faults;
    this.#clock = scheduler.lastMs;
    this.#due = due;
  }

  /** How many requests wait. */
  get size(): number {
    return this.#held[READ].size + this.#held[WRITE].size;
  }

  /** Whether a request that waits may pass now. */
  get isDue(): boolean {
    return this.#isDue(READ) || this.#isDue(WRITE);
  }

  #isDue(direction: number): boolean {
    return this.#held[direction].size > 0 && this.#mayPass(direction);
  }

  /** Changes the limits, also for what waits. What was used of one that changes is forgotten. */
  change(limits: RateLimits): void {
    this.stop();
    RATE_LIMIT_NAMES.forEach((name, i) => {
      if (limits[name] === this.limits[name]) return;
      this.#unitMs[i] = limits[name] === 0 ? 0 : 1000 / limits[name];
      this.#usedToMs[i] = -Infinity;
    });
    this.#burstMs = limits.burstMs;
    this.limits = limits;
    this.isOn = isLimited(limits);
    this.arm();
  }

  #mayPass(direction: number): boolean {
    const nowMs = this.#clock[0];
    const used = this.#usedToMs;
    return used[IOPS + direction] <= nowMs && used[IOPS + TOTAL] <= nowMs &&
      used[BPS + direction] <= nowMs && used[BPS + TOTAL] <= nowMs;
  }

  /** Holds a request back if it may not pass now: then true, and `release` returns it later. */
  holds(slot: number): boolean {
    const direction = DIRECTIONS[this.#slots.kind[slot]];
    if (direction === FREE) return false;
    const queue = this.#held[direction];
    // What came before it in the other direction has its turn first, or a total might never get to it.
    const other = READ + WRITE - direction;
    if (queue.size === 0 && this.#mayPass(direction) && !this.#isDue(other)) return false;
    queue.push(slot);
    if (queue.size === 1) this.arm();
    return true;
  }

  /** A request passes, with a step of so many sectors. Its first step counts as a request. */
  pass(slot: number, sectors: number): void {
    const kind = this.#slots.kind[slot];
    const direction = DIRECTIONS[kind];
    if (direction === FREE) return;
    if (this.#slots.progress[slot] === 0) {
      this.#use(IOPS + direction, 1);
      this.#use(IOPS + TOTAL, 1);
    }
    // A discard moves no bytes.
    if (kind === RequestKind.Discard) return;
    this.#use(BPS + direction, sectors * SECTOR_BYTES);
    this.#use(BPS + TOTAL, sectors * SECTOR_BYTES);
  }

  #use(limit: number, units: number): void {
    const unitMs = this.#unitMs[limit];
    if (unitMs === 0) return;
    const leastMs = this.#clock[0] - this.#burstMs;
    const usedToMs = this.#usedToMs[limit];
    this.#usedToMs[limit] = (usedToMs > leastMs ? usedToMs : leastMs) + units * unitMs;
  }

  /** Takes out a request that may pass now; -1 without one. Reads and writes take turns. */
  release(): number {
    const other = READ + WRITE - this.#last;
    const direction = this.#isDue(other) ? other : this.#isDue(this.#last) ? this.#last : NONE;
    if (direction === NONE) return NONE;
    this.#last = direction;
    return this.#held[direction].shift();
  }

  /** Puts a request back that `release` returned. */
  putBack(slot: number): void {
    this.#held[DIRECTIONS[this.#slots.kind[slot]]].unshift(slot);
  }

  /** Takes all requests that wait to another queue: reads, then the others. */
  moveTo(queue: SlotQueue): void {
    this.stop();
    for (const held of this.#held) while (held.size > 0) queue.push(held.shift());
  }

  /** Sets the timer for the first request that may pass. One that may already is `due`. */
  arm(): void {
    if (this.size === 0) return;
    const nowMs = this.#clock[0];
    const atMs = Math.min(this.#passesMs(READ), this.#passesMs(WRITE));
    if (atMs <= nowMs) return this.#due();
    if (this.#timer !== 0 && this.#timerMs <= atMs) return;
    this.stop();
    this.#timerMs = atMs;
    const delayMs = Math.max(atMs - nowMs, LEAST_WAIT_MS);
    this.#timer = this.#scheduler.addTimer(delayMs, this.#fire, this.#faults);
  }

  /** When the first request of a direction may pass; Infinity without one. */
  #passesMs(direction: number): number {
    if (this.#held[direction].size === 0) return Infinity;
    const used = this.#usedToMs;
    return Math.max(
      used[IOPS + direction],
      used[IOPS + TOTAL],
      used[BPS + direction],
      used[BPS + TOTAL],
    );
  }

  /** Calls `due` no more until another request waits, or `arm`. */
  stop(): void {
    if (this.#timer === 0) return;
    this.#scheduler.cancelTimer(this.#timer);
    this.#timer = 0;
  }

  /** Takes all requests out. */
  clear(): void {
    this.stop();
    for (const queue of this.#held) queue.clear();
  }
}
