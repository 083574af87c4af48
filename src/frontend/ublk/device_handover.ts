import { assert } from "../../../ffi/assert.ts";
import type { UringLoop } from "../../queue/uring_loop.ts";
import type { HandedOverClient } from "../nbd/connection_host.ts";
import type { UsersHandover } from "../users_handover.ts";
import type { UblkQueue } from "./queue.ts";

/** What a handover needs of its device. */
export interface HandedDevice {
  readonly node: string;
  readonly uring: UringLoop;
  /** Empty while another process serves the device, and when it is removed. */
  readonly queues: readonly UblkQueue[];
  /** Whether it is of another process, which hands it over. */
  readonly isAwaited: boolean;
  /** That process serves no more, and is about to end: takes the device over. */
  takeOver(): void;
}

/**
 * The users of a ublk device, for another process to go on with them. Nothing of the device is handed over: the
 * kernel gives it to another process once this one has ended. Until then this one can go on with it.
 */
export class UblkHandover implements UsersHandover {
  readonly #device: HandedDevice;

  constructor(device: HandedDevice) {
    this.#device = device;
  }

  get whyStaying(): string | null {
    const { node, queues, isAwaited } = this.#device;
    if (isAwaited) return `the end of the process that served ${node} is awaited; try again later`;
    if (queues.length === 0) return `${node} is being removed`;
    const isFull = queues.some(({ isQuiet, canLetGo }) => isQuiet && !canLetGo);
    return isFull ? `${node} got as many requests at once as it takes; try again` : null;
  }

  get needs(): string {
    return "ublk";
  }

  hold(isHeld: boolean): void {
    if (!isHeld && this.#device.isAwaited) return this.#device.takeOver();
    for (const queue of this.#device.queues) queue.hold(isHeld);
  }

  get areQuiet(): boolean {
    return this.#device.queues.every(({ isQuiet }) => isQuiet);
  }

  dropGreetings(): void {}

  /** The kernel sends again what had no answer: users notice nothing. */
  drop(): void {}

  handOver(): HandedOverClient[] {
    return [];
  }

  resume(): void {
    assert(false, "A ublk device has no clients with descriptors");
  }

  /**
   * Requests that come stay in the kernel. If they were taken, and were as many as a queue takes, the kernel
   * would have no command of that queue when this process ends, and would notice the end after 30 s.
   */
  leave(): void {
    this.#device.uring.leave();
  }

  /**
   * Gives the answers that are kept. Requests that come from here on are held back in the kernel, so that it
   * has a command of each queue when this process ends: by that it notices the end at once.
   */
  letGo(): void {
    const { queues, uring } = this.#device;
    for (const queue of queues) queue.letGo();
    uring.submitLast();
  }
}
