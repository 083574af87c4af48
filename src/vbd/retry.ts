import { Errno, errnoName } from "../../ffi/errno.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import { isErrorOfPlace } from "../queue/file_health.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import { SlotQueue } from "./slot_queue.ts";
import { RequestKind, SLOTS, type SlotTable } from "./slots.ts";

/** Pause between two tries of a request, as in the reference (TD_VBD_RETRY_INTERVAL). */
const RETRY_INTERVAL_MS = 1000;

/** Which errors are tried again: all that may pass, those that always pass soon, or none. */
export const RETRY_POLICIES = ["all", "transient", "none"] as const;
/** One of `RETRY_POLICIES`. */
export type RetryPolicy = (typeof RETRY_POLICIES)[number];

/** How long a request is tried before its error is handed up. */
export interface RetryLimits {
  readonly policy: RetryPolicy;
  /** Tries after the first. */
  readonly attempts: number;
  /** Time since the first failure, milliseconds. */
  readonly timeoutMs: number;
}

/** Tries of a request after the first, as in the reference (TD_VBD_MAX_RETRIES). */
const DEFAULT_ATTEMPTS = 100;

/** The limits of a device: those that were asked for, or so many tries when none was. */
export function retryLimits(asked: Partial<RetryLimits> = {}): RetryLimits {
  const { policy = "all", timeoutMs = Infinity } = asked;
  const attempts = timeoutMs === Infinity ? DEFAULT_ATTEMPTS : Infinity;
  return { policy, attempts: asked.attempts ?? attempts, timeoutMs };
}

/** Errors that pass soon; since 2023 the reference tries no others again. */
const transient: ReadonlySet<number> = new Set([Errno.EAGAIN, Errno.EBUSY, Errno.EINTR]);

/**
 * So many tries must fail while others succeed before the error is that of a single place of the disk,
 * and handed up: of a request that reads, and of one that changes the disk. A guest often has to give a
 * filesystem up for an error of the second kind.
 */
const PROOFS_TO_READ = 10;
const PROOFS_TO_CHANGE = 30;

/**
 * Errors of a request that is wrong in itself: trying again cannot help. EACCES and EBADF are none of them:
 * for an open file only a server says so, while its exports change.
 */
const final: ReadonlySet<number> = new Set([
  Errno.EINVAL,
  Errno.EPERM,
  Errno.EFAULT,
  Errno.EFBIG,
  Errno.EROFS,
  Errno.EOPNOTSUPP,
  Errno.ENOSYS,
]);

/** Starts requests again. */
export interface RetrySink {
  /** What a fault of `retry` ends. */
  readonly faults: FaultOwner;
  /** Whether whatever failed since then failed at single places of disks that work. */
  areErrorsOfPlaces(sinceMs: number): boolean;
  /** The requests that wait are tried again now; the tries before began at `sinceMs`. */
  retriesBegin(sinceMs: number): void;
  /** It is time for the next try of a request. */
  retry(slot: number): void;
}

/** Requests that failed, and wait for their next try. */
export class RetryQueue {
  readonly #slots: SlotTable;
  readonly #scheduler: Scheduler;
  readonly #sink: RetrySink;
  readonly #waiting = new SlotQueue();
  /** By slot: failed tries, the error of the last one, and when the first one failed. */
  readonly #failures = new Uint32Array(SLOTS);
  /** By slot: whether any try has failed, also one that does not count any more. */
  readonly #hasFailed = new Uint8Array(SLOTS);
  readonly #lastErrors = new Int32Array(SLOTS);
  readonly #firstFailedMs = new Float64Array(SLOTS);
  /** By slot: tries that failed while others succeeded at other places. */
  readonly #proofs = new Uint32Array(SLOTS);
  /** The error of the try that failed last. */
  #lastError = 0;
  /** When all were last tried, and the time before. */
  #roundMs = 0;
  #roundBeforeMs = 0;
  #timer = 0;
  readonly #retryAll = (): void => {
    this.#timer = 0;
    if (this.#sink.faults.failed) return;
    this.#roundBeforeMs = this.#roundMs;
    this.#roundMs = this.#scheduler.nowMs();
    this.#sink.retriesBegin(this.#roundBeforeMs);
    for (let left = this.#waiting.size; left > 0; left--) this.#sink.retry(this.#waiting.shift());
  };

  constructor(slots: SlotTable, scheduler: Scheduler, sink: RetrySink) {
    this.#slots = slots;
    this.#scheduler = scheduler;
    this.#sink = sink;
  }

  /** The last error of a request that waits for its next try, or just failed again; 0 without one. */
  get error(): number {
    return this.size === 0 ? 0 : this.#lastError;
  }

  /** How many requests wait for their next try. */
  get size(): number {
    return this.#waiting.size;
  }

  /** A request begins: nothing of it has failed. */
  begin(slot: number): void {
    this.#failures[slot] = 0;
    this.#hasFailed[slot] = 0;
    this.#lastErrors[slot] = 0;
    this.#proofs[slot] = 0;
  }

  /** Another image is open: failures before, and the time since, do not count against it. */
  beginAll(): void {
    this.#failures.fill(0);
    this.#proofs.fill(0);
  }

  /** How often a request failed. */
  failures(slot: number): number {
    return this.#failures[slot];
  }

  /** The error of the last try that failed; 0 without one. */
  lastError(slot: number): number {
    return this.#lastErrors[slot];
  }

  /**
   * Whether a request, or the rest of one, is given up, as its client has gone without an answer: the client
   * may have made it again on another connection, and written something newer since. Of a client that
   * said goodbye before, only what failed is given up. That another image is open now, as after a pause,
   * changes nothing about it.
   */
  isMoot(slot: number): boolean {
    const owner = this.#slots.owner[slot];
    if (owner.hasAbandoned === true) return true;
    return this.#hasFailed[slot] === 1 && owner.faults?.failed === true;
  }

  /** A try of a request failed. Says whether there is to be another. */
  noteFailure(slot: number, errno: number, { policy, attempts, timeoutMs }: RetryLimits): boolean {
    const nowMs = this.#scheduler.nowMs();
    this.#lastErrors[slot] = errno;
    this.#lastError = errno;
    this.#hasFailed[slot] = 1;
    if (this.#failures[slot]++ === 0) this.#firstFailedMs[slot] = nowMs;
    if (policy === "none" || (policy === "transient" && !transient.has(errno))) return false;
    if (final.has(errno) || this.#failures[slot] > attempts) return false;
    if (isErrorOfPlace(errno) && this.#tryFailedAtPlace(slot)) return false;
    return nowMs - this.#firstFailedMs[slot] < timeoutMs;
  }

  #tryFailedAtPlace(slot: number): boolean {
    const isTriedAgain = this.#failures[slot] > 1;
    if (isTriedAgain && this.#sink.areErrorsOfPlaces(this.#roundBeforeMs)) this.#proofs[slot]++;
    return this.failedAtPlace(slot);
  }

  /** Whether a request failed so often while others succeeded that its place of the disk is at fault. */
  failedAtPlace(slot: number): boolean {
    const reads = this.#slots.kind[slot] === RequestKind.Read;
    return this.#proofs[slot] >= (reads ? PROOFS_TO_READ : PROOFS_TO_CHANGE);
  }

  /** A failure of a request, for the log. */
  describeFailure(slot: number, imageName: string): string {
    const where = `a request at sector ${this.#slots.sector[slot]} of ${imageName}`;
    const why = errnoName(this.#lastErrors[slot]);
    if (!this.failedAtPlace(slot)) return `${where} failed (${why})`;
    const times = `${this.#failures[slot]} times`;
    return `${where} failed ${times} (${why}), and the rest of its disk works: its user gets the error`;
  }

  /** Puts a request behind those that wait. */
  push(slot: number): void {
    this.#waiting.push(slot);
    if (this.#timer !== 0) return;
    this.#roundMs = this.#scheduler.nowMs() - RETRY_INTERVAL_MS;
    this.#timer = this.#scheduler.addTimer(RETRY_INTERVAL_MS, this.#retryAll, this.#sink.faults);
  }

  /** Takes the first request out; there must be one. */
  shift(): number {
    return this.#waiting.shift();
  }

  /** There is no next try any more: those that wait are taken out by `shift`, or by `clear`. */
  stop(): void {
    this.#scheduler.cancelTimer(this.#timer);
    this.#timer = 0;
  }

  /** Takes all requests out. */
  clear(): void {
    this.stop();
    this.#waiting.clear();
  }
}
