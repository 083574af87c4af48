/**
 * `src/frontend` is where requests come in. The NBD server (`nbd/`) takes them from clients over
 * sockets. A block device of the kernel is a `BlockDevice`, which a `DeviceMaker` creates: by the
 * blktap2 driver (`blktap2/`), by ublk (`ublk/`) or by the kernel's nbd client (`nbd_device/`).
 * Each frontend turns requests into slots of a VBD and returns the results.
 *
 * A frontend must not know images or drivers: it reads and writes through the VBD's requests only.
 * It must not trust what it receives: offsets, lengths and numbers are checked before they are
 * used.
 *
 * @module
 */
import type { Done, DoneWith } from "../../ffi/errno.ts";
import type { UsersHandover } from "./users_handover.ts";
import type { Log } from "../log/log.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import type { Vbd } from "../vbd/vbd.ts";

/** Kinds of Linux block devices, in order of preference. */
export const DEVICE_KINDS = ["blktap2", "ublk", "nbd"] as const;
/** One of `DEVICE_KINDS`. */
export type DeviceKind = (typeof DEVICE_KINDS)[number];

/** A Linux block device that a VBD serves. */
export interface BlockDevice {
  readonly kind: DeviceKind;
  /** The device node, such as /dev/ublkb0. */
  readonly node: string;
  /** Whether the kernel removed the device by itself; then it has no node. */
  readonly gone?: boolean;
  /**
   * Whether the device outlives its tapdisk: its users wait until another tapdisk takes it over.
   */
  readonly outlives: boolean;
  /** What another process needs to go on with it; without it, none can. */
  readonly handover?: UsersHandover;
  /** Tells the kernel the new size of the VBD. False when the kernel cannot change it. */
  resized(): boolean;
  /**
   * Removes the device. The VBD serves requests until `done` is called, because the kernel may send
   * some meanwhile.
   *
   * @param done EBUSY when the device is in use; it stays then.
   */
  detach(done: Done): void;
  /** Removes the device at once. Requests in flight fail, and its users get errors. */
  abandon(): void;
}

/** The environment of a block device. */
export interface DeviceHost {
  readonly scheduler: Scheduler;
  readonly vbd: Vbd;
  readonly log: Log;
}

/** Called with the new block device, or with an error. */
export type Attached = DoneWith<BlockDevice>;

/** Creates block devices of one kind. */
export interface DeviceMaker {
  readonly kind: DeviceKind;
  /** Why this kind cannot be used here; null when it can. Changes nothing. */
  missing(): string | null;
  /**
   * Creates a device for the VBD of `host`, whose image is open, or takes one over.
   *
   * @param recover Node of the device to take over, which a dead tapdisk left for this VBD; null
   * for a new device.
   * @param done Called when the node exists and can be opened, possibly before this returns. ENODEV
   * when there is no device to take over.
   * @param wanted The node that a new device should have if it is free. It is for a device that is
   * created again, whose users know its node. Only ublk supports it.
   */
  attach(host: DeviceHost, recover: string | null, done: Attached, wanted?: string): void;
  /**
   * Goes on with a device of a process that hands its users over: they come later, by `handover` of the
   * device. Kinds whose devices have a `handover` have it.
   */
  adopt?(host: DeviceHost, node: string, done: Attached): void;
  /**
   * Removes the device of a dead tapdisk that cannot be taken over, because its image is gone. Only
   * kinds whose devices outlive their tapdisk have it.
   *
   * @param done EBUSY when a process has the device open or serves it.
   * @throws {SystemError}
   */
  remove?(scheduler: Scheduler, node: string, done: Done): void;
}
