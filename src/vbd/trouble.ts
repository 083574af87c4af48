import { Errno, errnoName } from "../../ffi/errno.ts";
import type { LogFields } from "../log/log.ts";
import type { FileHealth } from "../queue/file_health.ts";
import type { RequestTarget } from "./drain_gate.ts";
import type { RetryQueue } from "./retry.ts";
import { SLOTS } from "./slots.ts";

/** Errors with which a filesystem says that it has no room. */
const ofRoom: ReadonlySet<number> = new Set([Errno.ENOSPC, Errno.EDQUOT]);

/** What keeps requests of a device from their end. */
export interface TroubleFacts {
  /** Since when a request has failed that has not ended, milliseconds of the loop's clock. */
  readonly sinceMs: number;
  /** Requests that have failed and not ended. */
  readonly requests: number;
  /** Tries that failed meanwhile. */
  readonly tries: number;
  /** The last error. */
  readonly errno: number;
  /** The file that it is of; null where that is not known, as for a server. */
  readonly file: string | null;
}

/**
 * Notes which requests fail and are tried again: since when, with which error, of which file. The log is
 * told when that begins and when it is over, and of the first failure of each request.
 */
export class Trouble {
  readonly #minor: number;
  readonly #log: (message: string, fields?: LogFields) => void;
  readonly #health: FileHealth;
  readonly #clock: Float64Array;
  readonly #retries: RetryQueue;
  /** By slot: whether its request has failed and not ended. */
  readonly #isFailing = new Uint8Array(SLOTS);
  #failing = 0;
  #givenUp = 0;
  /** Of those that were given up: how many the log has told of already. */
  #told = 0;
  #tries = 0;
  #sinceMs = 0;
  #errno = 0;
  #file: string | null = null;
  #name = "";

  constructor(
    { minor, log, health, clock, retries }: {
      minor: number;
      log: (message: string, fields?: LogFields) => void;
      health: FileHealth;
      /** The time that the loop read last, milliseconds, at index 0. */
      clock: Float64Array;
      retries: RetryQueue;
    },
  ) {
    this.#minor = minor;
    this.#log = log;
    this.#health = health;
    this.#clock = clock;
    this.#retries = retries;
  }

  /** What there is; null when no request fails. */
  get facts(): TroubleFacts | null {
    if (this.#failing === 0) return null;
    return {
      sinceMs: this.#sinceMs,
      requests: this.#failing,
      tries: this.#tries,
      errno: this.#errno,
      file: this.#file,
    };
  }

  /**
   * A try of a request failed.
   *
   * @param again Whether there is another one.
   * @param isOfPlace Whether there is none because a place of the disk is at fault.
   */
  failed(
    slot: number,
    errno: number,
    target: RequestTarget,
    { again, isOfPlace }: { again: boolean; isOfPlace: boolean },
  ): void {
    if (this.#retries.failures(slot) === 1 || isOfPlace) {
      const failure = this.#retries.describeFailure(slot, target.name);
      this.#log(`minor ${this.#minor}: ${failure}`, { minor: this.#minor, errno });
    }
    if (isOfPlace && this.#isFailing[slot] === 1) this.#told++;
    if (!again) return;
    this.#tries++;
    this.#errno = errno;
    this.#file = this.#fileOf(errno, target);
    if (this.#isFailing[slot] === 1) return;
    this.#isFailing[slot] = 1;
    if (this.#failing++ === 0) this.#begins(target.name);
  }

  /** The file whose operation failed last, with that error. */
  #fileOf(errno: number, { files, pathOf }: RequestTarget): string | null {
    let last = -1;
    for (const file of files) {
      if (this.#health.lastErrno(file) !== errno) continue;
      if (last < 0 || this.#health.lastErrorMs(file) > this.#health.lastErrorMs(last)) last = file;
    }
    return last < 0 ? null : pathOf(last);
  }

  #begins(name: string): void {
    this.#sinceMs = this.#clock[0];
    this.#tries = 1;
    this.#givenUp = 0;
    this.#told = 0;
    this.#name = name;
    const [errno, file] = [this.#errno, this.#file];
    const isFull = ofRoom.has(errno);
    const where = file === null ? "" : isFull ? ` of ${file}` : ` at ${file}`;
    const what = isFull
      ? `requests to ${name} wait, as the filesystem${where} is full (${errnoName(errno)})`
      : `requests to ${name} fail (${errnoName(errno)}${where})`;
    const fields = { minor: this.#minor, image: name, errno, ...(file === null ? {} : { file }) };
    this.#log(`Minor ${this.#minor}: ${what}; they are tried again each second`, {
      ...fields,
      event: isFull ? "full" : "retrying",
    });
  }

  /** A request has ended. */
  ended(slot: number, errno: number): void {
    if (this.#isFailing[slot] === 0) return;
    this.#isFailing[slot] = 0;
    if (errno !== 0) this.#givenUp++;
    if (--this.#failing === 0) this.#isOver();
  }

  #isOver(): void {
    if (this.#givenUp > 0 && this.#givenUp === this.#told) return;
    const durationMs = this.#clock[0] - this.#sinceMs;
    const after = `after ${(durationMs / 1000).toFixed(1)} s, in which ${this.#tries} tries failed`;
    const ended = this.#givenUp === 1
      ? `a request to ${this.#name} has ended`
      : `${this.#givenUp} requests to ${this.#name} have ended`;
    const how = this.#givenUp > 0
      ? `${ended} with an error (${errnoName(this.#errno)} at last)`
      : `requests to ${this.#name} succeed again`;
    this.#log(`Minor ${this.#minor}: ${how}, ${after}`, {
      event: this.#givenUp > 0 ? "given-up" : "recovered",
      minor: this.#minor,
      image: this.#name,
      errno: this.#errno,
      durationMs,
      ...(this.#file === null ? {} : { file: this.#file }),
    });
  }
}
