import type { DeviceAddress } from "../control/client/client.ts";
import type { Monitor } from "./monitor.ts";
import { keyOf } from "./watched.ts";

/** Asks a tapdisk for lines about a disk; may fail. */
export type AskLines = (device: DeviceAddress) => Promise<readonly string[]>;

/** After so long a tapdisk is asked again for a page that is loaded. */
const KEPT_MS = 1000;

/** An answer. */
interface Asked {
  readonly atMs: number;
  /** Null when the tapdisk did not say. */
  readonly lines: Promise<readonly string[] | null>;
}

interface WatchedLines {
  readonly device: DeviceAddress;
  users: number;
  isAsking: boolean;
  /** Null when the tapdisk did not say; undefined before it was asked. */
  lines: readonly string[] | null | undefined;
}

/**
 * Lines about disks, such as their open requests, asked for once for all browsers: with each sample while a page is open, and
 * otherwise no more than once a second however often pages are loaded.
 */
export class LinesWatch {
  readonly #monitor: Monitor;
  readonly #ask: AskLines;
  readonly #nowMs: () => number;
  readonly #watched = new Map<string, WatchedLines>();
  /** Answers of the last second. */
  readonly #asked = new Map<string, Asked>();
  #unsubscribe: (() => void) | null = null;

  /** @param nowMs The clock; never goes back. */
  constructor(
    monitor: Monitor,
    ask: AskLines,
    { nowMs = () => performance.now() }: { nowMs?: () => number } = {},
  ) {
    this.#monitor = monitor;
    this.#ask = ask;
    this.#nowMs = nowMs;
  }

  /** The lines about a disk, at most a second old; null when the tapdisk does not say. */
  once(device: DeviceAddress): Promise<readonly string[] | null> {
    const nowMs = this.#nowMs();
    for (const [key, { atMs }] of this.#asked) if (nowMs - atMs >= KEPT_MS) this.#asked.delete(key);
    return this.#asked.get(keyOf(device))?.lines ?? this.#askNow(device);
  }

  #askNow(device: DeviceAddress): Promise<readonly string[] | null> {
    // One of before does not know the question; one that hangs is shown as such by its state.
    const lines = this.#ask(device).catch(() => null);
    this.#asked.set(keyOf(device), { atMs: this.#nowMs(), lines });
    return lines;
  }

  /** The lines as they were found last; null when the tapdisk did not say, undefined before it was asked. */
  linesOf(key: string): readonly string[] | null | undefined {
    return this.#watched.get(key)?.lines;
  }

  /** Asks after each sample, until the function that it returns is called. */
  watch(key: string, device: DeviceAddress): () => void {
    const watched = this.#watched.get(key) ?? {
      device,
      users: 0,
      isAsking: false,
      lines: undefined,
    };
    watched.users++;
    this.#watched.set(key, watched);
    this.#unsubscribe ??= this.#monitor.subscribe(() => this.#askAll());
    return () => {
      if (--watched.users > 0) return;
      this.#watched.delete(key);
      if (this.#watched.size > 0) return;
      this.#unsubscribe?.();
      this.#unsubscribe = null;
    };
  }

  #askAll(): void {
    for (const watched of this.#watched.values()) {
      if (watched.isAsking) continue;
      watched.isAsking = true;
      this.#askNow(watched.device).then((lines) => {
        watched.lines = lines;
        watched.isAsking = false;
      });
    }
  }
}
