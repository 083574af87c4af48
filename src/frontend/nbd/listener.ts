import { EPOLLIN } from "../../../ffi/epoll.ts";
import { Errno, errnoName } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { waitForDescriptor } from "../../../ffi/poll.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { acceptHere, listenAt, stopListening } from "../listening.ts";
import { clientMemoryOf, MOST_CLIENTS } from "./client_memory.ts";
import type { ClientKind } from "./connection_host.ts";
import type { NbdConnections } from "./connections.ts";
import type { GreetingStyle } from "./handshake.ts";

/** Time until the next try after a client could not be accepted. */
const ACCEPT_AGAIN_MS = 50;
/** The most clients that are accepted in one turn. */
const MOST_ACCEPTED = 16;
/** Length of the listener's queue. */
const BACKLOG = 1024;

/** A socket to which clients of one device connect. */
export class NbdListener implements FdHandler, FaultOwner {
  readonly failed = false;
  readonly #scheduler: Scheduler;
  readonly #vbd: Vbd;
  readonly #socketPath: string;
  readonly #fd: number;
  readonly #connections: NbdConnections;
  readonly #kind: ClientKind;
  #acceptTimer = 0;

  /**
   * Listens on `socketPath`, and replaces a socket that exists there.
   *
   * @param connections Takes the clients; it may have other sockets.
   * @param style How they are greeted.
   * @throws {SystemError}
   */
  constructor(connections: NbdConnections, socketPath: string, style: GreetingStyle) {
    const { scheduler, vbd } = connections;
    this.#scheduler = scheduler;
    this.#vbd = vbd;
    this.#connections = connections;
    this.#kind = { style, handedOver: false };
    this.#socketPath = socketPath;
    this.#fd = listenAt(socketPath, BACKLOG);
    try {
      scheduler.watch(this.#fd, EPOLLIN, this, this);
    } catch (error) {
      this.#leaveSocket();
      throw error;
    }
  }

  /** Accepting a client failed by a fault: stops accepting for a moment. */
  fault(error: unknown): void {
    this.#vbd.noteFault("a client that connected", error);
    this.#stopAccepting(Errno.EIO);
  }

  /** Accepts waiting clients. */
  ready(_events: number): void {
    for (let i = 0; i < MOST_ACCEPTED; i++) if (!this.#accept()) return;
  }

  /** Accepts the next client; false when there is none, or it cannot be accepted now. */
  #accept(): boolean {
    const memories = clientMemoryOf(this.#vbd.requests);
    const memory = memories.take();
    if (memory < 0) return this.#acceptTooMany();
    const fd = acceptHere(this.#fd);
    if (fd >= 0) {
      this.#connections.add(fd, memory, this.#kind);
      return true;
    }
    memories.give(memory);
    // Without a free descriptor (EMFILE) the client stays in the queue, and the socket readable.
    if (fd !== -Errno.EAGAIN) this.#stopAccepting(-fd);
    return false;
  }

  /**
   * There are as many clients as a disk serves. One that has not finished its handshake makes room,
   * at the end of the turn; without such a one the next client is turned away.
   */
  #acceptTooMany(): boolean {
    if (!waitForDescriptor(this.#fd, EPOLLIN, 0)) return false;
    const connections = this.#connections;
    if (connections.size < MOST_CLIENTS / 2) {
      // Memory is missing because requests of clients that left are still in flight.
      this.#stopAccepting(Errno.EUSERS);
      return false;
    }
    if (connections.dropOldestGreeting()) return false;
    const fd = acceptHere(this.#fd);
    if (fd < 0) return false;
    connections.note(`hung up on an NBD client: the disk has ${MOST_CLIENTS} already`);
    closeFile(fd);
    return true;
  }

  /** Stops accepting for a moment. */
  #stopAccepting(errno: number): void {
    this.#connections.note(`NBD clients wait to be accepted (${errnoName(errno)})`);
    this.#scheduler.rewatch(this.#fd, 0);
    this.#acceptTimer = this.#scheduler.addTimer(ACCEPT_AGAIN_MS, () => {
      this.#scheduler.rewatch(this.#fd, EPOLLIN);
    });
  }

  /** Removes the socket. Its clients stay. */
  close(): void {
    this.#scheduler.cancelTimer(this.#acceptTimer);
    this.#scheduler.unwatch(this.#fd);
    this.#leaveSocket();
  }

  #leaveSocket(): void {
    stopListening(this.#socketPath, this.#fd);
  }
}
