import { Errno, errnoOf, messageOf, SystemError } from "../../ffi/errno.ts";
import type { Jobs } from "./jobs.ts";
import type { ChainFacts, MapFacts, ScanFacts, SnapshotFacts, Work } from "./work.ts";

/** How long an answer is shown before its work is done again. */
const KEPT_MS = 30_000;
/** Answers that are kept. */
const MOST_KEPT = 64;
/** How long a page waits for an answer before it is shown without it. */
const PATIENCE_MS = 1_500;
const CHAIN_TIMEOUT_MS = 30_000;
const MAP_TIMEOUT_MS = 60_000;
const SCAN_TIMEOUT_MS = 120_000;
/** A snapshot waits for the requests in flight at most this long, and then is not made. */
export const SNAPSHOT_DRAIN_SECONDS = 60;
const SNAPSHOT_TIMEOUT_MS = 180_000;

/** What is known of a piece of work. */
export type Fact<Value> =
  | { readonly value: Value; readonly timeMs: number }
  | { readonly error: string }
  /** It is being done. */
  | { readonly isPending: true };

/** A part of a disk. */
export type ShownPart = Pick<Extract<Work, { kind: "map" }>, "startBytes" | "lengthBytes">;

interface WorkLimits {
  readonly timeoutMs: number;
  readonly sign: string;
}

interface Kept {
  readonly beganMs: number;
  readonly done: Promise<Fact<unknown>>;
  fact: Fact<unknown>;
}

/** What processes of their own found out, for as long as it is new enough. */
export class Facts {
  readonly #jobs: Pick<Jobs, "run">;
  readonly #kept = new Map<string, Kept>();

  constructor(jobs: Pick<Jobs, "run">) {
    this.#jobs = jobs;
  }

  /** @param sign Changes when the disk gets another chain. */
  chain(image: string, sign: string): Promise<Fact<ChainFacts>> {
    return this.#find({ kind: "chain", image }, { timeoutMs: CHAIN_TIMEOUT_MS, sign });
  }

  /** @param sign Changes when the disk gets another chain. */
  map(image: string, part: ShownPart, sign: string): Promise<Fact<MapFacts>> {
    return this.#find({ kind: "map", image, ...part }, { timeoutMs: MAP_TIMEOUT_MS, sign });
  }

  scan(folders: readonly string[]): Promise<Fact<ScanFacts>> {
    return this.#find({ kind: "scan", folders }, { timeoutMs: SCAN_TIMEOUT_MS, sign: "" });
  }

  /** Makes a snapshot; returns when it is made. Throws `SystemError`. */
  async snapshot(work: Omit<Extract<Work, { kind: "snapshot" }>, "kind">): Promise<SnapshotFacts> {
    const request: Work = { kind: "snapshot", ...work };
    try {
      return await this.#jobs.run({ request, timeoutMs: SNAPSHOT_TIMEOUT_MS }) as SnapshotFacts;
    } catch (error) {
      if (errnoOf(error) !== Errno.ETIMEDOUT) throw error;
      // The tapdisk has the request, and goes on.
      const what = `Cannot wait for the snapshot of minor ${work.minor} of tapdisk ${work.pid}`;
      const hint =
        "it may still be made: see the chain on the page of the disk before trying again";
      throw new SystemError(Errno.ETIMEDOUT, what, { hint, cause: error });
    } finally {
      this.#kept.clear();
    }
  }

  async #find<Value>(work: Work, { timeoutMs, sign }: WorkLimits): Promise<Fact<Value>> {
    const key = JSON.stringify([work, sign]);
    let kept = this.#kept.get(key);
    const ageMs = kept === undefined ? Infinity : performance.now() - kept.beganMs;
    // Work waits for a place as long as it may take.
    const isPending = kept !== undefined && "isPending" in kept.fact;
    if (kept === undefined || ageMs > (isPending ? 2 * timeoutMs + KEPT_MS : KEPT_MS)) {
      kept = this.#begin(key, work, timeoutMs);
    }
    let timer: number | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, PATIENCE_MS);
    });
    await Promise.race([kept.done, late]);
    clearTimeout(timer);
    // The process is one of this program: what it answers has the type that the work says.
    return kept.fact as Fact<Value>;
  }

  #begin(key: string, work: Work, timeoutMs: number): Kept {
    const done = this.#jobs.run({ request: work, timeoutMs }).then(
      (value): Fact<unknown> => ({ value, timeMs: Date.now() }),
      (error): Fact<unknown> => ({ error: messageOf(error) }),
    );
    const kept: Kept = { beganMs: performance.now(), done, fact: { isPending: true } };
    done.then((fact) => kept.fact = fact);
    this.#kept.delete(key);
    this.#kept.set(key, kept);
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= MOST_KEPT) break;
      this.#kept.delete(oldest);
    }
    return kept;
  }
}
