import { EPOLLIN, EPOLLOUT } from "../../../../ffi/epoll.ts";
import { waitForDescriptor } from "../../../../ffi/poll.ts";
import type { FdHandler } from "../../../../src/scheduler/scheduler.ts";
import type { FaultOwner } from "../../../../src/scheduler/faults.ts";
import { SimulatedScheduler } from "../../../../src/testing/simulated_scheduler.ts";

interface Watched {
  events: number;
  readonly handler: FdHandler;
  readonly owner: FaultOwner | undefined;
}

/**
 * A simulated clock with real sockets, whose other ends are in this thread. The clock stands still
 * while bytes are under way, so that minutes of a server that says nothing take microseconds.
 */
export class SocketScheduler extends SimulatedScheduler {
  readonly #watched = new Map<number, Watched>();

  /** How many descriptors are watched. */
  get size(): number {
    return this.#watched.size;
  }

  override watch(fd: number, events: number, handler: FdHandler, owner?: FaultOwner): void {
    if (this.#watched.has(fd)) throw new TypeError(`Descriptor ${fd} is watched already`);
    this.#watched.set(fd, { events, handler, owner });
  }

  override rewatch(fd: number, events: number): void {
    const watched = this.#watched.get(fd);
    if (watched === undefined) throw new TypeError(`Descriptor ${fd} is not watched`);
    watched.events = events;
  }

  override unwatch(fd: number): void {
    if (!this.#watched.delete(fd)) throw new TypeError(`Descriptor ${fd} is not watched`);
  }

  override settle<T>(
    promise: Promise<T>,
    callback: (value: T) => void,
    owner?: FaultOwner,
  ): void {
    void promise.then((value) => void this.addTimer(0, () => callback(value), owner));
  }

  /** Calls the handlers of ready sockets, and does the work of the turn; false when none is ready. */
  poll(): boolean {
    let any = false;
    for (const [fd, { handler, owner }] of [...this.#watched]) {
      const events = this.#watched.get(fd)?.events ?? 0;
      const ready = [EPOLLIN, EPOLLOUT].filter((event) =>
        (events & event) !== 0 && waitForDescriptor(fd, event, 0)
      );
      if (ready.length === 0) continue;
      any = true;
      try {
        handler.ready(ready.reduce((all, event) => all | event, 0));
      } catch (error) {
        this.contain(error, owner);
      }
    }
    this.stand();
    return any;
  }

  /** Calls the handler of a descriptor that is none of the kernel's, if it waits for these events. */
  wake(fd: number, events: number): void {
    const watched = this.#watched.get(fd);
    if (watched === undefined || (watched.events & events) === 0) return;
    try {
      watched.handler.ready(events);
    } catch (error) {
      this.contain(error, watched.owner);
    }
    this.stand();
  }

  /** A turn in which the clock stands still. */
  stand(): void {
    this.addTimer(0, () => {});
    this.turn();
  }
}
