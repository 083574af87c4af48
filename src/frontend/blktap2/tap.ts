import {
  allocateTap,
  BLKTAP_IOCTL_FREE_TAP,
  BLKTAP_IOCTL_REMOVE_DEVICE,
  type BlktapDeviceInfo,
  type BlktapDriver,
  type BlktapInfo,
  type BlktapRingDevice,
  createBlktapDevice,
} from "../../../ffi/blktap.ts";
import { BLKTAP_MAPPED_BYTES, BLKTAP_PAGE_SECTORS, BlktapRing } from "../../../ffi/blktap_ring.ts";
import { messageOf, SystemError } from "../../../ffi/errno.ts";
import { Arena } from "../../../ffi/memory.ts";
import type { Log } from "../../log/log.ts";

/** How to release a tap. */
export interface ReleaseOptions {
  /** Whether the block device still exists: the close then waits for its users. */
  readonly inUse: boolean;
  /** Whether the driver frees the tap by itself. */
  readonly freed: boolean;
}

/** A tap of the driver: the mapped ring and the block device. */
export class Tap {
  readonly minor: number;
  /** The node of the block device. */
  readonly node: string;
  readonly device: BlktapRingDevice;
  readonly ring: BlktapRing;
  /** Sector of I/O memory at which the pages of request 0 begin. */
  readonly dataSector: number;
  readonly #driver: BlktapDriver;
  readonly #info: BlktapInfo;
  readonly #arena: Arena;
  readonly #log: Log;

  /** Creates a tap without a block device. Throws `SystemError`, and leaves no tap then. */
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

  /** Creates the block device; returns the flags that the driver supports. Throws `SystemError`. */
  create(info: BlktapDeviceInfo): number {
    return createBlktapDevice(this.device, info);
  }

  /** Removes the block device; returns 0, or -EBUSY while it is in use. */
  remove(): number {
    return this.device.call(BLKTAP_IOCTL_REMOVE_DEVICE, 0);
  }

  /** Frees the tap. Errors are only logged, because the device has ended in any case. */
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
    const why = messageOf(error);
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
   * Unmaps the ring and frees the tap. No disk operation may use its pages. Unless the ring was
   * closed because it made no sense, every request must have its response.
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
