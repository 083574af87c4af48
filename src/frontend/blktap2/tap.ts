import {
  allocateTap,
  BLKTAP_IOCTL_FREE_TAP,
  BLKTAP_IOCTL_REMOVE_DEVICE,
  BLKTAP_MAPPED_BYTES,
  BLKTAP_PAGE_SECTORS,
  type BlktapDeviceInfo,
  type BlktapDriver,
  type BlktapInfo,
  BlktapRing,
  type BlktapRingDevice,
  createBlktapDevice,
} from "../../../ffi/blktap.ts";
import { SystemError } from "../../../ffi/errno.ts";
import { Arena } from "../../../ffi/memory.ts";
import type { Log } from "../../log/log.ts";

/** How a tap is let go of. */
export interface ReleaseOptions {
  /** Whether the block device is there still: the driver then takes its time. */
  readonly inUse: boolean;
  /** Whether the driver takes the tap away by itself. */
  readonly freed: boolean;
}

/** A tap of the driver, from its making to its end: the ring, mapped, and the block device. */
export class Tap {
  readonly minor: number;
  /** Node of the block device. */
  readonly node: string;
  readonly device: BlktapRingDevice;
  readonly ring: BlktapRing;
  /** Sector of I/O memory at which the pages of request 0 begin. */
  readonly dataSector: number;
  readonly #driver: BlktapDriver;
  readonly #info: BlktapInfo;
  readonly #arena: Arena;
  readonly #log: Log;

  /** Makes a tap without a block device. Throws `SystemError`; then none is left. */
  constructor(driver: BlktapDriver, log: Log) {
    this.#driver = driver;
    this.#log = log;
    this.#info = allocateTap(driver);
    this.minor = this.#info.minor;
    let device: BlktapRingDevice | null = null;
    let arena: Arena | null = null;
    try {
      device = driver.openRing(this.#info);
      arena = new Arena(BLKTAP_MAPPED_BYTES);
      device.map(arena);
      this.node = driver.makeNode(this.#info);
    } catch (error) {
      arena?.unmapDescriptor();
      arena?.release();
      if (device !== null) void this.#close(device, { wait: false });
      this.#free();
      throw error;
    }
    this.device = device;
    this.#arena = arena;
    this.ring = new BlktapRing(arena);
    this.dataSector = arena.sector + BLKTAP_PAGE_SECTORS;
  }

  /** Makes the block device; returns the flags that the driver heeds. Throws `SystemError`. */
  create(info: BlktapDeviceInfo): number {
    return createBlktapDevice(this.device, info);
  }

  /** Takes the block device away; 0, or -EBUSY while somebody uses it. */
  remove(): number {
    return this.device.call(BLKTAP_IOCTL_REMOVE_DEVICE, 0);
  }

  /** Gives the tap back. The device has ended in any case: what goes wrong is for the log only. */
  #free({ freed = false } = {}): void {
    try {
      const result = freed ? 0 : this.#driver.control(BLKTAP_IOCTL_FREE_TAP, this.minor);
      if (result < 0) throw new SystemError(-result, `Cannot free tap ${this.minor}`);
      this.#driver.removeNodes(this.#info);
    } catch (error) {
      this.#warn(error);
    }
  }

  #warn(error: unknown): void {
    const why = error instanceof Error ? error.message : String(error);
    this.#log.warn(`The blktap2 driver keeps something of tap ${this.minor}: ${why}`);
  }

  async #close(device: BlktapRingDevice, options: { wait: boolean }): Promise<void> {
    try {
      await device.close(options);
    } catch (error) {
      this.#warn(error);
    }
  }

  /**
   * Unmaps the ring and lets go of the tap. Nothing may be under way in its pages, and, as far as
   * the ring is in order, no request may be without an answer.
   */
  release({ inUse, freed }: ReleaseOptions): void {
    this.#arena.unmapDescriptor();
    this.#arena.release();
    const closed = this.#close(this.device, { wait: inUse });
    const end = () => this.#free({ freed });
    if (inUse) closed.then(end);
    else end();
  }
}
