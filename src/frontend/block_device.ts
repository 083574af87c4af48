import type { Done, DoneWith } from "../../ffi/errno.ts";
import type { Log } from "../log/log.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import type { Vbd } from "../vbd/vbd.ts";

/** Kinds of Linux block devices that a disk can be, the first choice first. */
export const DEVICE_KINDS = ["blktap2", "ublk", "nbd"] as const;
/** One of `DEVICE_KINDS`. */
export type DeviceKind = (typeof DEVICE_KINDS)[number];

/** A Linux block device whose requests a VBD answers. */
export interface BlockDevice {
  readonly kind: DeviceKind;
  /** Its node, such as /dev/ublkb0. */
  readonly node: string;
  /** Whether the kernel took it away by itself; it has no node any more then. */
  readonly gone?: boolean;
  /** Whether it stays when its tapdisk is killed, and its users wait until another takes it over. */
  readonly outlives: boolean;
  /** Tells the kernel that the VBD has another size now; false if it cannot change a device's. */
  resized(): boolean;
  /**
   * Takes the device away. The VBD answers requests until `done` is called, for the kernel asks for
   * some still; errno EBUSY, and the device stays, when the kernel says that somebody uses it.
   */
  detach(done: Done): void;
  /** Lets go of the device at once, whatever is under way: its users get errors. */
  abandon(): void;
}

/** What a block device needs of its process. */
export interface DeviceHost {
  readonly scheduler: Scheduler;
  readonly vbd: Vbd;
  readonly log: Log;
}

/** Called with the block device that was made, or with why there is none. */
export type Attached = DoneWith<BlockDevice>;

/** A kind of block device that the kernel may offer. */
export interface DeviceMaker {
  readonly kind: DeviceKind;
  /** Why devices of this kind cannot be made here; null when they can. Asks, changes nothing. */
  missing(): string | null;
  /**
   * Makes a device for the VBD of `host`, whose image is open. It calls back, in a later turn
   * perhaps, when the node is there and can be opened.
   *
   * @param recover The node that a tapdisk which died left for this VBD, to be taken over; else null.
   * An error with errno ENODEV says that there is nothing to be taken over any more.
   * @param wanted The node that a new device is to have if it is free, where the kernel lets one
   * choose: the device is made again, and its users know it by that.
   */
  attach(host: DeviceHost, recover: string | null, done: Attached, wanted?: string): void;
  /**
   * Takes away the device that a tapdisk which died left and that nobody can take over, because its
   * image is not there any more. Throws `SystemError`. Only kinds have it whose devices stay.
   *
   * @param done Told of errno EBUSY when somebody has the device open, or serves it.
   */
  remove?(scheduler: Scheduler, node: string, done: Done): void;
}
