import { messageOf } from "../../ffi/errno.ts";
import type { HostSample } from "../observe/sample.ts";
import { stateOf } from "../observe/state.ts";
import { NO_REQUESTS } from "../observe/histogram.ts";
import { type Activity, activityBetween, sumOf } from "./activity.ts";
import { type DiskEvent, eventsBetween } from "./events.ts";
import { heatColumn, History, pointOf } from "./history.ts";
import { keyOf, type WatchedDisk } from "./watched.ts";

/** How often tapdisks are asked while somebody looks, and while nobody does. */
const WATCHED_MS = 1000;
const UNWATCHED_MS = 5000;
/** Disks whose history is kept. Of others only the last sample is. */
const MOST_HISTORIES = 1000;
/** Events that are kept. */
const MOST_EVENTS = 200;

/** How often samples are taken. */
export interface MonitorTimes {
  /** While somebody looks. */
  readonly watchedMs?: number;
  /** While nobody does. */
  readonly unwatchedMs?: number;
}

/** Is told of each new sample. */
export type Listener = () => void;

/**
 * Samples all disks again and again, for all browsers together: tapdisks are asked no more often however
 * many look.
 */
export class Monitor {
  readonly #take: () => Promise<HostSample>;
  readonly #watchedMs: number;
  readonly #unwatchedMs: number;
  readonly #listeners = new Set<Listener>();
  readonly #histories = new Map<string, History>();
  readonly #events: DiskEvent[] = [];
  #last: HostSample | null = null;
  #disks: ReadonlyMap<string, WatchedDisk> = new Map();
  #totals: Activity | null = null;
  #problem: string | null = null;
  #timer: number | undefined;
  #beganMs = 0;
  #isSampling = false;
  #isClosed = false;
  /** The history of all disks together. */
  readonly history = new History();

  /** @param take Samples all disks; may fail. */
  constructor(
    take: () => Promise<HostSample>,
    { watchedMs = WATCHED_MS, unwatchedMs = UNWATCHED_MS }: MonitorTimes = {},
  ) {
    this.#take = take;
    this.#watchedMs = watchedMs;
    this.#unwatchedMs = unwatchedMs;
  }

  /** Samples once, so that the first page has figures, and goes on by itself. */
  async start(): Promise<void> {
    await this.#turn();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  /** The disks of the last sample, by their keys. */
  get disks(): ReadonlyMap<string, WatchedDisk> {
    return this.#disks;
  }

  /** The last sample; null before the first. */
  get last(): HostSample | null {
    return this.#last;
  }

  /** What all disks together do; null when it is not known. */
  get totals(): Activity | null {
    return this.#totals;
  }

  /** Why the last sample could not be taken; null when it could. */
  get problem(): string | null {
    return this.#problem;
  }

  /** What happened, the newest first. */
  get events(): readonly DiskEvent[] {
    return this.#events;
  }

  historyOf(key: string): History | null {
    return this.#histories.get(key) ?? null;
  }

  /** Calls `listener` after each sample, until the function that it returns is called. */
  subscribe(listener: Listener): () => void {
    this.#listeners.add(listener);
    if (!this.#isSampling && this.#listeners.size === 1) this.#schedule();
    return () => {
      this.#listeners.delete(listener);
    };
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    if (this.#isClosed) return;
    const everyMs = this.#listeners.size > 0 ? this.#watchedMs : this.#unwatchedMs;
    const dueMs = this.#beganMs + everyMs - performance.now();
    this.#timer = setTimeout(() => this.#turn(), Math.max(dueMs, 0));
  }

  async #turn(): Promise<void> {
    this.#isSampling = true;
    this.#beganMs = performance.now();
    try {
      this.#add(await this.#take());
      this.#problem = null;
    } catch (error) {
      this.#problem = messageOf(error);
    }
    this.#isSampling = false;
    for (const listener of [...this.#listeners]) listener();
    this.#schedule();
  }

  #add(sample: HostSample): void {
    const disks = new Map<string, WatchedDisk>();
    for (const disk of sample.disks) {
      const key = keyOf(disk);
      const before = this.#disks.get(key)?.sample;
      const activity = before === undefined ? null : activityBetween(before, disk);
      disks.set(key, { key, sample: disk, state: stateOf(disk), activity });
    }
    const silent = new Set(sample.silent.map(({ pid }) => pid));
    for (const disk of this.#disks.values()) {
      if (!silent.has(disk.sample.pid)) continue;
      disks.set(disk.key, { ...disk, state: "no answer", activity: null });
    }
    if (this.#last !== null) {
      this.#events.unshift(...eventsBetween(this.#disks, disks, sample.timeMs).reverse());
      this.#events.length = Math.min(this.#events.length, MOST_EVENTS);
    }
    this.#disks = disks;
    this.#last = sample;
    this.#remember(sample.timeMs);
  }

  #remember(timeMs: number): void {
    for (const key of this.#histories.keys()) {
      if (!this.#disks.has(key)) this.#histories.delete(key);
    }
    const known: Activity[] = [];
    for (const [key, { activity }] of this.#disks) {
      if (activity !== null) known.push(activity);
      let history = this.#histories.get(key);
      if (history === undefined && this.#histories.size < MOST_HISTORIES) {
        history = new History();
        this.#histories.set(key, history);
      }
      history?.add(pointOf(timeMs, activity), heatColumn(activity?.ended ?? NO_REQUESTS));
    }
    this.#totals = sumOf(known);
    this.history.add(pointOf(timeMs, this.#totals), heatColumn(this.#totals?.ended ?? NO_REQUESTS));
  }
}
