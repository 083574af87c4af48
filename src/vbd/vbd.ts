/**
 * Virtual block devices: `src/vbd`. A device has a stack of images and the requests to it, from their
 * start to their end: it splits them into steps, tries them again when they fail, holds them back
 * while it is paused, and counts them.
 *
 * It must not know how requests come in, which is the frontends' business, nor where on a disk they
 * go, which is the drivers'. It must not write to the control socket or to image files.
 *
 * @module
 */
import { type Done, type SystemError, systemError } from "../../ffi/errno.ts";
import type { ImageDriver, ImageSpec } from "../driver/driver.ts";
import { CbtImage } from "../driver/cbt.ts";
import { WriteLog } from "../driver/log.ts";
import { listedImages } from "./listed_images.ts";
import { RetainedState } from "../driver/retained_state.ts";
import { type Meters, privateMeters } from "../metrics/meter.ts";
import { describeFault, type FaultOwner } from "../scheduler/faults.ts";
import { Tracing } from "../trace/tracing.ts";
import { ImageStack } from "./image_stack.ts";
import {
  geometryOf,
  type OpenOptions,
  type PausedDisk,
  resumed,
  type ResumeOptions,
  type VbdGeometry,
} from "./open_options.ts";
import { PauseWait } from "./pause_wait.ts";
import { Preparation } from "./preparation.ts";
import { NO_LIMITS } from "./rate_limits.ts";
import { Reopening } from "./reopening.ts";
import { reportDevice } from "./request_report.ts";
import { Requests } from "./requests.ts";
import { retryLimits } from "./retry.ts";
import {
  FirstParent,
  leafOf,
  NOTHING_READY,
  type Opening,
  parentFor,
  prepareParts,
  type ReadyParts,
  wishFor,
} from "./ready_parts.ts";
import { Secondary, type SecondaryState } from "./secondary.ts";
import type { VbdStatistics } from "./statistics.ts";
import { type DeviceContext, deviceContext, type VbdContext } from "./vbd_context.ts";
import {
  busy,
  endedByFault,
  lateToPause,
  notOpenAgain,
  pauseCancelled,
  taken,
} from "./vbd_errors.ts";
import { stateBits, type VbdPhase } from "./vbd_phase.ts";

export type { OpenOptions, ResumeOptions, VbdGeometry } from "./open_options.ts";

/** How long a device that is being closed waits for what is under way at others, such as servers. */
const CLOSE_PATIENCE_MS = 10_000;

/**
 * One virtual block device: an image, open or paused, and the requests to it.
 *
 * What a driver throws, or a frontend that is no client's, ends the device: its requests end with
 * EIO, nothing is written to its images any more, and they are closed as they are. The order of
 * writes is such that they are in order, as after a power cut. `resume` opens them anew.
 */
export class Vbd implements FaultOwner {
  readonly minor: number;
  /** Whether a fault has ended it. */
  failed = false;
  /** Called when a fault has ended it, and its requests. */
  whenFailed: (() => void) | null = null;
  /** Called when the image has become larger while it was open. */
  whenGrown: (() => void) | null = null;
  /** Called when the image has become full, or its mirror has failed. */
  whenSecondaryChanged: (() => void) | null = null;
  /** Name of the open image, `type:path`; empty without one. */
  name = "";
  /** Where frontends bring their requests. */
  readonly requests: Requests;
  /** Count requests for monitoring programs. */
  readonly meters: Meters;
  /** Whether its requests are recorded. */
  readonly tracing: Tracing;
  readonly #context: DeviceContext;
  readonly retained = new RetainedState();
  readonly #stack: ImageStack;
  readonly #preparation = new Preparation();
  readonly #secondary: Secondary;
  readonly #firstParent = new FirstParent();
  readonly reopening: Reopening;
  #phase: VbdPhase = "closed";
  #wasOpened = false;
  #resumeFailed = false;
  /** Of a device that failed: whether its images are closed. */
  #abandoned = false;
  #sectors = 0;
  #options: OpenOptions = {};
  readonly #pausing: PauseWait;
  /** Called when the device is closed; null while it is not being closed. */
  #closing: Done | null = null;
  #patienceTimer = 0;

  /** @param minor The number that names the device. */
  constructor(context: VbdContext, minor: number) {
    this.tracing = new Tracing(context.queue);
    this.#context = deviceContext(context, this, {
      takePrepared: () => this.#preparation.take(),
      grow: (sectors) => this.#grow(sectors),
    });
    this.minor = minor;
    this.meters = context.meters;
    this.requests = new Requests(context, minor, this);
    this.#stack = new ImageStack(this.#context);
    this.#pausing = new PauseWait(this.#context.scheduler);
    this.#secondary = new Secondary(this.#context, {
      minor,
      // Its requests are counted where they come from.
      make: () => new Vbd({ ...context, meters: privateMeters }, minor),
      changed: () => this.whenSecondaryChanged?.(),
    });
    this.reopening = new Reopening(this.#context, {
      vbd: this,
      findAgain: (found) =>
        this.#stack.findAgain(this.#options.secondary ? "there is a mirror" : null, found),
      lookUp: (found) => this.#stack.lookUp(found),
      stray: () => this.#stack.stray,
      pauseNow: (done, timeoutMs) => this.#pauseNow(done, timeoutMs),
      resumeNow: (done) => this.#resumeNow(null, done),
      limits: () => retryLimits(this.#options.retry),
    });
  }

  /** What is known of the secondary image. */
  get secondary(): SecondaryState {
    return this.#secondary;
  }

  /** The open images, the top one first. */
  get images(): readonly ImageDriver[] {
    return listedImages(this.#stack.images);
  }

  /** What the device does just now. */
  get phase(): VbdPhase {
    return this.#phase;
  }

  /** The device's state as the control protocol has it, a union of TD_VBD_* bits. */
  get state(): number {
    const [phase, failed, wasOpened] = [this.#phase, this.failed, this.#wasOpened];
    return stateBits({ phase, wasOpened, failed, resumeFailed: this.#resumeFailed });
  }

  /** Size of the device, sectors, also while it is paused; 0 without an image. */
  get sectors(): number {
    return this.#sectors;
  }

  get readOnly(): boolean {
    return this.#options.readOnly ?? false;
  }

  /** What the device looks like just now. */
  get geometry(): VbdGeometry {
    return geometryOf(this);
  }

  /**
   * As `open`, while the loop serves other devices: a server may take its time. Calls back at once
   * where nothing takes time.
   */
  openLater(name: string, options: OpenOptions, done: Done): void {
    if (this.name !== "" || this.#isOpening) return done(taken(this, name));
    const leaf = leafOf(name, options);
    const isKept = options.mayLackSecondary ?? false;
    this.#prepare({ name, leaf, options, isKept }, (error, parts) => {
      try {
        if (error !== null) throw error;
        this.requests.limit(options.limits ?? NO_LIMITS);
        this.#openImages(name, options, parts);
      } catch (failure) {
        return done(systemError(failure, `Cannot open ${name}`));
      }
      done(null);
    });
  }

  get #isOpening(): boolean {
    return this.#preparation.isRunning || this.#secondary.isOpening;
  }

  /** Does what opening takes time for. */
  #prepare(opening: Opening, ready: (error: unknown, parts: ReadyParts) => void): void {
    const parts = { secondary: this.#secondary, preparation: this.#preparation };
    prepareParts(opening, { ...parts, context: this.#context }, ready);
  }

  /** Gives up an `openLater`, or a `resume`, that waits for a server (ECANCELED). */
  cancelOpening(): void {
    this.#secondary.cancelOpening();
    this.#preparation.cancel();
  }

  /**
   * Opens an image and the chain below it.
   *
   * @param name `type:path`
   * @throws an error with an `errno` that names the image and the reason.
   */
  open(name: string, options: OpenOptions = {}): VbdGeometry {
    if (this.name !== "") throw taken(this, name);
    this.requests.limit(options.limits ?? NO_LIMITS);
    const parent = parentFor(leafOf(name, options), options);
    this.#openImages(name, options, { second: this.#secondary.open(name, options), parent });
    return this.geometry;
  }

  #openImages(name: string, options: OpenOptions, parts: ReadyParts): void {
    const { readOnly = false, retry } = options;
    const leaf = leafOf(name, options);
    const [context, secondary, reopening] = [this.#context, this.#secondary, this.reopening];
    const device = { context, secondary, requests: this.requests, firstParent: this.#firstParent };
    let image: ImageDriver;
    this.retained.opening();
    try {
      const wish = wishFor({ leaf, options }, parts, device);
      const [sink, leastSectors, isSame] = [this.requests, this.#sectors, reopening.isRunning];
      image = this.#stack.open(wish, { name, sink, leastSectors, isSame });
    } catch (error) {
      if (this.name === "") {
        this.retained.releaseAll();
        this.#firstParent.reset();
      }
      throw error;
    }
    this.retained.opened();
    this.#become("open", { name, options, sectors: image.sectors });
    const { files } = this.#stack;
    const pathOf = (file: number): string | null => this.#stack.pathOf(file);
    const run = { image, name, readOnly, retry: retryLimits(retry) };
    this.requests.run({ ...run, files, pathOf, reopening });
  }

  #become(phase: VbdPhase, { name, options, sectors }: PausedDisk): void {
    this.#sectors = sectors;
    // The counters go on over pauses.
    if (this.name === "") this.meters.show(this.requests.meter, { of: "vdi", minor: this.minor });
    this.name = name;
    this.#options = options;
    this.#phase = phase;
    this.#wasOpened = true;
    this.#resumeFailed = false;
  }

  /** The disk of another device, which is paused. Nothing is opened; requests wait until `resume`. */
  adoptPaused(disk: PausedDisk): void {
    if (this.name !== "" || this.#isOpening) throw taken(this, disk.name);
    this.requests.limit(disk.options.limits ?? NO_LIMITS);
    this.requests.stop(true, () => {});
    this.#become("paused", disk);
  }

  /** Of an image that is all of the stack: the device has its new size. */
  #grow(sectors: number): boolean {
    const isAlone = this.#stack.images.length === 1;
    if (this.#phase !== "open" || this.failed || !isAlone) return false;
    this.#sectors = sectors;
    this.whenGrown?.();
    return true;
  }

  /**
   * Drains the device and closes its images; requests wait until `resume`. When that fails, or
   * takes longer than `timeoutMs` (ETIMEDOUT), the device runs on.
   */
  pause(done: Done, timeoutMs = Infinity): void {
    if (!this.reopening.isRunning) return this.#pauseNow(done, timeoutMs);
    if (!this.reopening.delays(() => this.#pauseNow(done, timeoutMs), done)) done(busy(this));
  }

  #pauseNow(done: Done, timeoutMs: number): void {
    if (this.#phase === "paused") return done(null);
    if (this.failed) return done(endedByFault(this));
    if (this.#phase !== "open") return done(busy(this));
    this.#phase = "pausing";
    this.#pausing.begin(done, timeoutMs, () => this.#breakPause(lateToPause(this)));
    this.#stack.drain();
    this.requests.stop(true, () => this.#stack.close(this.name, (error) => this.#paused(error)));
  }

  /** Ends a pause that is under way (ECANCELED); nothing happens when there is none. */
  cancelPause(): void {
    const error = pauseCancelled(this);
    this.reopening.cancelPause(error);
    this.#breakPause(error);
  }

  #breakPause(error: SystemError): void {
    if (!this.#pausing.isPending) return;
    // While the images are being closed there is no way back: the device resumes after that.
    if (this.requests.cancelStop()) this.#phase = "open";
    this.#pausing.end(error);
  }

  /** All images are closed. */
  #paused(error: SystemError | null): void {
    if (this.#closing !== null) return this.#drainAndClose();
    this.#phase = "paused";
    if (error === null && this.#pausing.isPending) return this.#pausing.end(null);
    this.reopening.runOn((why) => this.#pausing.end(notOpenAgain(this, error, why)));
  }

  /**
   * Opens the images again, those of `name` if it is not null, and starts the requests that wait.
   * The disk may have grown. On an error, such as EMEDIUMTYPE for a smaller disk than users know,
   * the device stays paused, and the next call begins with the options that it had before.
   */
  resume(name: string | null, done: Done, changes: ResumeOptions = {}): void {
    // While its own pause opens the images, which must be the same, this is refused.
    if (this.#phase === "paused" && !this.#isOpening) this.reopening.end();
    this.#resumeNow(name, done, changes);
  }

  #resumeNow(name: string | null, done: Done, changes: ResumeOptions = {}): void {
    if (this.#phase === "open") return done(null);
    if (!this.#canResume || this.#isOpening) return done(busy(this));
    const options = resumed(this.#options, changes);
    const isKept = changes.secondary === undefined;
    const open = (error: unknown, parts: ReadyParts = NOTHING_READY): void => {
      const wasFailed = this.failed;
      try {
        if (error !== null) throw error;
        this.failed = false;
        this.#openImages(name ?? this.name, options, parts);
        if (!isKept) this.#secondary.settled(options.secondary);
      } catch (failure) {
        this.failed = wasFailed;
        this.#resumeFailed = true;
        return done(systemError(failure, `Cannot open ${name ?? this.name}`));
      }
      this.#abandoned = false;
      done(null);
    };
    let leaf: ImageSpec;
    try {
      leaf = leafOf(name ?? this.name, this.#options);
    } catch (error) {
      return open(error);
    }
    const refusal = this.#secondary.changeRefusal({
      from: this.#options.secondary,
      to: options.secondary,
      isSameLeaf: name === null || name === this.name,
    });
    if (refusal !== null) return open(refusal);
    this.#prepare({ name: name ?? this.name, leaf, options, isKept }, open);
  }

  get #canResume(): boolean {
    return this.failed ? this.#phase === "failed" && this.#abandoned : this.#phase === "paused";
  }

  /**
   * Ends what waits, drains what is under way, closes the images. The device may open others. A
   * pause that is under way is given up (ECANCELED). What a server owes is waited for ten seconds
   * at most, or as long as `hurry` is not called.
   */
  close(done: Done): void {
    if (this.#phase === "closing") return done(busy(this));
    this.cancelPause();
    this.cancelOpening();
    const isClosingImages = this.#phase === "pausing";
    this.#phase = "closing";
    this.#closing = done;
    this.#patienceTimer = this.#context.scheduler.addTimer(CLOSE_PATIENCE_MS, () => this.hurry());
    if (this.failed) {
      if (this.#abandoned) this.#closed(null);
    } else if (!isClosingImages) this.#drainAndClose();
  }

  #drainAndClose(): void {
    this.#stack.drain();
    this.requests.stop(false, () => this.#stack.close(this.name, (error) => this.#closed(error)));
  }

  /** Of a device that is being closed: ends at once what waits for others, such as servers. */
  hurry(): void {
    if (this.#closing !== null) this.giveUp();
  }

  /** Ends at once what waits for others, such as servers; nothing more is asked of them. */
  giveUp(): void {
    if (!this.failed) this.#stack.hurry();
  }

  /** There is no image any more. */
  #closed(error: SystemError | null): void {
    this.#context.scheduler.cancelTimer(this.#patienceTimer);
    this.reopening.end();
    this.name = "";
    this.#options.key?.wipe();
    this.#options = {};
    this.#secondary.reset();
    this.#firstParent.reset();
    this.#sectors = 0;
    this.retained.releaseAll();
    this.#phase = "closed";
    this.#resumeFailed = false;
    this.failed = false;
    this.#abandoned = false;
    this.requests.meter.hide();
    this.tracing.closed();
    const done = this.#closing;
    this.#closing = null;
    done?.(error);
  }

  /** Writes to the log that a client of the device was ended by a fault. */
  noteFault(what: string, error: unknown): void {
    this.#context.log(`Minor ${this.minor}: ${what} was ended by a fault: ${describeFault(error)}`);
  }

  fault(error: unknown): void {
    const { log, scheduler } = this.#context;
    const what = `Minor ${this.minor}, ${this.name || "no image"}`;
    log(`${what}: a fault: ${describeFault(error)}`, { event: "fault", image: this.name });
    if (this.failed) return;
    this.failed = true;
    // The code that threw, and its callers, have not returned.
    scheduler.addTimer(0, () => this.#fail());
  }

  #fail(): void {
    const { log } = this.#context;
    this.requests.fail();
    this.reopening.end();
    this.cancelOpening();
    if (this.name === "") {
      this.failed = false;
      this.whenFailed?.();
      return;
    }
    if (this.#phase !== "closing") this.#phase = "failed";
    this.#resumeFailed = false;
    const error = endedByFault(this);
    log(`${error.message}; until then its requests end with EIO, its block device stays`);
    this.#pausing.end(error);
    this.#stack.abandon(() => {
      this.requests.releaseRoom();
      this.#abandoned = true;
      if (this.#closing !== null) this.#closed(error);
    });
    this.whenFailed?.();
  }

  /** Unmaps the memory of requests. The device must be closed, and every slot released. */
  destroy(): void {
    this.requests.destroy();
  }

  /** Which sectors changed, of an image that is named `log:…`; undefined for others. */
  get writeLog(): WriteLog | undefined {
    return this.retained.find(WriteLog);
  }

  /** The bits of the log of changed blocks, one for 64 KiB; null when there is no log just now. */
  get changedBits(): Uint8Array | null {
    const [top] = this.#stack.images;
    return top instanceof CbtImage ? top.bits : null;
  }

  /** The file of the log of changed blocks, also while the device is paused; null without one. */
  get changedBlocksLog(): string | null {
    return this.#options.changedBlocks ?? null;
  }

  /** How the device is, and where each of its requests is, a line each, for the log. */
  report(): string[] {
    return reportDevice(this);
  }

  /** What `tap-ctl stats` shows. */
  statistics(): VbdStatistics {
    return this.requests.counts.describe(this, {
      secondary: this.#secondary.describe(this.#options),
      direct: this.#options.direct ?? true,
      policy: retryLimits(this.#options.retry).policy,
      merges: this.#stack.merges,
      changedBlocks: this.changedBlocksLog,
    });
  }
}
