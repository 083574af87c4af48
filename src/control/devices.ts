/**
 * The devices of a tapdisk, by minor: which there are, and what may be done to each when. It knows
 * neither messages nor sockets; a device's data path is the VBD's and the frontends' business.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import type { WriteLog } from "../driver/log.ts";
import type { Log } from "../log/log.ts";
import type { VbdContext } from "../vbd/engine.ts";
import type { VbdStatistics } from "../vbd/statistics.ts";
import type { DiskKey } from "../vhd/key.ts";
import { type LiveSnapshot, liveSnapshot } from "../vbd/live_snapshot.ts";
import { Vbd, VbdState } from "../vbd/vbd.ts";
import type { DiskInfo } from "./message.ts";
import { holdMinor, MAX_ID } from "./minors.ts";

/** A way in to a device while its image is open: NBD, a block device. */
export interface Frontend {
  /** Lets go of its clients and its socket or device. */
  close(): void;
}

/** Makes a frontend for a device whose image was opened. Throws `SystemError`. */
export type FrontendFactory = (vbd: Vbd) => Frontend;

/** How an operation that takes time ended: an error to answer with, or undefined. */
export type Done = (error?: Error) => void;

/** How an image is opened. */
export interface OpenRequest {
  /** `type:/path` */
  readonly name: string;
  readonly readOnly: boolean;
  /** Past the page cache, where possible. */
  readonly direct: boolean;
  /** After how long a request fails; 0 for the default. */
  readonly requestTimeoutSeconds: number;
  /** The key of an encrypted image; wiped when the device is closed. */
  readonly key?: DiskKey;
}

/** What a list tells of a device. */
export interface DeviceSummary {
  readonly minor: number;
  /** A union of TD_VBD_* bits. */
  readonly state: number;
  /** `type:/path`; empty without an image. */
  readonly name: string;
}

interface Device {
  readonly vbd: Vbd;
  /** The descriptor that holds the minor. */
  readonly hold: number;
  frontends: Frontend[];
  disk: DiskInfo;
}

const NO_DISK: DiskInfo = { sectors: 0, sectorSizeBytes: 0, info: 0 };

/** An error that a VBD reported, with an error number and words that say it all. */
class DeviceError extends Error {
  override readonly name = "DeviceError";
  readonly errno: number;

  constructor(errno: number, message: string) {
    super(message);
    this.errno = errno;
  }
}

function failure(errno: number, message: string): Error | undefined {
  return errno === 0 ? undefined : new DeviceError(errno, message);
}

/** The devices of this process. */
export class Devices {
  readonly #context: VbdContext;
  readonly #frontends: readonly FrontendFactory[];
  readonly #log: Log;
  readonly #devices = new Map<number, Device>();
  readonly #emptied: () => void;
  /** Whether this process is about to end, and takes no more devices. */
  #ending = false;

  /** @param emptied Called when the last device has gone. */
  constructor(
    context: VbdContext,
    { frontends, log, emptied }: {
      frontends: readonly FrontendFactory[];
      log: Log;
      emptied: () => void;
    },
  ) {
    this.#context = context;
    this.#frontends = frontends;
    this.#log = log;
    this.#emptied = emptied;
  }

  #find(minor: number, what: string): Device {
    const device = this.#devices.get(minor);
    if (device !== undefined) return device;
    throw new SystemError(Errno.ENODEV, `Cannot ${what} minor ${minor} (it is not attached here)`);
  }

  /** Makes a device without an image. Throws `SystemError`: EEXIST, EINVAL, ENOENT, EBUSY. */
  attach(minor: number): void {
    if (this.#ending) {
      throw new SystemError(Errno.ESHUTDOWN, `Cannot attach minor ${minor} (tapdisk is ending)`);
    }
    if (this.#devices.has(minor)) {
      throw new SystemError(Errno.EEXIST, `Cannot attach minor ${minor} (it is attached already)`);
    }
    if (minor >= MAX_ID) {
      throw new SystemError(Errno.EINVAL, `Cannot attach minor ${minor} (${MAX_ID - 1} is last)`);
    }
    const hold = holdMinor(minor);
    this.#devices.set(minor, {
      vbd: new Vbd(this.#context, minor),
      hold,
      frontends: [],
      disk: NO_DISK,
    });
    this.#log.info(`Attached minor ${minor}`);
  }

  /** Ends a device without an image. Throws `SystemError`: ENODEV, EBUSY. */
  detach(minor: number): void {
    const device = this.#find(minor, "detach");
    if (device.vbd.name !== "") {
      const hint = `${device.vbd.name} is open on it; close it first`;
      throw new SystemError(Errno.EBUSY, `Cannot detach minor ${minor} (${hint})`);
    }
    this.#forget(minor, device);
    if (this.#devices.size > 0) return;
    this.#ending = true;
    this.#emptied();
  }

  #forget(minor: number, { vbd, hold }: Device): void {
    closeFile(hold);
    vbd.destroy();
    this.#devices.delete(minor);
    this.#log.info(`Detached minor ${minor}`);
  }

  /** Opens an image and its ways in. Throws an error with an `errno`. */
  open(minor: number, request: OpenRequest): DiskInfo {
    const device = this.#devices.get(minor);
    if (device === undefined) {
      const what = `Cannot open ${request.name} on minor ${minor} (it is not attached here)`;
      throw new SystemError(Errno.EINVAL, what);
    }
    if (device.vbd.name !== "") {
      const hint = `${device.vbd.name} is open on it`;
      const what = `Cannot open ${request.name} on minor ${minor} (${hint})`;
      throw new SystemError(Errno.EALREADY, what);
    }
    const { readOnly, direct, requestTimeoutSeconds, key } = request;
    const timeoutMs = requestTimeoutSeconds * 1000;
    device.disk = device.vbd.open(request.name, {
      readOnly,
      direct,
      key,
      retry: timeoutMs === 0 ? {} : { timeoutMs },
    });
    try {
      for (const factory of this.#frontends) device.frontends.push(factory(device.vbd));
    } catch (error) {
      this.#closeFrontends(device);
      device.vbd.close(() => {});
      throw error;
    }
    this.#log.info(`Opened ${request.name} on minor ${minor}`);
    return device.disk;
  }

  #closeFrontends(device: Device): void {
    for (const frontend of device.frontends) frontend.close();
    device.frontends = [];
  }

  /**
   * Ends a device's requests, closes its image and takes its ways in away. What is under way is
   * answered first, unless `force` says to drop the clients. Throws `SystemError`: ENODEV.
   */
  close(minor: number, { force }: { force: boolean }, done: Done): void {
    const device = this.#find(minor, "close");
    const { vbd } = device;
    const { name } = vbd;
    if (force) this.#closeFrontends(device);
    vbd.close((errno, message) => {
      if (vbd.name !== "") return done(failure(errno, message));
      // Frontends send the last answers at the end of this turn.
      this.#context.scheduler.addTimer(0, () => {
        this.#closeFrontends(device);
        device.disk = NO_DISK;
        this.#log.info(`Closed ${name || "nothing"} on minor ${minor}`);
        done(failure(errno, message));
      });
    });
  }

  /**
   * Holds back a device's requests and closes its image files. When that fails or takes longer than
   * `timeoutMs`, the device runs on. Throws `SystemError`: ENODEV.
   *
   * @returns Gives the pause up, if it has not ended.
   */
  pause(minor: number, { timeoutMs }: { timeoutMs: number }, done: Done): () => void {
    const { vbd } = this.#find(minor, "pause");
    vbd.pause((errno, message) => {
      if (errno === 0) this.#log.info(`Paused minor ${minor}`);
      else this.#log.warn(message);
      done(failure(errno, message));
    }, timeoutMs);
    return () => vbd.giveUpPause();
  }

  /**
   * Puts a new image on top of a device's image while it runs. Throws `SystemError`: ENODEV.
   *
   * @returns Gives it up, as long as requests are being drained.
   */
  snapshot(
    minor: number,
    { path, rename, timeoutMs }: { path: string; rename: boolean; timeoutMs: number },
    done: (error: Error | undefined, made: LiveSnapshot | null) => void,
  ): () => void {
    const device = this.#find(minor, "make a snapshot of");
    const { vbd } = device;
    const ended = (errno: number, message: string, made: LiveSnapshot | null): void => {
      if (made === null) this.#log.warn(message);
      else {
        const held = `requests waited ${made.stallMs.toFixed(1)} ms`;
        this.#log.info(`Minor ${minor} goes on with ${made.name} on ${made.parent}; ${held}`);
        device.disk = vbd.geometry;
      }
      done(failure(errno, message), made);
    };
    liveSnapshot(this.#context, vbd, { path, rename, timeoutMs, done: ended });
    return () => vbd.giveUpPause();
  }

  /**
   * Opens a paused device's image again, or another that is no smaller, and lets its requests go
   * on; users that come from now on see the new size. Throws `SystemError`: ENODEV.
   *
   * @param name `type:/path`, or null for the image that it had.
   */
  resume(minor: number, name: string | null, done: Done): void {
    const device = this.#find(minor, "unpause");
    const { vbd } = device;
    if ((vbd.state & VbdState.Paused) === 0) {
      throw new SystemError(Errno.EINVAL, `Cannot unpause minor ${minor} (it is not paused)`);
    }
    vbd.resume(name, (errno, message) => {
      if (errno === 0) {
        const { sectors } = device.disk;
        const grown = vbd.sectors === sectors
          ? ""
          : `, of ${vbd.sectors} instead of ${sectors} sectors`;
        device.disk = vbd.geometry;
        this.#log.info(`Unpaused minor ${minor} with ${vbd.name}${grown}`);
      }
      done(failure(errno, message));
    });
  }

  /** The disk that is open on a device; all zeros without one. Throws `SystemError`: ENODEV. */
  diskInfo(minor: number): DiskInfo {
    return this.#find(minor, "get the size of").disk;
  }

  /** Which sectors of a device changed. Throws `SystemError`: ENODEV, EINVAL without a log. */
  writeLog(minor: number): WriteLog {
    const log = this.#find(minor, "get the log of").vbd.writeLog;
    if (log !== undefined) return log;
    const hint = "its image is not named log:TYPE:PATH";
    throw new SystemError(Errno.EINVAL, `Cannot get a log of minor ${minor} (${hint})`);
  }

  /** A device's statistics. Throws `SystemError`: ENODEV. */
  statistics(minor: number): VbdStatistics {
    return this.#find(minor, "get the statistics of").vbd.statistics();
  }

  /** All devices, in the order in which they were attached. */
  list(): DeviceSummary[] {
    return Array.from(
      this.#devices,
      ([minor, { vbd }]) => ({ minor, state: vbd.state, name: vbd.name }),
    );
  }

  /** Closes all images and ends all devices, then calls back; errors go to the log. */
  endAll(done: () => void): void {
    this.#ending = true;
    const [first] = this.#devices;
    if (first === undefined) return done();
    const [minor, device] = first;
    this.close(minor, { force: false }, (error) => {
      if (error !== undefined) this.#log.error(error.message);
      this.#forget(minor, device);
      this.endAll(done);
    });
  }
}
