/**
 * `src/frontend/ublk` serves block devices of the kernel's ublk driver, /dev/ublkbN, over io_uring.
 * `control.ts` has the commands that create and remove devices, `queue.ts` the data path,
 * `attach.ts` the steps from a VBD to a node, `removal.ts` the removal, `limits.ts` the limits of
 * requests.
 *
 * When a tapdisk is killed, its device stays and holds the requests of its users until another
 * tapdisk takes it over. The kernel then sends the unanswered requests again.
 *
 * It must not block the thread in a command: the kernel may read from the device before it returns.
 *
 * @module
 */
import { type Done, Errno, errnoMessage, errnoName, SystemError } from "../../../ffi/errno.ts";
import { closeFile, O_RDWR, openFile } from "../../../ffi/files.ts";
import { type DeviceInfo, UBLK_F_USER_RECOVERY } from "../../../ffi/ublk.ts";
import type { Meter } from "../../metrics/meter.ts";
import type { UringLoop } from "../../queue/uring_loop.ts";
import { SLOTS } from "../../vbd/slots.ts";
import type { BlockDevice } from "../block_device.ts";
import { cannotTakeAway, userOf } from "../device_users.ts";
import { type HandedDevice, UblkHandover } from "./device_handover.ts";
import type { UblkHost } from "./host.ts";
import { whyNotServed } from "./limits.ts";
import { UblkQueue } from "./queue.ts";
import { removalEnded, removeUnused } from "./removal.ts";
import { DeviceTakeOver, type LeftDevice } from "./take_over.ts";

/** How long to wait for a process that opens the disk for a moment, such as udev. */
const OPENERS_TIMEOUT_MS = 2_000;
const OPENERS_POLL_MS = 50;

/** A ublk device that the kernel has. */
export class UblkDevice implements BlockDevice, HandedDevice, LeftDevice {
  readonly kind = "ublk";
  readonly node: string;
  /** The N of /dev/ublkbN. */
  readonly number: number;
  readonly outlives: boolean;
  readonly handover?: UblkHandover;
  readonly #host: UblkHost;
  /** The properties of a device that another process serves, and hands over. */
  #awaited: DeviceInfo | null = null;
  /** Slots that are kept for its requests. */
  #reserved: number[] = [];
  #fd = -1;
  #queues: UblkQueue[] = [];
  #meter: Meter | null = null;
  #isFollowing = false;
  /** Whether it could not be taken over from the process that handed it over. */
  #isLost = false;
  #stopping = false;
  #whenQueuesGone: (() => void) | null = null;

  constructor(host: UblkHost, { device: number, flags }: Pick<DeviceInfo, "device" | "flags">) {
    this.#host = host;
    // Kernels before 6.1 do not support the flag, and stop the device of a dead server.
    this.outlives = (flags & UBLK_F_USER_RECOVERY) !== 0;
    this.number = number;
    this.node = `/dev/ublkb${number}`;
    if (this.outlives) this.handover = new UblkHandover(this);
  }

  get queues(): readonly UblkQueue[] {
    return this.#queues;
  }

  get uring(): UringLoop {
    return this.#host.uring;
  }

  /** Whether it is being removed. */
  get isStopping(): boolean {
    return this.#stopping;
  }

  get gone(): boolean {
    return this.#isLost;
  }

  get isAwaited(): boolean {
    return this.#awaited !== null && !this.#stopping;
  }

  /** Another process serves it as yet. There must be enough free slots, see `whyNotServed`. */
  await(info: DeviceInfo): void {
    this.#awaited = info;
    // Other clients of the disk may begin before the device.
    const { requests } = this.#host.vbd;
    this.#reserved = Array.from({ length: info.queues * info.depth }, () => requests.takeSlot());
  }

  #freeReserved(): void {
    for (const slot of this.#reserved.splice(0)) this.#host.vbd.requests.releaseSlot(slot);
  }

  takeOver(): void {
    const info = this.#awaited;
    if (info === null || this.#isFollowing) return;
    this.#isFollowing = true;
    new DeviceTakeOver(this.#host, this).follow(info, (error) => {
      this.#awaited = null;
      this.#isLost = error !== null;
      if (error !== null) this.#host.log.error(`${error.message}; its users get errors`);
    });
  }

  /**
   * Opens the device's own file, and fetches requests on all queues.
   *
   * @throws {SystemError} ENOBUFS when its requests do not fit in the free slots of the VBD.
   */
  openQueues(info: DeviceInfo): void {
    const { uring, control, log, vbd } = this.#host;
    this.#freeReserved();
    const refusal = whyNotServed(info, vbd.requests.freeSlots);
    if (refusal !== "") {
      throw new SystemError(Errno.ENOBUFS, `Cannot serve ${this.node} (${refusal})`);
    }
    this.#fd = openFile(`/dev/ublkc${this.number}`, O_RDWR);
    this.#meter = vbd.meters.open({ of: "blktap", minor: vbd.minor }, SLOTS);
    const host = {
      requests: vbd.requests,
      uring,
      log,
      meter: this.#meter,
      fd: this.#fd,
      encoded: control.encoded,
      queueGone: () => this.#queueGone(),
    };
    try {
      for (let i = 0; i < info.queues; i++) {
        this.#queues.push(new UblkQueue(host, i, info.depth));
      }
    } catch (error) {
      this.#closeQueues();
      throw error;
    }
    for (const queue of this.#queues) queue.fetch();
  }

  #queueGone(): void {
    if (!this.#queues.every((queue) => queue.isGone)) return;
    if (!this.#stopping) {
      this.#host.log.error(`${this.node} was removed by another process; its users get errors`);
    }
    // This runs within the completion of the last command: close in a turn of its own.
    this.#host.scheduler.addTimer(0, () => this.#closeQueues());
  }

  #closeQueues(): void {
    for (const queue of this.#queues) queue.close();
    this.#queues = [];
    this.#meter?.hide();
    if (this.#fd >= 0) closeFile(this.#fd);
    this.#fd = -1;
    const done = this.#whenQueuesGone;
    this.#whenQueuesGone = null;
    done?.();
  }

  resized(): boolean {
    const { control, log, vbd } = this.#host;
    const { sectors } = vbd;
    if (!control.canResize) return false;
    // Kernels up to 6.19 do not check that the device has a disk.
    if (this.#stopping || this.#queues.length === 0) return true;
    const size = `${this.node} does not show its new size, ${sectors} sectors`;
    control.updateSize(this.number, sectors, (result) => {
      if (result < 0) log.warn(`${size}: ${errnoMessage(-result)} (${errnoName(-result)})`);
    });
    return true;
  }

  detach(done: Done): void {
    // It could not be taken over, or an earlier removal failed after the stop.
    if (this.#stopping) return done(null);
    this.#stopUnused(this.#host.scheduler.nowMs() + OPENERS_TIMEOUT_MS, (error) => {
      if (error !== null) return done(error);
      const { control } = this.#host;
      this.#end(() => control.remove(this.number, (result) => this.#removed(result, done)));
    });
  }

  /** Stops the device once no process has it open; EBUSY after `latestMs`. */
  #stopUnused(latestMs: number, done: Done): void {
    const { control, scheduler } = this.#host;
    const inUse = (why: string): void => {
      if (scheduler.nowMs() >= latestMs) {
        return done(cannotTakeAway(this.node, Errno.EBUSY, why));
      }
      scheduler.addTimer(OPENERS_POLL_MS, () => this.#stopUnused(latestMs, done));
    };
    if (this.#stopping) return;
    if (control.canStopSafely) {
      return control.tryStop(this.number, (result) => {
        if (result === -Errno.EBUSY) return inUse("somebody has it open");
        this.#stopping = true;
        done(null);
      });
    }
    const user = userOf(this.node);
    if (user !== "") return inUse(user);
    this.#stop(done);
  }

  #stop(done: Done): void {
    this.#stopping = true;
    this.#host.control.stop(this.number, (result) => {
      // ENODEV: another process has removed it.
      if (result < 0 && result !== -Errno.ENODEV) {
        this.#host.log.warn(`Cannot stop ${this.node} (${errnoName(-result)})`);
      }
      done(null);
    });
  }

  /** Waits for the commands of the queues, which complete when the device stops. */
  #end(done: () => void): void {
    this.#freeReserved();
    if (this.#queues.length === 0) return done();
    this.#whenQueuesGone = done;
  }

  #removed(result: number, done: Done): void {
    this.#host.control.close();
    removalEnded(this.node, result, done);
  }

  abandon(): void {
    // Another process serves it, and goes on with it if this one ends.
    if (this.isAwaited && !this.#isFollowing) return;
    for (const queue of this.#queues) queue.abandon();
    if (this.#stopping) return;
    this.discard((error) => {
      if (error !== null) this.#host.log.warn(error.message);
    });
  }

  /** Stops the device even if it is in use, and removes it once no process has it open. */
  discard(done: Done): void {
    const { control, scheduler } = this.#host;
    const removed = (result: number): void => this.#removed(result, done);
    this.#stop(() => this.#end(() => removeUnused(scheduler, control, this.number, removed)));
  }
}
