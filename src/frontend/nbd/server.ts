/**
 * Frontends: how requests come in. They turn a protocol's requests into a device's slots and back;
 * they know nothing of images.
 *
 * This one is an NBD server on a UNIX socket, any number of clients to one export.
 *
 * @module
 */
import { EPOLLIN } from "../../../ffi/epoll.ts";
import { Errno, errnoName } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { waitForDescriptor } from "../../../ffi/poll.ts";
import { acceptConnection, unixListen } from "../../../ffi/sockets.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { clientMemoryOf, MOST_CLIENTS } from "./client_memory.ts";
import { NbdConnections } from "./connections.ts";

/** How long a client waits that could not be accepted, before it is tried again. */
const ACCEPT_AGAIN_MS = 50;
/** Clients that are accepted in one turn. */
const MOST_ACCEPTED = 16;
/** Clients that may wait to be accepted. */
const BACKLOG = 1024;

/** Serves one device on one socket. */
export class NbdServer implements FdHandler, FaultOwner {
  readonly failed = false;
  readonly #scheduler: Scheduler;
  readonly #vbd: Vbd;
  readonly #socketPath: string;
  readonly #fd: number;
  readonly #connections: NbdConnections;
  #acceptTimer = 0;

  /**
   * Listens on `socketPath`; what a dead process left there is replaced.
   *
   * @param log Writes a line to the log.
   * @throws {SystemError}
   */
  constructor(
    scheduler: Scheduler,
    vbd: Vbd,
    socketPath: string,
    log: (message: string) => void,
  ) {
    this.#scheduler = scheduler;
    this.#vbd = vbd;
    this.#socketPath = socketPath;
    removeSocket(socketPath);
    this.#fd = unixListen(socketPath, BACKLOG);
    this.#connections = new NbdConnections(scheduler, vbd, { log });
    try {
      scheduler.watch(this.#fd, EPOLLIN, this, this);
    } catch (error) {
      this.#leaveSocket();
      throw error;
    }
  }

  /** A client could not be served: those that want to connect wait for a moment. */
  fault(error: unknown): void {
    this.#vbd.noteFault("a client that connected", error);
    this.#stopAccepting(Errno.EIO);
  }

  /** How many clients are connected. */
  get clients(): number {
    return this.#connections.size;
  }

  /** Clients want to connect. */
  ready(_events: number): void {
    for (let i = 0; i < MOST_ACCEPTED; i++) if (!this.#accept()) return;
  }

  /** Takes the next client; false when there is none, or none can be taken just now. */
  #accept(): boolean {
    const memories = clientMemoryOf(this.#vbd.requests);
    const memory = memories.take();
    if (memory < 0) return this.#acceptTooMany();
    const fd = acceptConnection(this.#fd);
    if (fd >= 0) {
      this.#connections.add(fd, memory, { negotiated: false });
      return true;
    }
    memories.give(memory);
    // Without a free descriptor (EMFILE) the client stays in line, and the loop is not to spin.
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
      // Others have left, and their last requests are under way still.
      this.#stopAccepting(Errno.EUSERS);
      return false;
    }
    if (connections.dropOldestGreeting()) return false;
    const fd = acceptConnection(this.#fd);
    if (fd < 0) return false;
    connections.note(`hung up on an NBD client: the disk has ${MOST_CLIENTS} already`);
    closeFile(fd);
    return true;
  }

  /** Leaves those who want to connect waiting for a moment. */
  #stopAccepting(errno: number): void {
    this.#connections.note(`NBD clients wait to be accepted (${errnoName(errno)})`);
    this.#scheduler.rewatch(this.#fd, 0);
    this.#acceptTimer = this.#scheduler.addTimer(ACCEPT_AGAIN_MS, () => {
      this.#scheduler.rewatch(this.#fd, EPOLLIN);
    });
  }

  /** Drops all clients and takes the socket away. */
  close(): void {
    this.#scheduler.cancelTimer(this.#acceptTimer);
    this.#scheduler.unwatch(this.#fd);
    this.#leaveSocket();
  }

  #leaveSocket(): void {
    closeFile(this.#fd);
    removeSocket(this.#socketPath);
    this.#connections.close();
  }
}

function removeSocket(path: string): void {
  try {
    if (Deno.lstatSync(path).isSocket) Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
