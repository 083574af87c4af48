import {
  type Done as OpenDone,
  Errno,
  errnoOf,
  messageOf,
  SystemError,
  systemError,
} from "../../ffi/errno.ts";
import {
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  type Prepared,
  SECTOR_BYTES,
} from "../driver/driver.ts";
import { parseImageName } from "../driver/image_name.ts";
import { RetainedState } from "../driver/retained_state.ts";
import { WriteLog } from "../driver/log.ts";
import { PieceTable } from "../driver/pieces.ts";
import { describeFault, type FaultOwner } from "../scheduler/faults.ts";
import { ownedBy } from "../scheduler/scheduler.ts";
import type { DiskKey } from "../vhd/key.ts";
import { closeImage, openImages } from "./chain.ts";
import { prepareImages } from "./preparation.ts";
import type { VbdContext } from "./vbd_context.ts";
import { Requests } from "./requests.ts";
import { type RetryLimits, retryLimits } from "./retry.ts";
import type { VbdStatistics } from "./statistics.ts";

/** States of a device, a union of bits, as `tap-ctl list` shows them. */
export const VbdState = {
  /** A fault of this program ended it; `resume` opens its images anew. */
  Dead: 0x0001,
  Closed: 0x0002,
  QuiesceRequested: 0x0004,
  Quiesced: 0x0008,
  PauseRequested: 0x0010,
  Paused: 0x0020,
  ShutdownRequested: 0x0040,
  ResumeFailed: 0x0200,
} as const;

/** How a device's image is opened. */
export interface OpenOptions {
  readonly readOnly?: boolean;
  /** Past the page cache where the filesystem can (O_DIRECT); the default. */
  readonly direct?: boolean;
  readonly retry?: Partial<RetryLimits>;
  /** Keep what is read in memory, as if the name began with `bc:`; also over changes of the image. */
  readonly readCache?: boolean;
  /** The key of an encrypted image; the device wipes it when it is closed. */
  readonly key?: DiskKey;
}

/** What a device looks like to its users. */
export interface VbdGeometry {
  readonly sectors: number;
  readonly sectorSizeBytes: number;
  /** VDISK_* bits of Xen's protocol: 0, or `VDISK_READONLY`. */
  readonly info: number;
}

/** Called when something that takes turns of the loop has ended; errno 0 when all is well. */
export type Done = (errno: number, message: string) => void;

/** How long a device that is being closed waits for what is under way at others, such as servers. */
const CLOSE_PATIENCE_MS = 10_000;
/** How long to wait between two looks whether the disk queue is through with a disk that failed. */
const ABANDON_AGAIN_MS = 20;

/** VDISK_READONLY of xen/interface/io/blkif.h. */
export const VDISK_READONLY = 4;

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
  /** Told when a fault has ended it, and its requests. */
  whenFailed: (() => void) | null = null;
  /** Name of the open image, `type:path`; empty without one. */
  name = "";
  /** A union of `VbdState` bits. */
  state: number = VbdState.Closed;
  /** Where frontends bring their requests. */
  readonly requests: Requests;
  readonly #context: ImageContext;
  readonly #retained = new RetainedState();
  #images: ImageDriver[] = [];
  /** Those that are being closed. */
  #leaving: ImageDriver[] = [];
  /** Of a device that failed: whether its images are closed. */
  #abandoned = false;
  /** Merges on files that have been closed since. */
  #earlierMerges = 0;
  #sectors = 0;
  #options: OpenOptions = {};
  /** Whom the pause under way tells of its end; null when there is none, or it was given up. */
  #pausing: Done | null = null;
  #pauseTimer = 0;
  /** Who waits for the device to be closed; null when nobody does. */
  #closing: Done | null = null;
  #patienceTimer = 0;
  /** What was got ready for the image that is being opened. */
  #prepared: Prepared | null = null;
  /** Gives up getting an image ready; null when that is not under way. */
  #cancelPreparing: (() => void) | null = null;

  /** @param minor The number that names the device. */
  constructor(context: VbdContext, minor: number) {
    this.#context = {
      ...context,
      scheduler: ownedBy(this, context.scheduler),
      pieces: new PieceTable(context.pieces),
      retained: this.#retained,
      faults: this,
      takePrepared: () => {
        const prepared = this.#prepared;
        this.#prepared = null;
        return prepared;
      },
    };
    this.minor = minor;
    this.requests = new Requests(context, minor, this);
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
    return {
      sectors: this.#sectors,
      sectorSizeBytes: SECTOR_BYTES,
      info: this.readOnly ? VDISK_READONLY : 0,
    };
  }

  /**
   * As `open`, while the loop serves other devices: a server may take its time. Calls back at once
   * where nothing takes time.
   */
  openLater(name: string, options: OpenOptions, done: OpenDone): void {
    const open = (error: unknown): void => {
      try {
        if (error !== null) throw error;
        this.open(name, options);
      } catch (failure) {
        return done(systemError(failure, `Cannot open ${name}`));
      }
      done(null);
    };
    if (this.name !== "" || this.#cancelPreparing !== null) return open(null);
    this.#prepare(this.#leafOf(name, options), open);
  }

  /** Gives up an `openLater`, or a `resume`, that waits for a server (ECANCELED). */
  cancelOpening(): void {
    this.#cancelPreparing?.();
  }

  #prepare(leaf: ImageSpec, ready: (error: unknown) => void): void {
    let over = false;
    const end = (error: unknown, prepared: Prepared | null): void => {
      over = true;
      this.#cancelPreparing = null;
      this.#prepared = prepared;
      ready(error);
      // What nobody took is of no use to anyone.
      this.#prepared?.discard();
      this.#prepared = null;
    };
    let cancel: () => void;
    try {
      cancel = prepareImages(leaf, this.#context.scheduler, end);
    } catch (error) {
      return end(error, null);
    }
    if (over) return;
    this.#cancelPreparing = () => {
      cancel();
      const what = `Cannot open ${leaf.type}:${leaf.path} (it was given up)`;
      end(new SystemError(Errno.ECANCELED, what), null);
    };
  }

  #leafOf(
    name: string,
    { readOnly = false, direct = true, readCache, key }: OpenOptions,
  ): ImageSpec {
    const top = readCache === true ? `bc:${name}` : name;
    return { ...parseImageName(top), readOnly, direct, key };
  }

  /**
   * Opens an image and the chain below it.
   *
   * @param name `type:path`
   * @throws an error with an `errno` that names the image and the reason.
   */
  open(name: string, options: OpenOptions = {}): VbdGeometry {
    if (this.name !== "") {
      throw new SystemError(Errno.EEXIST, `Cannot open ${name}: minor ${this.minor} has an image`);
    }
    this.#options = options;
    this.#openImages(name);
    return this.geometry;
  }

  #openImages(name: string): void {
    const { readOnly = false, retry } = this.#options;
    const leaf = this.#leafOf(name, this.#options);
    this.#retained.opening();
    try {
      this.#images = openImages(leaf, this.#context, this.requests);
      this.#refuseSmaller(name);
    } catch (error) {
      if (this.name === "") this.#retained.releaseAll();
      throw error;
    }
    this.#retained.opened();
    this.#sectors = this.#images[0].sectors;
    this.name = name;
    this.state = 0;
    this.requests.run({
      image: this.#images[0],
      name,
      readOnly,
      retry: retryLimits(retry),
    });
  }

  /** Users know a size, and may have data up to there: images may grow, but not shrink. */
  #refuseSmaller(name: string): void {
    const [{ sectors }] = this.#images;
    if (sectors >= this.#sectors) return;
    for (const image of this.#images.splice(0)) closeImage(image, this.#context.log);
    const sizes = `it has ${sectors} sectors, the device ${this.#sectors}`;
    throw new SystemError(Errno.EMEDIUMTYPE, `Cannot go on with ${name} (${sizes})`);
  }

  /**
   * Drains the device and closes its images; requests wait until `resume`. When that fails, or
   * takes longer than `timeoutMs` (ETIMEDOUT), the device runs on.
   */
  pause(done: Done, timeoutMs = Infinity): void {
    if ((this.state & VbdState.Paused) !== 0) return done(0, "");
    if (this.failed) return done(Errno.EIO, this.#deathNote);
    if (this.state !== 0) return done(...this.#busy());
    this.state = VbdState.PauseRequested | VbdState.QuiesceRequested;
    this.#pausing = done;
    if (timeoutMs !== Infinity) {
      const { scheduler } = this.#context;
      this.#pauseTimer = scheduler.addTimer(timeoutMs, () => this.#pauseTimedOut());
    }
    this.requests.stop(true, () => this.#closeImages((...result) => this.#paused(...result)));
  }

  /** Ends a pause that is under way (ECANCELED); nothing happens when there is none. */
  giveUpPause(): void {
    const why = "nobody waits for it any more, or the disk is to be closed";
    this.#breakPause(Errno.ECANCELED, `Cannot pause minor ${this.minor}: ${why}`);
  }

  #pauseTimedOut(): void {
    const { outstanding } = this.requests;
    const message = `Cannot pause minor ${this.minor} in time: its disk owes answers, and ` +
      `${outstanding} requests have not ended; it runs on`;
    this.#breakPause(Errno.ETIMEDOUT, message);
  }

  #breakPause(errno: number, message: string): void {
    if (this.#pausing === null) return;
    // Without images there is no going back: it goes on when they are closed.
    if (this.requests.cancelStop()) this.state = 0;
    this.#endPause(errno, message);
  }

  #endPause(errno: number, message: string): void {
    const done = this.#pausing;
    this.#pausing = null;
    this.#context.scheduler.cancelTimer(this.#pauseTimer);
    this.#pauseTimer = 0;
    if (done !== null) done(errno, message);
  }

  /** All images are closed. */
  #paused(errno: number, message: string): void {
    this.state = VbdState.Closed | VbdState.Quiesced | VbdState.Paused;
    if (this.#closing !== null) return this.#drainAndClose();
    if (errno === 0 && this.#pausing !== null) return this.#endPause(0, "");
    this.resume(null, (resumeErrno, resumeMessage) => {
      if (resumeErrno !== 0) this.#context.log(resumeMessage);
      this.#endPause(errno, message);
    });
  }

  #busy(): [number, string] {
    const why = this.name === "" ? "has no image" : "is changing its state; try again";
    return [this.name === "" ? Errno.EINVAL : Errno.EAGAIN, `Minor ${this.minor} ${why}`];
  }

  /**
   * Opens the images again, those of `name` if it is not null, and goes on with what waits. The
   * disk may have grown. On an error, such as EMEDIUMTYPE for a smaller disk than users know, the
   * device stays paused.
   */
  resume(name: string | null, done: Done): void {
    if (this.state === 0) return done(0, "");
    const wasFailed = this.failed;
    const canOpen = wasFailed ? this.#abandoned : (this.state & VbdState.Paused) !== 0;
    if (!canOpen || this.#closing !== null || this.#cancelPreparing !== null) {
      return done(...this.#busy());
    }
    const open = (error: unknown): void => {
      try {
        if (error !== null) throw error;
        this.failed = false;
        this.#openImages(name ?? this.name);
      } catch (failure) {
        this.failed = wasFailed;
        this.state |= VbdState.ResumeFailed;
        return done(errnoOf(failure), messageOf(failure));
      }
      this.#abandoned = false;
      done(0, "");
    };
    let leaf: ImageSpec;
    try {
      leaf = this.#leafOf(name ?? this.name, this.#options);
    } catch (error) {
      return open(error);
    }
    this.#prepare(leaf, open);
  }

  /**
   * Ends what waits, drains what is under way, closes the images. The device may open others. A
   * pause that is under way is given up (ECANCELED). What a server owes is waited for ten seconds
   * at most, or as long as `hurry` is not called.
   */
  close(done: Done): void {
    if ((this.state & VbdState.ShutdownRequested) !== 0) return done(...this.#busy());
    this.giveUpPause();
    this.cancelOpening();
    this.state |= VbdState.ShutdownRequested;
    this.#closing = done;
    const { scheduler } = this.#context;
    this.#patienceTimer = scheduler.addTimer(CLOSE_PATIENCE_MS, () => this.hurry());
    if (this.failed) {
      if (this.#abandoned) this.#closed(0, "");
      return;
    }
    // Else the images are being closed already, for the pause.
    if ((this.state & VbdState.PauseRequested) === 0) this.#drainAndClose();
  }

  #drainAndClose(): void {
    this.requests.stop(false, () => this.#closeImages((...result) => this.#closed(...result)));
  }

  /** Of a device that is being closed: ends at once what waits for others, such as servers. */
  hurry(): void {
    if (this.#closing === null || this.failed) return;
    for (const image of this.#images) {
      try {
        image.giveUp?.();
      } catch (error) {
        return this.#context.scheduler.contain(error, this);
      }
    }
  }

  /** There is no image any more. */
  #closed(errno: number, message: string): void {
    this.#context.scheduler.cancelTimer(this.#patienceTimer);
    this.name = "";
    this.#options.key?.wipe();
    this.#sectors = 0;
    this.#retained.releaseAll();
    this.state = VbdState.Closed;
    this.failed = false;
    this.#abandoned = false;
    const done = this.#closing;
    this.#closing = null;
    done?.(errno, message);
  }

  get #deathNote(): string {
    return `Minor ${this.minor} was ended by a fault of this program (see the log); 'tap-ctl unpause' ` +
      "opens its image anew";
  }

  /** Writes to the log that a client of the device was ended by a fault. */
  noteFault(what: string, error: unknown): void {
    this.#context.log(`Minor ${this.minor}: ${what} was ended by a fault: ${describeFault(error)}`);
  }

  fault(error: unknown): void {
    const { log, scheduler } = this.#context;
    log(`Minor ${this.minor}, ${this.name || "no image"}: a fault: ${describeFault(error)}`);
    if (this.failed) return;
    this.failed = true;
    // Whoever threw, and those who called it, are in the midst of something.
    scheduler.addTimer(0, () => this.#fail());
  }

  #fail(): void {
    const { log } = this.#context;
    this.requests.fail();
    this.cancelOpening();
    if (this.name === "") {
      this.failed = false;
      this.whenFailed?.();
      return;
    }
    this.state = VbdState.Dead | (this.state & VbdState.ShutdownRequested);
    log(`${this.#deathNote}; until then its requests end with EIO, its block device stays`);
    this.#endPause(Errno.EIO, this.#deathNote);
    this.#abandonWhenIdle();
    this.whenFailed?.();
  }

  /** Closes the images as they are, when nothing works on their files any more. */
  #abandonWhenIdle(): void {
    const { queue, scheduler, log, pieces } = this.#context;
    const images = [...this.#images, ...this.#leaving];
    const isBusy = ({ file, pending = 0 }: ImageDriver): boolean =>
      pending > 0 || (file !== undefined && queue.pendingOf(file) > 0);
    if (images.some(isBusy)) {
      return void scheduler.addTimer(ABANDON_AGAIN_MS, () => this.#abandonWhenIdle());
    }
    this.#earlierMerges = this.#merges;
    this.#images = [];
    this.#leaving = [];
    for (const image of images) {
      try {
        image.abandon();
      } catch (error) {
        log(`Cannot let go of ${image.spec.path}: ${describeFault(error)}`);
      }
    }
    pieces.giveAll();
    this.requests.releaseRoom();
    this.#abandoned = true;
    if (this.#closing !== null) this.#closed(Errno.EIO, this.#deathNote);
  }

  #closeImages(done: Done): void {
    const images = this.#images;
    this.#earlierMerges = this.#merges;
    this.#images = [];
    this.#leaving = images;
    let left = images.length;
    let firstErrno = 0;
    if (left === 0) return done(0, "");
    const closed = (error: SystemError | null): void => {
      if (firstErrno === 0) firstErrno = error?.errno ?? 0;
      if (--left > 0) return;
      this.#leaving = [];
      const message = firstErrno === 0 ? "" : `Cannot close ${this.name} in order (see the log)`;
      done(firstErrno, message);
    };
    for (const image of images) {
      try {
        closeImage(image, this.#context.log, closed);
      } catch (error) {
        // Whoever wants the device closed, or paused, is told by what follows.
        return this.#context.scheduler.contain(error, this);
      }
    }
  }

  /** Unmaps the memory of requests. The device must be closed, and every slot released. */
  destroy(): void {
    this.requests.destroy();
  }

  /** Which sectors changed, of an image that is named `log:…`; undefined for others. */
  get writeLog(): WriteLog | undefined {
    return this.#retained.find(WriteLog);
  }

  /** Operations of this device that went to the disk with a neighbour. */
  get #merges(): number {
    const { queue } = this.#context;
    const mergesOf = (file?: number): number => file === undefined ? 0 : queue.mergesOf(file);
    return this.#images.reduce((sum, { file }) => sum + mergesOf(file), this.#earlierMerges);
  }

  /** How the device is, and where each of its requests is, a line each, for the log. */
  report(): string[] {
    const { outstanding } = this.requests;
    const state = this.state === 0 ? "runs" : `state 0x${this.state.toString(16)}`;
    const requests = `${outstanding} request${outstanding === 1 ? " has" : "s have"} not ended`;
    return [`${this.name || "no image"}, ${state}, ${requests}`, ...this.requests.report()];
  }

  /** What `tap-ctl stats` shows. */
  statistics(): VbdStatistics {
    return this.requests.counts.describe({
      name: this.name,
      images: this.#images,
      outstanding: this.requests.outstanding,
      retrying: this.requests.retrying,
      unansweredMs: this.requests.unansweredMs,
      direct: this.#options.direct ?? true,
      merges: this.#merges,
      times: this.requests.times.summary(),
    });
  }
}
