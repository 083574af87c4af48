import { type Done, Errno, type SystemError } from "../../ffi/errno.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import type { RetryLimits } from "./retry.ts";
import type { VbdPhase } from "./vbd_phase.ts";

/** How long requests that are at the images may take before these are opened anew. */
const DRAIN_MS = 5000;
/** Pause between two tries. */
const AGAIN_MS = 1000;
/** What was logged is logged again when it comes again after so long a time. */
const FORGET_MS = 60_000;

/** The device, as far as its images can be opened anew. */
export interface ReopeningDevice {
  readonly vbd: {
    readonly minor: number;
    readonly name: string;
    readonly phase: VbdPhase;
    readonly requests: { stop(hold: boolean, drained: () => void): void };
  };
  /** Tells why its files must not be opened anew; null when they are provably the same. */
  findAgain(found: (why: string | null) => void): void;
  /** Tells which of its files, which are closed, cannot be opened now; null when all can. */
  lookUp(found: (why: string | null) => void): void;
  /** The path of an open file that its name does not lead to now; null without one. */
  stray(): string | null;
  /** Drains the device and closes its images. When the close fails, it opens them again. */
  pauseNow(done: Done, timeoutMs: number): void;
  /** Opens its images again, which must be in the same files (ESTALE). */
  resumeNow(done: Done): void;
  /** How long its requests are tried again. */
  limits(): RetryLimits;
}

/** Errors of open files that their server does not know any more. NFS version 4 says EBADF, too. */
const ofUnknownFiles: ReadonlySet<number> = new Set([Errno.ESTALE, Errno.EBADF]);

/** Whether an error may say that the server of an open file does not know the file. */
export function isOfUnknownFile(errno: number): boolean {
  return ofUnknownFiles.has(errno);
}

/**
 * Opens the images of a device anew when a request has failed because the server does not know the open
 * files any more, as when an export was taken away and given again. That happens only while the names lead
 * to the same files, see `src/files/same_file.ts`. Requests wait meanwhile, and are then tried again.
 *
 * So it is after a pause that failed, when the images cannot be opened at once.
 *
 * It is a pause that the device makes itself: metadata is read again, and locks are taken again. A write
 * that ended is in the files, as nothing of them goes through the page cache.
 */
export class Reopening {
  readonly #device: ReopeningDevice;
  readonly #scheduler: Scheduler;
  readonly #log: (message: string) => void;
  #isLooking = false;
  #isRunning = false;
  /** How often it has come to its end. */
  #runs = 0;
  /** When to look again, and when to give up. */
  #nextMs = 0;
  #endMs = 0;
  /** What was logged last, so that it is not logged each second. */
  #told = "";
  #timer = 0;
  /** A pause that begins when this has ended. */
  #waiting: { readonly start: () => void; readonly done: Done } | null = null;

  constructor(
    { scheduler, log }: { scheduler: Scheduler; log: (message: string) => void },
    device: ReopeningDevice,
  ) {
    this.#device = device;
    this.#scheduler = scheduler;
    this.#log = log;
  }

  /** Whether images are being opened anew. */
  get isRunning(): boolean {
    return this.#isRunning;
  }

  /** What the log was told last about it; empty for nothing. */
  get why(): string {
    return this.#told;
  }

  /**
   * The path of a file of the device that is another one now than the one that is open: whoever closes the
   * images and opens them by their names would lose what was written. Null without one.
   */
  get stray(): string | null {
    return this.#device.stray();
  }

  /** A request has failed as by a server that does not know a file, and is tried again. */
  consider(limits: RetryLimits): void {
    const nowMs = this.#scheduler.nowMs();
    if (this.#isLooking || this.#isRunning || nowMs < this.#nextMs) return;
    if (nowMs >= this.#nextMs + FORGET_MS) this.#told = "";
    this.#isLooking = true;
    this.#nextMs = nowMs + AGAIN_MS;
    this.#limit(limits);
    // The caller is in the midst of the request.
    this.#scheduler.addTimer(0, () => this.#device.findAgain((why) => this.#found(why)));
  }

  #limit({ attempts, timeoutMs }: RetryLimits): void {
    this.#endMs = this.#scheduler.nowMs() + Math.min(attempts * AGAIN_MS, timeoutMs);
  }

  /**
   * The device runs on after a pause that its users did not ask for, or that failed, or after a snapshot
   * that failed. Calls back when its images are open, or with an error; then that is tried again.
   */
  runOn(done: Done): void {
    this.#device.resumeNow((error) => {
      if (error !== null) this.#goOn(error);
      done(error);
    });
  }

  #goOn(error: SystemError): void {
    if (this.#isRunning || this.#device.vbd.phase !== "paused") return this.#log(error.message);
    this.#told = "";
    this.#tell(`${error.message}; requests wait, and this is tried again`);
    this.#isRunning = true;
    this.#limit(this.#device.limits());
    this.#openLater();
  }

  #found(why: string | null): void {
    const { vbd, pauseNow } = this.#device;
    this.#isLooking = false;
    if (vbd.phase !== "open" || this.#isRunning) return;
    const stale = `the server of ${vbd.name} does not know its open files any more`;
    if (why !== null) return this.#tell(`${stale}; they are not opened anew: ${why}`);
    this.#tell(`${stale}; they are opened anew, as the names lead to the same files`);
    this.#isRunning = true;
    pauseNow(() => this.#open(), DRAIN_MS);
  }

  /** The images are closed, or will be. They are open again if they could not be closed in order. */
  #open(): void {
    const { vbd, resumeNow } = this.#device;
    // The time for the pause is over while images are being closed: the device opens them after that.
    if (vbd.phase === "pausing") return this.#openLater();
    if (vbd.phase !== "paused") return this.end();
    resumeNow((error) => {
      if (error === null) this.#tell(`files of ${vbd.name} are open again`);
      if (error === null || vbd.phase !== "paused") return this.end();
      this.#notOpened(error.message);
    });
  }

  #notOpened(why: string): void {
    if (this.#scheduler.nowMs() >= this.#endMs) {
      this.#tell(`${why}; its requests end with an error until tap-ctl unpause`);
      this.#device.vbd.requests.stop(false, () => {});
      return this.end();
    }
    this.#tell(`${why}; requests wait, and this is tried again`);
    this.#openLater();
  }

  #openLater(): void {
    this.#timer = this.#scheduler.addTimer(AGAIN_MS, () => this.#lookUp());
  }

  #lookUp(): void {
    if (this.#device.vbd.phase !== "paused") return this.#open();
    const run = this.#runs;
    this.#device.lookUp((why) => {
      // Meanwhile the user may have opened the device, or closed it.
      if (run !== this.#runs) return;
      if (why === null || this.#device.vbd.phase !== "paused") this.#open();
      else this.#notOpened(why);
    });
  }

  #tell(message: string): void {
    if (message !== this.#told) this.#log(`Minor ${this.#device.vbd.minor}: ${message}`);
    this.#told = message;
  }

  /** Nothing is opened anew any more; a pause that waited for that begins. */
  end(): void {
    this.#scheduler.cancelTimer(this.#timer);
    this.#isLooking = false;
    this.#isRunning = false;
    this.#runs++;
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.start();
  }

  /** Lets a pause wait for the end; false when another waits already. */
  delays(start: () => void, done: Done): boolean {
    if (this.#waiting !== null) return false;
    this.#waiting = { start, done };
    return true;
  }

  /** Ends a pause that waits. */
  cancelPause(error: SystemError): void {
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.done(error);
  }
}
