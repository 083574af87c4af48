import type { SystemError } from "../../../ffi/errno.ts";
import type { Log, LogEvent, LogFields } from "../../log/log.ts";
import type { LiveSnapshot } from "../../vbd/live_snapshot.ts";
import { describeLimits, type RateLimits } from "../../vbd/rate_limits.ts";
import type { ToldFacts } from "../protocol/explain.ts";
import { type Actor, actorText } from "./actor.ts";

/** Who paused a disk, and when by the clock of the loop. */
export interface PausedBy {
  /** Null when that is not known. */
  readonly actor: Actor | null;
  readonly sinceMs: number;
}

/** Tells the log of changes of a disk's state, a line each, and notes who paused it. */
export class DeviceEvents {
  readonly #minor: number;
  readonly #log: Log;
  readonly #nowMs: () => number;
  /** Who paused it; null while it is not paused by an order. */
  paused: PausedBy | null = null;
  /** Why the images could not be opened again, and when that was. */
  #failure: { readonly why: string; readonly sinceMs: number } | null = null;

  constructor(minor: number, log: Log, nowMs: () => number) {
    this.#minor = minor;
    this.#log = log;
    this.#nowMs = nowMs;
  }

  #tell(event: LogEvent, image: string, line: string, fields: LogFields = {}): void {
    this.#log.info(line, { event, minor: this.#minor, image, ...fields });
  }

  /** An image was opened. */
  opened(image: string): void {
    this.#tell("opened", image, `Opened ${image} on minor ${this.#minor}`);
  }

  /** The image was closed. */
  closed(image: string): void {
    this.paused = null;
    this.#failure = null;
    this.#tell("closed", image, `Closed ${image || "nothing"} on minor ${this.#minor}`);
  }

  /** Another program has made the image larger. */
  grown(image: string, sectors: number): void {
    this.#tell("grown", image, `Minor ${this.#minor} has grown to ${sectors} sectors`);
  }

  /** The limits of the disk have changed. */
  limited(image: string, limits: RateLimits): void {
    const line = `Minor ${this.#minor} is limited to: ${describeLimits(limits)}`;
    this.#tell("limited", image, line);
  }

  /** A snapshot was made while the disk ran. */
  snapshot({ name, parent, stallMs }: LiveSnapshot): void {
    const held = `requests waited ${stallMs.toFixed(1)} ms`;
    const line = `Minor ${this.#minor} goes on with ${name} on ${parent}; ${held}`;
    this.#tell("snapshot", name, line, { durationMs: stallMs });
  }

  /**
   * A pause begins. Whoever pauses what is paused already has not paused it.
   *
   * @returns Notes how it ended.
   */
  pausing(
    image: string,
    by: Actor | null,
    wasPaused: boolean,
  ): (error: SystemError | null) => void {
    const before = this.paused;
    this.paused = { actor: by, sinceMs: this.#nowMs() };
    return (error) => {
      if (error !== null || wasPaused) this.paused = before;
      if (error === null) {
        this.#tell("paused", image, `Paused minor ${this.#minor}${byText(by)}`, causeOf(by));
      } else this.#log.warn(error.message, { minor: this.#minor, image, ...causeOf(by) });
    };
  }

  /** It was tried to open the images again after a pause. */
  tried(error: SystemError | null): void {
    this.#failure = error === null ? null : { why: error.message, sinceMs: this.#nowMs() };
    if (error !== null) this.#log.warn(error.message, { minor: this.#minor, errno: error.errno });
  }

  /** Who paused it, and why it is paused still. */
  facts(nowMs: number): Pick<ToldFacts, "paused" | "notResumed"> {
    const { paused } = this;
    const failure = this.#failure;
    return {
      paused: paused && { sinceMs: nowMs - paused.sinceMs, by: paused.actor },
      notResumed: failure && { ...failure, sinceMs: nowMs - failure.sinceMs },
    };
  }

  /** A pause has ended. */
  resumed(image: string, grown: string, by: Actor | null): void {
    const lasted = this.paused === null ? {} : { durationMs: this.#nowMs() - this.paused.sinceMs };
    this.paused = null;
    const line = `Unpaused minor ${this.#minor} with ${image}${grown}${byText(by)}`;
    this.#tell("resumed", image, line, { ...causeOf(by), ...lasted });
  }
}

function byText(by: Actor | null): string {
  return by === null ? "" : `, by ${actorText(by)}`;
}

/** Whose order it was, for programs that read the log. */
function causeOf(by: Actor | null): { pid?: number; command?: string } {
  return by === null ? {} : { pid: by.pid, command: by.command };
}
