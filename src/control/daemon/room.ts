import { Errno, SystemError } from "../../../ffi/errno.ts";
import { freeMemoryBytes } from "../../../ffi/memory.ts";
import { descriptorsLeft } from "../../../ffi/process.ts";
import type { Log } from "../../log/log.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import { FRONTEND_BYTES, SLOT_BYTES, SLOTS } from "../../vbd/slots.ts";

/** How long a place is kept for the caller of `spawn`, who attaches a minor in the meantime. */
const KEPT_MS = 60_000;

/** Descriptors that a disk may come to need: its sockets, its files and some clients. */
const DISK_DESCRIPTORS = 64;
/** Address space that a disk may come to need: its requests, and as much again for caches. */
const DISK_BYTES = 2 * (SLOTS * SLOT_BYTES + FRONTEND_BYTES);

/** What is left of what all disks of a process share. */
export interface Resources {
  readonly descriptors: number;
  readonly memoryBytes: number;
}

function resourcesLeft(): Resources {
  return { descriptors: descriptorsLeft(), memoryBytes: freeMemoryBytes() };
}

/** What the room needs of its process. */
export interface RoomHost {
  readonly scheduler: Scheduler;
  readonly log: Log;
  /** The most disks. */
  readonly disks: number;
  /** How long the process lives on without a disk. */
  readonly idleMs: number;
  /** How many minors are attached. */
  attached(): number;
  /** Called when the process has had no disk for `idleMs`, and keeps no place. */
  idle(): void;
  /** By default what this process has. */
  readonly left?: () => Resources;
}

/**
 * The room of a process that serves disks of many callers. A caller of `spawn` gets a place in it, which
 * is kept for a while: another caller does not take it, and the process does not end meanwhile.
 */
export class Room {
  readonly #host: RoomHost;
  /** The timers of the places that are kept, the oldest first. */
  readonly #kept: number[] = [];
  #idleTimer = 0;

  /** One place is kept from the beginning, for the caller who started the process. */
  constructor(host: RoomHost) {
    this.#host = host;
    this.#keep();
  }

  /** How many callers have a place and have not attached a minor yet. */
  get kept(): number {
    return this.#kept.length;
  }

  /** Keeps a place. Throws `SystemError`: ENOSPC, EMFILE, ENOMEM; another process must do. */
  reserve(): void {
    const { disks, attached, left = resourcesLeft } = this.#host;
    const { length: kept } = this.#kept;
    const what = `Cannot take another disk (${attached()} are attached, ${kept} more expected`;
    if (attached() + kept >= disks) throw new SystemError(Errno.ENOSPC, `${what}, ${disks} fit)`);
    const { descriptors, memoryBytes } = left();
    if (descriptors < (kept + 1) * DISK_DESCRIPTORS) {
      throw new SystemError(Errno.EMFILE, `${what}, ${descriptors} descriptors are left)`);
    }
    if (memoryBytes < (kept + 1) * DISK_BYTES) {
      throw new SystemError(Errno.ENOMEM, `${what}, ${memoryBytes} bytes of I/O memory are left)`);
    }
    this.#keep();
  }

  #keep(): void {
    const { scheduler, log } = this.#host;
    const timer = scheduler.addTimer(KEPT_MS, () => {
      this.#kept.splice(this.#kept.indexOf(timer), 1);
      log.warn(`No minor was attached within ${KEPT_MS / 1000} s after 'tap-ctl spawn'`);
      this.left();
    });
    this.#kept.push(timer);
    this.#stayed();
  }

  /** A minor was attached: the oldest place that is kept was for it. */
  taken(): void {
    const timer = this.#kept.shift();
    if (timer !== undefined) this.#host.scheduler.cancelTimer(timer);
    this.#stayed();
  }

  #stayed(): void {
    this.#host.scheduler.cancelTimer(this.#idleTimer);
    this.#idleTimer = 0;
  }

  /** A minor was detached, or a place was given up. */
  left(): void {
    const { scheduler, idleMs, attached, idle } = this.#host;
    this.#stayed();
    if (attached() > 0 || this.#kept.length > 0) return;
    this.#idleTimer = scheduler.addTimer(idleMs, () => idle());
  }
}
