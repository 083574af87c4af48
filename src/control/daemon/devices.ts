/**
 * `src/control/daemon`: the tapdisk side of the control socket: the devices of the process, the
 * commands that change them, and the server that takes the requests. Devices must not know messages
 * or sockets, and nothing here must touch data: that is the work of the vbd and of the frontends.
 *
 * This file has the devices of the process, by minor.
 *
 * @module
 */
import { type Done, Errno, SystemError } from "../../../ffi/errno.ts";
import { secretsNotLocked } from "../../../ffi/secret.ts";
import { type GuestDevice, type GuestRing, nameOfGuest } from "../../frontend/xenblkif/guest.ts";
import type { Log } from "../../log/log.ts";
import { MAX_ID } from "../minors/minors.ts";
import { Device } from "./device.ts";
import type { DeviceServices } from "./device_services.ts";
import type { DeviceSummary } from "./device_summary.ts";
import { inTurns } from "./in_turns.ts";
import type { RemainingDevice } from "./remaining.ts";
import type { Room } from "./room.ts";
import { Traces } from "./traces.ts";
import type { ControlConnection } from "./control_connection.ts";

/** What the devices need of their process. */
export interface DevicesHost extends DeviceServices {
  /** Called when the last device is detached. */
  emptied(): void;
  /** The room for disks of several callers; without it the process ends with its last device. */
  readonly room?: Room;
}

/** The devices of this process. */
export class Devices {
  readonly #host: DevicesHost;
  readonly #log: Log;
  readonly #devices = new Map<number, Device>();
  readonly #traces: Traces;
  /** Whether this process is about to end, and takes no more devices. */
  #ending = false;

  constructor(host: DevicesHost) {
    this.#host = host;
    this.#log = host.log;
    this.#traces = new Traces(host);
  }

  /**
   * The device of a minor. Throws `SystemError` when there is none.
   *
   * @param what What is done with the minor, for the error's message: `Cannot … minor 3`.
   * @param errno The number of the error.
   */
  find(minor: number, what: string, errno: number = Errno.ENODEV): Device {
    const device = this.#devices.get(minor);
    if (device !== undefined) return device;
    throw new SystemError(errno, `Cannot ${what} minor ${minor} (it is not attached here)`);
  }

  /** A forced close of a minor is to come: one that waits for a server ends at once. */
  hurryClose(minor: number): void {
    this.#devices.get(minor)?.hurryClose();
  }

  /** Keeps a place for a disk. Throws `SystemError`: the caller must look for another process. */
  reserve(): void {
    const { room } = this.#host;
    if (this.#ending || room === undefined) {
      const why = this.#ending ? "tapdisk is ending" : "it serves disks of one caller";
      throw new SystemError(Errno.ESHUTDOWN, `Cannot take another disk (${why})`);
    }
    room.reserve();
  }

  /** How many devices there are. */
  get count(): number {
    return this.#devices.size;
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
    this.#devices.set(minor, new Device(this.#host, minor));
    this.#host.room?.taken();
    this.#log.info(`Attached minor ${minor}`);
  }

  /** Ends a device without an image. Throws `SystemError`: ENODEV, EBUSY. */
  detach(minor: number): void {
    const device = this.find(minor, "detach");
    if (device.name !== "") {
      const hint = `${device.name} is open on it; close it first`;
      throw new SystemError(Errno.EBUSY, `Cannot detach minor ${minor} (${hint})`);
    }
    this.#remove(device);
    const { room } = this.#host;
    if (room !== undefined) room.left();
    else if (this.#devices.size === 0) this.endUnused();
  }

  /** Ends the process, which has no device. */
  endUnused(): void {
    this.#ending = true;
    this.#host.emptied();
  }

  /**
   * Whoever told a process of many disks to end may have left minors here that never had an image. They
   * are detached when they still have none after `delayMs`.
   */
  detachAbandoned(delayMs: number): void {
    const { scheduler, runExclusive } = this.#host;
    for (const device of this.#devices.values()) {
      if (device.wasOpened) continue;
      const { minor } = device;
      scheduler.addTimer(delayMs, () => {
        runExclusive(minor, (finished) => {
          const isAbandoned = this.#devices.get(minor) === device && !device.wasOpened;
          if (isAbandoned && device.name === "") this.detach(minor);
          finished();
        });
      });
    }
  }

  #remove(device: Device): void {
    device.release();
    this.#devices.delete(device.minor);
    this.#log.info(`Detached minor ${device.minor}`);
  }

  /** Serves a guest's ring by the disk of a minor. Throws `SystemError`: EALREADY, ENODEV, EINVAL. */
  connectRing(minor: number, guest: GuestRing): void {
    const device = this.find(minor, `connect ${nameOfGuest(guest)} to`);
    const other = this.#servantOf(guest);
    if (other !== undefined) {
      const why = `it is connected to minor ${other.minor}`;
      throw new SystemError(Errno.EALREADY, `Cannot connect ${nameOfGuest(guest)} (${why})`);
    }
    device.connectRing(guest);
  }

  /** Leaves a guest's ring. Throws `SystemError`: ENODEV when it is not connected. */
  disconnectRing(guest: GuestDevice): void {
    const device = this.#servantOf(guest);
    if (device === undefined) {
      const why = "it is not connected here";
      throw new SystemError(Errno.ENODEV, `Cannot disconnect ${nameOfGuest(guest)} (${why})`);
    }
    device.disconnectRing(guest);
  }

  /** The device that serves a guest's ring. */
  #servantOf(guest: GuestDevice): Device | undefined {
    return this.#devices.values().find((device) => device.serves(guest));
  }

  /** A disk with a key is open. The administrator must know when the key may get into swap. */
  keyInUse(minor: number): void {
    const reason = secretsNotLocked();
    if (reason !== null) this.#log.warn(`Minor ${minor}: ${reason.message}`);
  }

  /**
   * Calls `visit` with each device, a few in a turn of the loop, so that requests do not wait for all of
   * them. A device that ends meanwhile is left out.
   */
  visit(visit: (device: Device) => void, done: Done): void {
    const isHere = (device: Device): boolean => this.#devices.get(device.minor) === device;
    const visitHere = (device: Device): void => isHere(device) ? visit(device) : undefined;
    inTurns(this.#host.scheduler, this.all, visitHere, done);
  }

  /** Traces a disk for whoever is at the other end of a connection. Throws `SystemError`. */
  trace(minor: number, connection: ControlConnection): void {
    this.#traces.begin(this.find(minor, "trace").parts.vbd, connection);
  }

  /** Ends all traces of disks. */
  endTraces(why: string): void {
    this.#traces.endAll(why);
  }

  /** All devices. */
  get all(): Device[] {
    return [...this.#devices.values()];
  }

  /** Whether the process is about to end. */
  get isEnding(): boolean {
    return this.#ending;
  }

  /** All devices, in the order in which they were attached. */
  list(): DeviceSummary[] {
    return Array.from(this.#devices.values(), ({ summary }) => summary);
  }

  /**
   * Closes all images and ends all devices. No device waits for another, because its disk may hang.
   * Errors go to the log. Calls back with the devices that stay, mostly because they are in use.
   *
   * @param preempt Cancels the cancellable commands of a minor, and then runs a job exclusively.
   */
  endAll(
    preempt: (minor: number, job: (finished: () => void) => void) => void,
    done: (remaining: readonly RemainingDevice[]) => void,
  ): void {
    this.#ending = true;
    let running = this.#devices.size;
    if (running === 0) return done([]);
    for (const minor of [...this.#devices.keys()]) {
      preempt(minor, (finished) =>
        this.#end(minor, () => {
          // Commands that still wait for the minor find that it is not there.
          finished();
          if (--running > 0) return;
          this.#ending = this.#devices.size === 0;
          done(Array.from(this.#devices.values(), ({ remaining }) => remaining));
        }));
    }
  }

  #end(minor: number, done: () => void): void {
    const device = this.#devices.get(minor);
    if (device === undefined) return done();
    device.close({ force: false }, (error) => {
      if (error !== null) this.#log.error(error.message);
      if (device.name === "") this.#remove(device);
      done();
    });
  }
}
