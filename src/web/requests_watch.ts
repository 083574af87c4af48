import type { DeviceAddress } from "../control/client/client.ts";
import type { Monitor } from "./monitor.ts";

/** Asks for the open requests of a disk; may fail. */
export type AskRequests = (device: DeviceAddress) => Promise<readonly string[]>;

interface WatchedRequests {
  readonly device: DeviceAddress;
  users: number;
  isAsking: boolean;
  /** Null when the tapdisk did not say. */
  lines: readonly string[] | null;
}

/** The open requests of the disks whose pages are open, asked for once for all browsers. */
export class RequestsWatch {
  readonly #monitor: Monitor;
  readonly #ask: AskRequests;
  readonly #watched = new Map<string, WatchedRequests>();
  #unsubscribe: (() => void) | null = null;

  constructor(monitor: Monitor, ask: AskRequests) {
    this.#monitor = monitor;
    this.#ask = ask;
  }

  /** Asks once; null when the tapdisk does not say. */
  async once(device: DeviceAddress): Promise<readonly string[] | null> {
    try {
      return await this.#ask(device);
    } catch {
      // One of before does not know the question; one that hangs is shown as such by its state.
      return null;
    }
  }

  /** The requests as they were found last. */
  linesOf(key: string): readonly string[] | null {
    return this.#watched.get(key)?.lines ?? null;
  }

  /** Asks after each sample, until the function that it returns is called. */
  watch(key: string, device: DeviceAddress): () => void {
    const watched = this.#watched.get(key) ?? { device, users: 0, isAsking: false, lines: null };
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
      this.once(watched.device).then((lines) => {
        watched.lines = lines;
        watched.isAsking = false;
      });
    }
  }
}
