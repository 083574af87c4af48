/**
 * `src/frontend/blktap2` serves block devices of the blktap2 driver. Requests and their data are in
 * memory that this process shares with the kernel. `tap.ts` creates and releases a tap,
 * `ring_requests.ts` is the data path, and this file handles the messages of the driver and the
 * end.
 *
 * It must not trust the ring: a request is copied before it is checked, and a ring that makes no
 * sense is closed. It must not release the ring while a disk operation uses its pages.
 *
 * @module
 */
import {
  BLKTAP2_IOCTL_PAUSE,
  BLKTAP2_IOCTL_RESUME,
  BLKTAP2_IOCTL_SET_PARAMS,
  BLKTAP_DEVICE_FLAG_FLUSH,
  BLKTAP_DEVICE_FLAG_PSZ,
  BLKTAP_DEVICE_FLAG_RO,
  BLKTAP_DEVICE_FLAG_TRIM,
  type BlktapDeviceInfo,
  type BlktapDriver,
  blktapMinorOf,
  blktapParams,
  KernelBlktap,
  nameToReopen,
} from "../../../ffi/blktap.ts";
import {
  BLKTAP_RING_MESSAGE_CLOSE,
  BLKTAP_RING_MESSAGE_PAUSE,
  BLKTAP_RING_MESSAGE_RESUME,
} from "../../../ffi/blktap_ring.ts";
import { EPOLLIN } from "../../../ffi/epoll.ts";
import { type Done, Errno, errnoName, SystemError, systemError } from "../../../ffi/errno.ts";
import { SECTOR_BYTES } from "../../driver/driver.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import type { Attached, BlockDevice, DeviceHost, DeviceMaker } from "../block_device.ts";
import { cannotTakeAway } from "../device_users.ts";
import { type RingOwner, RingRequests } from "./ring_requests.ts";
import { Tap } from "./tap.ts";

/** Physical block size to report: the block size of most filesystems and the alignment of VHDs. */
const PHYSICAL_BLOCK_BYTES = 4096;
/** How long to wait for a process that opens the device for a moment, such as udev. */
const BUSY_MS = 1000;
const BUSY_AGAIN_MS = 20;
/** How long to wait before another try to pause a disk that is changing its state. */
const PAUSE_AGAIN_MS = 50;

function deviceInfo(vbd: Vbd): BlktapDeviceInfo {
  const access = vbd.readOnly ? BLKTAP_DEVICE_FLAG_RO : BLKTAP_DEVICE_FLAG_TRIM;
  return {
    name: vbd.name,
    sectors: vbd.sectors,
    sectorSizeBytes: SECTOR_BYTES,
    physicalBlockBytes: PHYSICAL_BLOCK_BYTES,
    trimBlockBytes: PHYSICAL_BLOCK_BYTES,
    flags: access | BLKTAP_DEVICE_FLAG_PSZ | BLKTAP_DEVICE_FLAG_FLUSH,
  };
}

/** One device of the driver and its requests. */
class Blktap2Device implements BlockDevice, RingOwner {
  readonly kind = "blktap2";
  readonly outlives = false;
  readonly node: string;
  readonly #host: DeviceHost;
  readonly #tap: Tap;
  readonly #requests: RingRequests;
  /** Requests fail from now on, and the device is released when none is in flight. */
  #ending = false;
  #gone = false;
  #broken = false;
  /** The driver was told to remove the tap, and will do so itself. */
  #closedByDriver = false;

  get gone(): boolean {
    return this.#ending || this.#gone;
  }

  /** Throws `SystemError`; then no device is left. */
  constructor(host: DeviceHost, driver: BlktapDriver) {
    this.#host = host;
    this.#tap = new Tap(driver, host.log);
    this.node = this.#tap.node;
    this.#requests = new RingRequests(host.vbd, this.#tap, this);
    try {
      const info = deviceInfo(host.vbd);
      this.#warnOf(info.flags, this.#tap.create(info));
      host.scheduler.watch(this.#tap.device.fd, EPOLLIN, this.#requests);
    } catch (error) {
      this.#requests.close();
      this.#tap.release({ inUse: false, freed: false });
      throw error;
    }
    host.scheduler.addTurnWork(this.#requests);
  }

  #warnOf(wanted: number, heeded: number): void {
    const missing = [
      [BLKTAP_DEVICE_FLAG_RO, "that the disk is read-only"],
      [BLKTAP_DEVICE_FLAG_FLUSH, "flushes"],
      [BLKTAP_DEVICE_FLAG_TRIM, "trimming"],
    ] as const;
    const names = missing.filter(([flag]) => (wanted & ~heeded & flag) !== 0).map(([, name]) =>
      name
    );
    if (names.length === 0) return;
    this.#host.log.warn(`${this.node}: this blktap2 driver does not know of ${names.join(", ")}`);
  }

  resized(): boolean {
    return false;
  }

  detach(done: Done): void {
    this.#tryDetach(this.#host.scheduler.nowMs() + BUSY_MS, done);
  }

  #tryDetach(untilMs: number, done: Done): void {
    if (this.gone) return done(null);
    const { scheduler } = this.#host;
    // The driver would wait for the responses to requests in flight, which this thread has to send.
    const result = this.#requests.unanswered > 0 ? -Errno.EBUSY : this.#tap.remove();
    if (result === -Errno.EBUSY && scheduler.nowMs() < untilMs) {
      return void scheduler.addTimer(BUSY_AGAIN_MS, () => this.#tryDetach(untilMs, done));
    }
    if (result !== 0) {
      const why = result === -Errno.EBUSY ? "somebody uses it" : errnoName(-result);
      return done(cannotTakeAway(this.node, -result, why));
    }
    this.#letGo({ inUse: false });
    done(null);
  }

  abandon(): void {
    if (this.gone) return;
    this.#ending = true;
    this.#requests.refuse();
    this.answered();
  }

  /** All requests have their responses: releases a device that is ending. */
  answered(): void {
    if (!this.#ending || this.#gone || this.#requests.unanswered > 0) return;
    this.#letGo({ inUse: this.#broken || this.#tap.remove() !== 0 });
  }

  #letGo({ inUse }: { inUse: boolean }): void {
    this.#gone = true;
    const { scheduler } = this.#host;
    scheduler.unwatch(this.#tap.device.fd);
    scheduler.removeTurnWork(this.#requests);
    // The driver expects a response to every request before the ring is released.
    this.#requests.refuse();
    this.#requests.takeRequests();
    this.#requests.endOfTurn();
    this.#requests.close();
    this.#tap.release({ inUse, freed: this.#closedByDriver });
  }

  broken(reason: string): void {
    const { log, scheduler } = this.#host;
    log.error(`Closing ${this.node}: its ring makes no sense (${reason})`);
    this.#broken = true;
    scheduler.rewatch(this.#tap.device.fd, 0);
    this.#ending = true;
    // This runs within a loop over the ring: release it in a turn of its own.
    scheduler.addTimer(0, () => this.answered());
  }

  message(message: number): void {
    switch (message) {
      case BLKTAP_RING_MESSAGE_PAUSE:
        return this.#pause();
      case BLKTAP_RING_MESSAGE_RESUME:
        return this.#resume();
      case BLKTAP_RING_MESSAGE_CLOSE:
        this.#tap.ring.clearMessage();
        this.#host.log.warn(`Closing ${this.node}: the driver was told to remove it`);
        this.#closedByDriver = true;
        return this.abandon();
      default:
        this.#tap.ring.clearMessage();
        this.#host.log.warn(
          `${this.node}: a message ${message} of the driver, which has no meaning`,
        );
    }
  }

  /**
   * Stops watching the ring until the driver has its reply: the message keeps the ring readable,
   * and would wake the loop all the time. Returns the function that ends this.
   */
  #holdMessages(): () => void {
    const { scheduler } = this.#host;
    scheduler.rewatch(this.#tap.device.fd, 0);
    return () => {
      if (this.#gone) return;
      // A driver clears the message when it gets the reply. This is for one that does not.
      this.#tap.ring.clearMessage();
      scheduler.rewatch(this.#tap.device.fd, EPOLLIN);
    };
  }

  #pause(): void {
    const { log, scheduler, vbd } = this.#host;
    const watchAgain = this.#holdMessages();
    vbd.pause((error) => {
      if (error?.errno === Errno.EAGAIN) {
        return void scheduler.addTimer(PAUSE_AGAIN_MS, () => this.#gone || this.#pause());
      }
      if (error !== null) log.warn(error.message);
      else if (!this.#gone) this.#tap.device.call(BLKTAP2_IOCTL_PAUSE, 0);
      watchAgain();
    });
  }

  #resume(): void {
    const { log, vbd } = this.#host;
    const watchAgain = this.#holdMessages();
    vbd.resume(nameToReopen(this.#tap.device), (error) => {
      if (error !== null) log.warn(error.message);
      if (!this.#gone) {
        const { device } = this.#tap;
        if (error === null) device.call(BLKTAP2_IOCTL_SET_PARAMS, blktapParams(deviceInfo(vbd)));
        device.call(BLKTAP2_IOCTL_RESUME, -(error?.errno ?? 0));
      }
      watchAgain();
    });
  }
}

/**
 * Refuses a takeover, because the driver removes a device when its tapdisk dies. It frees what is
 * left of the tap.
 *
 * @throws {SystemError} ENODEV, always.
 */
function refuseTakeover(driver: BlktapDriver, node: string): never {
  const minor = blktapMinorOf(node);
  if (minor >= 0) driver.clearUp(minor);
  const hint = "the blktap2 driver removed it when its tapdisk died, and its users got errors; " +
    "free the minor with 'tap-ctl free'";
  throw new SystemError(Errno.ENODEV, `Cannot take over ${node} (${hint})`);
}

/** Creates devices of a blktap2 driver: the kernel's, or a simulated one in tests. */
export function blktap2MakerOn(driver: BlktapDriver): DeviceMaker {
  return {
    kind: "blktap2",
    missing: () => driver.missing(),
    attach(host: DeviceHost, recover: string | null, done: Attached): void {
      let device: Blktap2Device;
      try {
        if (recover !== null) refuseTakeover(driver, recover);
        device = new Blktap2Device(host, driver);
      } catch (error) {
        return done(systemError(error, "Cannot make a block device of the blktap2 driver"), null);
      }
      done(null, device);
    },
  };
}

/** Creates devices of the kernel's blktap2 driver. */
export const blktap2Maker: DeviceMaker = blktap2MakerOn(new KernelBlktap());
