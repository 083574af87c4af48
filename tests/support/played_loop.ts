/**
 * A loop with real descriptors and a simulated clock. Handlers are called by `poll`, so that a test
 * decides when a time-out passes.
 *
 * @module
 */
import { EPOLLHUP, EPOLLIN, EPOLLOUT } from "../../ffi/epoll.ts";
import { closeFile } from "../../ffi/files.ts";
import { Arena } from "../../ffi/memory.ts";
import { waitForDescriptor } from "../../ffi/poll.ts";
import { receiveAt, sendAt } from "../../ffi/sockets.ts";
import type { FaultOwner } from "../../src/scheduler/faults.ts";
import { type FdHandler, type TurnWork, TurnWorks } from "../../src/scheduler/scheduler.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";

interface Watched {
  events: number;
  readonly handler: FdHandler;
  readonly owner: FaultOwner | undefined;
}

/** The events that have happened to a descriptor. */
function eventsOf(fd: number, wanted: number): number {
  const hungUp = waitForDescriptor(fd, 0, 0) ? EPOLLHUP : 0;
  const inOrOut = [EPOLLIN, EPOLLOUT].filter((event) =>
    (wanted & event) !== 0 && waitForDescriptor(fd, event, 0)
  );
  return inOrOut.reduce((all, event) => all | event, hungUp);
}

/** The loop. Its clock advances by `turn` only. */
export class PlayedLoop extends SimulatedScheduler {
  readonly #watched = new Map<number, Watched>();
  readonly #works = new TurnWorks();

  override watch(fd: number, events: number, handler: FdHandler, owner?: FaultOwner): void {
    this.#watched.set(fd, { events, handler, owner });
  }

  override rewatch(fd: number, events: number): void {
    const watched = this.#watched.get(fd);
    if (watched === undefined) throw new TypeError(`Descriptor ${fd} is not watched`);
    watched.events = events;
  }

  override unwatch(fd: number): void {
    this.#watched.delete(fd);
  }

  override addTurnWork(work: TurnWork, owner?: FaultOwner): void {
    this.#works.add(work, owner);
  }

  override removeTurnWork(work: TurnWork): void {
    this.#works.remove(work);
  }

  /** Calls the handlers of descriptors that are ready, and the work at the end of the turn. */
  poll(): void {
    for (const [fd, { events, handler, owner }] of [...this.#watched]) {
      if (!this.#watched.has(fd)) continue;
      const happened = eventsOf(fd, events);
      if (happened === 0) continue;
      try {
        handler.ready(happened);
      } catch (error) {
        this.contain(error, owner);
      }
    }
    this.#works.finish(this);
  }

  /** Whether a descriptor is watched. */
  isWatched(fd: number): boolean {
    return this.#watched.has(fd);
  }
}

/** The other end of a socket, which is never waited for. */
export class SocketEnd {
  readonly #arena = new Arena(2 << 20);

  constructor(readonly fd: number) {}

  /** Sends bytes, which the socket must have room for. */
  send(...parts: readonly Uint8Array[]): void {
    for (const part of parts) {
      this.#arena.bytes.set(part);
      const sent = sendAt(this.fd, this.#arena.address, part.length);
      if (sent !== part.length) throw new Error(`${sent} of ${part.length} bytes were sent`);
    }
  }

  /** The bytes that have come; null when the other side has hung up. */
  receive(): Uint8Array | null {
    const got = receiveAt(this.fd, this.#arena.address, this.#arena.sizeBytes);
    return got === 0 ? null : this.#arena.bytes.slice(0, Math.max(0, got));
  }

  close(): void {
    closeFile(this.fd);
    this.#arena.release();
  }
}
