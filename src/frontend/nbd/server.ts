/**
 * Frontends: how requests come in. They turn a protocol's requests into a device's slots and back;
 * they know nothing of images.
 *
 * This one is an NBD server on a UNIX socket, any number of clients to one export.
 *
 * @module
 */
import { EPOLLIN } from "../../../ffi/epoll.ts";
import { Errno } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { acceptConnection, unixListen } from "../../../ffi/sockets.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { NbdConnections } from "./connections.ts";

/** How long a client waits that could not be accepted, before it is tried again. */
const ACCEPT_AGAIN_MS = 50;

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
   * @throws {SystemError}
   */
  constructor(scheduler: Scheduler, vbd: Vbd, socketPath: string) {
    this.#scheduler = scheduler;
    this.#vbd = vbd;
    this.#socketPath = socketPath;
    removeSocket(socketPath);
    this.#fd = unixListen(socketPath);
    this.#connections = new NbdConnections(scheduler, vbd);
    scheduler.watch(this.#fd, EPOLLIN, this, this);
  }

  /** A client could not be served: those that want to connect wait for a moment. */
  fault(error: unknown): void {
    this.#vbd.noteFault("a client that connected", error);
    this.#stopAccepting();
  }

  /** How many clients are connected. */
  get clients(): number {
    return this.#connections.size;
  }

  /** A client wants to connect. */
  ready(_events: number): void {
    const memory = this.#vbd.requests.takeClientMemory();
    // More clients than a device serves: the next waits until one of the others goes.
    if (memory < 0) return this.#stopAccepting();
    const fd = acceptConnection(this.#fd);
    if (fd >= 0) return this.#connections.add(fd, memory, { negotiated: false });
    this.#vbd.requests.giveClientMemory(memory);
    // Without a free descriptor (EMFILE) the client stays in line, and the loop is not to spin.
    if (fd !== -Errno.EAGAIN) this.#stopAccepting();
  }

  /** Leaves those who want to connect waiting for a moment. */
  #stopAccepting(): void {
    this.#scheduler.rewatch(this.#fd, 0);
    this.#acceptTimer = this.#scheduler.addTimer(ACCEPT_AGAIN_MS, () => {
      this.#scheduler.rewatch(this.#fd, EPOLLIN);
    });
  }

  /** Drops all clients and takes the socket away. */
  close(): void {
    this.#scheduler.cancelTimer(this.#acceptTimer);
    this.#scheduler.unwatch(this.#fd);
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
