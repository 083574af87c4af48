/**
 * The devices of a tapdisk, by minor: which there are, and what may be done to each when. It knows
 * neither messages nor sockets; a device's data path is the VBD's and the frontends' business.
 *
 * @module
 */
import { type Done, type DoneWith, Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import type { WriteLog } from "../../driver/log.ts";
import type { Log } from "../../log/log.ts";
import type { DeviceMaker } from "../../frontend/block_device.ts";
import { ownedBy, type Scheduler } from "../../scheduler/scheduler.ts";
import type { VbdContext } from "../../vbd/vbd_context.ts";
import type { VbdStatistics } from "../../vbd/statistics.ts";
import { type LiveSnapshot, liveSnapshot } from "../../vbd/live_snapshot.ts";
import type { DiskKey } from "../../vhd/key.ts";
import { Vbd } from "../../vbd/vbd.ts";
import type { DiskInfo } from "../protocol/disk_info.ts";
import { readMinorRecord, recoveryHint, writeMinorRecord } from "../minors/minor_record.ts";
import { holdMinor, MAX_ID } from "../minors/minors.ts";
import type { OpenRequest, QueueChoice } from "../protocol/open_request.ts";
import type { RemainingDevice } from "./remaining.ts";
import { type DevicePlan, DiskAccess, type FrontendFactory, makersFor } from "./disk_access.ts";

/** What moves a disk's bytes: as chosen, or each file by the interface that serves it better. */
export type QueueKind = QueueChoice | "mixed";

/** What disks are opened with. */
export interface DevicesHost {
  readonly scheduler: Scheduler;
  /** What the disks on a queue share; the queue is made when it is first asked for. */
  contextOf(queue: QueueKind): VbdContext;
  readonly frontends: readonly FrontendFactory[];
  readonly makers: readonly DeviceMaker[];
  readonly log: Log;
  /** Runs a job when no exclusive command of the minor runs. */
  runExclusive(minor: number, job: (finished: () => void) => void): void;
  /** Called when the last device has gone. */
  emptied(): void;
  /** Called when a fault has ended a device: what is being done to it may never end. */
  failed(minor: number): void;
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
  vbd: Vbd;
  /** The descriptor that holds the minor. */
  readonly hold: number;
  access: DiskAccess;
  queue: QueueKind;
  disk: DiskInfo;
  /** How its image was opened; null without one. */
  request: OpenRequest | null;
  encrypted: boolean;
}

/** An open request with the key that came with it. */
export interface KeyedRequest {
  readonly request: OpenRequest;
  /** The key of an encrypted image; the device wipes it when it is closed. */
  readonly key?: DiskKey;
}

const NO_DISK: DiskInfo = { sectors: 0, sectorSizeBytes: 0, info: 0 };

/** The devices of this process. */
export class Devices {
  readonly #host: DevicesHost;
  readonly #log: Log;
  readonly #devices = new Map<number, Device>();
  /** Whether this process is about to end, and takes no more devices. */
  #ending = false;

  constructor(host: DevicesHost) {
    this.#host = host;
    this.#log = host.log;
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
    try {
      const rest = { hold, disk: NO_DISK, request: null, encrypted: false };
      this.#devices.set(minor, { ...this.#vbdOn("auto", minor), ...rest });
    } catch (error) {
      closeFile(hold);
      throw error;
    }
    this.#log.info(`Attached minor ${minor}`);
  }

  #vbdOn(queue: QueueKind, minor: number): Pick<Device, "vbd" | "access" | "queue"> {
    const { scheduler, log } = this.#host;
    const vbd = new Vbd(this.#host.contextOf(queue), minor);
    vbd.whenFailed = () => this.#host.failed(minor);
    const access = new DiskAccess({
      scheduler: ownedBy(vbd, scheduler),
      log,
      vbd,
      runExclusive: (job) => this.#host.runExclusive(minor, job),
      remade: () => this.#note(minor, this.#find(minor, "note the block device of")),
    });
    return { vbd, access, queue };
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
    this.#host.emptied();
  }

  #forget(minor: number, { vbd, hold }: Device): void {
    closeFile(hold);
    vbd.destroy();
    this.#devices.delete(minor);
    this.#log.info(`Detached minor ${minor}`);
  }

  /**
   * Opens an image and its ways in. Throws an error with an `errno` when it is refused at once.
   *
   * @param done Told of the disk, or of an error; then nothing is open.
   */
  open(
    minor: number,
    keyed: KeyedRequest,
    done: DoneWith<DiskInfo>,
  ): () => void {
    const { request } = keyed;
    const device = this.#devices.get(minor);
    if (device === undefined) {
      const what = `Cannot open ${request.image} on minor ${minor} (it is not attached here)`;
      throw new SystemError(Errno.EINVAL, what);
    }
    if (device.vbd.name !== "") {
      const hint = `${device.vbd.name} is open on it`;
      const what = `Cannot open ${request.image} on minor ${minor} (${hint})`;
      throw new SystemError(Errno.EALREADY, what);
    }
    const plan = this.#planDevice(minor, request);
    this.#openImage(minor, device, { ...keyed, plan }, (failure) => {
      if (failure !== null) return done(failure, null);
      device.access.open(this.#host.frontends, plan, (error) => {
        if (error !== null) return device.vbd.close(() => done(error, null));
        device.request = request;
        device.encrypted = keyed.key !== undefined;
        this.#log.info(`Opened ${request.image} on minor ${minor}`);
        this.#note(minor, device);
        done(null, device.disk);
      });
    });
    return () => device.vbd.cancelOpening();
  }

  /** Which block device is made, or taken over from a tapdisk that had the minor and died. */
  #planDevice(minor: number, { image, device }: OpenRequest): DevicePlan {
    const left = readMinorRecord(minor);
    if (left !== null && (left.image !== image || left.device !== device)) {
      const hint = `${left.node} was left there with ${left.image}; ${
        recoveryHint(minor, left.device)
      }`;
      throw new SystemError(Errno.EBUSY, `Cannot open ${image} on minor ${minor} (${hint})`);
    }
    const makers = makersFor(device, this.#host.makers);
    return { makers, required: device !== "auto", recover: left?.node ?? null };
  }

  #openImage(
    minor: number,
    device: Device,
    { request, key, plan }: KeyedRequest & { readonly plan: DevicePlan },
    done: Done,
  ): void {
    const { image, readOnly, direct, readCache, requestTimeoutSeconds } = request;
    const queue = queueFor(request, plan);
    if (this.#host.contextOf(queue) !== this.#host.contextOf(device.queue)) {
      const { vbd } = device;
      Object.assign(device, this.#vbdOn(queue, minor));
      vbd.destroy();
    }
    const timeoutMs = requestTimeoutSeconds * 1000;
    const retry = timeoutMs === 0 ? {} : { timeoutMs };
    const { vbd } = device;
    vbd.openLater(image, { readOnly, direct, readCache, key, retry }, (error) => {
      if (error === null) device.disk = vbd.geometry;
      done(error);
    });
  }

  /** Writes down what another tapdisk needs to take the block device over, if there is one. */
  #note(minor: number, { vbd, access, request, encrypted }: Device): void {
    const { node, kind } = access;
    if (request === null || node === null) return;
    writeMinorRecord(minor, { ...request, image: vbd.name, device: kind, node, encrypted });
  }

  /** The block device that a minor's disk is; null without one. Throws `SystemError`: ENODEV. */
  node(minor: number): string | null {
    return this.#find(minor, "get the block device of").access.node;
  }

  /**
   * Takes a device's ways in away and closes its image. What is under way is answered first, unless
   * `force` says to drop the clients. Throws `SystemError`: ENODEV. It fails with EBUSY, and the
   * device runs on, when its block device is in use.
   *
   * @returns Stops waiting for what others owe, such as servers.
   */
  close(minor: number, { force }: { force: boolean }, done: Done): () => void {
    const device = this.#find(minor, "close");
    const closeImage = (): void => {
      this.#closeImage(minor, device, done);
      if (force) device.vbd.hurry();
    };
    if (force) device.access.close();
    device.access.checkUnused((used) => {
      if (used !== null) return done(used);
      // Nobody answers what taking the block device away asks of a disk that is held back.
      if (device.vbd.phase !== "open") return closeImage();
      device.access.detachDevice((error) => {
        if (error !== null) return done(error);
        closeImage();
      });
    });
    return () => device.vbd.hurry();
  }

  #closeImage(minor: number, device: Device, done: Done): void {
    const { vbd, access } = device;
    const { name } = vbd;
    vbd.close((error) => {
      if (vbd.name !== "") return done(error);
      // Frontends send the last answers at the end of this turn.
      this.#host.scheduler.addTimer(0, () => {
        access.close();
        device.disk = NO_DISK;
        device.request = null;
        if (readMinorRecord(minor) !== null) writeMinorRecord(minor, null);
        this.#log.info(`Closed ${name || "nothing"} on minor ${minor}`);
        done(error);
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
    vbd.pause((error) => {
      if (error === null) this.#log.info(`Paused minor ${minor}`);
      else this.#log.warn(error.message);
      done(error);
    }, timeoutMs);
    return () => vbd.cancelPause();
  }

  /**
   * Puts a new image on top of a device's image while it runs. Throws `SystemError`: ENODEV.
   *
   * @returns Gives it up, as long as requests are being drained.
   */
  snapshot(
    minor: number,
    { path, rename, timeoutMs }: { path: string; rename: boolean; timeoutMs: number },
    done: DoneWith<LiveSnapshot>,
  ): () => void {
    const device = this.#find(minor, "make a snapshot of");
    const { vbd } = device;
    const ended: DoneWith<LiveSnapshot> = (error, made) => {
      if (error !== null) {
        this.#log.warn(error.message);
        return done(error, null);
      }
      const held = `requests waited ${made.stallMs.toFixed(1)} ms`;
      this.#log.info(`Minor ${minor} goes on with ${made.name} on ${made.parent}; ${held}`);
      device.disk = vbd.geometry;
      this.#note(minor, device);
      done(null, made);
    };
    liveSnapshot(this.#host.contextOf("auto"), vbd, { path, rename, timeoutMs, done: ended });
    return () => vbd.cancelPause();
  }

  /**
   * Opens a paused device's image again, or another that is no smaller, and lets its requests go
   * on; users that come from now on see the new size. Throws `SystemError`: ENODEV.
   *
   * @param name `type:/path`, or null for the image that it had.
   */
  resume(minor: number, name: string | null, done: Done): () => void {
    const device = this.#find(minor, "unpause");
    const { vbd } = device;
    if (vbd.phase !== "paused" && vbd.phase !== "failed") {
      throw new SystemError(Errno.EINVAL, `Cannot unpause minor ${minor} (it is not paused)`);
    }
    vbd.resume(name, (error) => {
      if (error !== null) return done(error);
      const { sectors } = device.disk;
      const isGrown = vbd.sectors !== sectors;
      const grown = isGrown ? `, of ${vbd.sectors} instead of ${sectors} sectors` : "";
      device.disk = vbd.geometry;
      this.#log.info(`Unpaused minor ${minor} with ${vbd.name}${grown}`);
      const resumed = (): void => {
        this.#note(minor, device);
        done(null);
      };
      if (isGrown) device.access.resized(resumed);
      else resumed();
    });
    return () => vbd.cancelOpening();
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

  /** A line on how a device is, and one on each of its requests. Throws `SystemError`: ENODEV. */
  report(minor: number): string[] {
    return this.#find(minor, "report on").vbd.report();
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

  /**
   * Closes all images and ends all devices, none of which waits for another: its disk may hang.
   * Errors go to the log. Calls back with those that stay, mostly because they are in use.
   *
   * @param preempt Cancels the cancellable commands of a minor, and then runs a job exclusively.
   */
  endAll(
    preempt: (minor: number, job: (finished: () => void) => void) => void,
    done: (left: readonly RemainingDevice[]) => void,
  ): void {
    this.#ending = true;
    let running = this.#devices.size;
    if (running === 0) return done([]);
    for (const minor of [...this.#devices.keys()]) {
      preempt(minor, (finished) =>
        this.#end(minor, () => {
          // Whoever still waits is told that there is no such device.
          finished();
          if (--running > 0) return;
          this.#ending = this.#devices.size === 0;
          done(this.#remaining());
        }));
    }
  }

  #remaining(): RemainingDevice[] {
    return Array.from(this.#devices, ([minor, { vbd, access }]) => {
      const { node, outlives } = access;
      return { minor, name: vbd.name, node, outlives };
    });
  }

  #end(minor: number, done: () => void): void {
    const device = this.#devices.get(minor);
    if (device === undefined) return done();
    this.close(minor, { force: false }, (error) => {
      if (error !== null) this.#log.error(error.message);
      if (device.vbd.name === "") this.#forget(minor, device);
      done();
    });
  }
}

/** ublk speaks io_uring, and so does the disk below it, in the same calls, where that pays. */
function queueFor({ queue }: OpenRequest, { makers }: DevicePlan): QueueKind {
  return queue === "auto" && makers[0]?.kind === "ublk" ? "mixed" : queue;
}
