import { Errno, errnoOf, SystemError } from "../../ffi/errno.ts";
import { type ImageContext, type ImageDriver, SECTOR_BYTES } from "../driver/driver.ts";
import { parseImageName } from "../driver/image_name.ts";
import { Keepsakes } from "../driver/keepsakes.ts";
import { WriteLog } from "../driver/log.ts";
import type { DiskKey } from "../vhd/key.ts";
import { openImages } from "./chain.ts";
import type { VbdContext } from "./vbd_context.ts";
import { Requests } from "./requests.ts";
import { type RetryLimits, retryLimits } from "./retry.ts";
import type { VbdStatistics } from "./statistics.ts";

/** States of a device, a union of bits, as `tap-ctl list` shows them. */
export const VbdState = {
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

/** VDISK_READONLY of xen/interface/io/blkif.h. */
export const VDISK_READONLY = 4;

/** One virtual block device: an image, open or paused, and the requests to it. */
export class Vbd {
  readonly minor: number;
  /** Name of the open image, `type:path`; empty without one. */
  name = "";
  /** A union of `VbdState` bits. */
  state: number = VbdState.Closed;
  /** Where frontends bring their requests. */
  readonly requests: Requests;
  readonly #context: ImageContext;
  readonly #keepsakes = new Keepsakes();
  #images: ImageDriver[] = [];
  /** Merges on files that have been closed since. */
  #earlierMerges = 0;
  #sectors = 0;
  #options: OpenOptions = {};
  /** Whom the pause under way tells of its end; null when there is none, or it was given up. */
  #pausing: Done | null = null;
  #pauseTimer = 0;
  /** Who waits for the images to be closed, which a pause has begun; null when nobody does. */
  #closing: Done | null = null;

  /** @param minor The number that names the device. */
  constructor(context: VbdContext, minor: number) {
    this.#context = { ...context, keepsakes: this.#keepsakes };
    this.minor = minor;
    this.requests = new Requests(context, minor);
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
    const { readOnly = false, direct = true, readCache, retry, key } = this.#options;
    const top = readCache === true ? `bc:${name}` : name;
    const leaf = { ...parseImageName(top), readOnly, direct, key };
    this.#keepsakes.opening();
    try {
      this.#images = openImages(leaf, this.#context, this.requests);
      this.#refuseSmaller(name);
    } catch (error) {
      if (this.name === "") this.#keepsakes.releaseAll();
      throw error;
    }
    this.#keepsakes.opened();
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
    for (const image of this.#images.splice(0)) image.close(() => {});
    const sizes = `it has ${sectors} sectors, the device ${this.#sectors}`;
    throw new SystemError(Errno.EMEDIUMTYPE, `Cannot go on with ${name} (${sizes})`);
  }

  /**
   * Drains the device and closes its images; requests wait until `resume`. When that fails, or
   * takes longer than `timeoutMs` (ETIMEDOUT), the device runs on.
   */
  pause(done: Done, timeoutMs = Infinity): void {
    if ((this.state & VbdState.Paused) !== 0) return done(0, "");
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
    if (this.requests.goOn()) this.state = 0;
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
    if (this.#closing !== null) return this.close(this.#closing);
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
    if ((this.state & VbdState.Paused) === 0) return done(...this.#busy());
    try {
      this.#openImages(name ?? this.name);
    } catch (error) {
      this.state |= VbdState.ResumeFailed;
      return done(errnoOf(error), error instanceof Error ? error.message : String(error));
    }
    done(0, "");
  }

  /**
   * Ends what waits, drains what is under way, closes the images. The device may open others. A
   * pause that is under way is given up (ECANCELED).
   */
  close(done: Done): void {
    if ((this.state & VbdState.ShutdownRequested) !== 0) return done(...this.#busy());
    this.giveUpPause();
    this.state |= VbdState.ShutdownRequested;
    // The images are being closed already, for the pause.
    this.#closing = (this.state & VbdState.PauseRequested) !== 0 ? done : null;
    if (this.#closing !== null) return;
    this.requests.stop(false, () =>
      this.#closeImages((errno, message) => {
        this.name = "";
        this.#options.key?.wipe();
        this.#sectors = 0;
        this.#keepsakes.releaseAll();
        this.state = VbdState.Closed;
        done(errno, message);
      }));
  }

  #closeImages(done: Done): void {
    const images = this.#images;
    this.#earlierMerges = this.#merges;
    this.#images = [];
    let left = images.length;
    let firstErrno = 0;
    if (left === 0) return done(0, "");
    for (const image of images) {
      image.close((errno) => {
        if (firstErrno === 0) firstErrno = errno;
        if (--left > 0) return;
        const message = firstErrno === 0 ? "" : `Cannot close ${this.name} in order (see the log)`;
        done(firstErrno, message);
      });
    }
  }

  /** Unmaps the memory of requests. The device must be closed, and every slot released. */
  destroy(): void {
    this.requests.destroy();
  }

  /** Which sectors changed, of an image that is named `log:…`; undefined for others. */
  get writeLog(): WriteLog | undefined {
    return this.#keepsakes.find(WriteLog);
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
