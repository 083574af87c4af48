/**
 * `src/frontend/nbd` is the NBD server: one export, on UNIX sockets that clients connect to and on
 * descriptors that other processes hand over, and on TCP ports that the disks of a process share.
 * This file has the sockets of a disk, `listener.ts` accepts clients, `connections.ts` keeps them,
 * `connection.ts` serves one. `handshake.ts` negotiates, `request_reader.ts` receives,
 * `reply_queue.ts` sends. `ports.ts` has the ports of the process, `port.ts` one of them, and
 * `port_client.ts` a client that has not chosen its disk.
 *
 * It must not let a client harm others: a client is bounded in its handshake, its slots and its
 * share of a turn, and a fault in its code ends that client only.
 *
 * @module
 */
import { messageOf } from "../../../ffi/errno.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { Meter } from "../../metrics/meter.ts";
import { SLOTS } from "../../vbd/slots.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { HandoverSocket } from "../handover_socket.ts";
import { ClientsHandover } from "./clients_handover.ts";
import { NbdConnections } from "./connections.ts";
import type { GreetingStyle } from "./handshake.ts";
import { NbdListener } from "./listener.ts";
import type { NbdPorts, ServedExport, ServeRequest } from "./ports.ts";

/** Where the server of a disk is. */
export interface NbdSockets {
  /** Clients connect here. */
  readonly newstyle: string;
  /** Clients that know only the oldstyle handshake connect here. */
  readonly oldstyle?: string;
  /** Other processes hand over descriptors here, on which clients wait for the newstyle handshake. */
  readonly handoverNewstyle?: string;
  /** The same for the oldstyle handshake. */
  readonly handoverOldstyle?: string;
}

/** Serves one device. */
export class NbdServer {
  readonly #connections: NbdConnections;
  readonly #meter: Meter;
  /** What listens. */
  readonly #sockets: { close(): void }[] = [];
  readonly #log: (message: string) => void;
  /** For another process to go on with the clients. */
  readonly handover: ClientsHandover;
  /** Serves the disk over TCP; undefined where the process has no ports. */
  readonly network?: {
    serve(request: ServeRequest): ServeRequest;
    unserve(chosen: { at?: string; name?: string }): number;
    exports(): ServedExport[];
  };

  /**
   * Makes the sockets, and replaces those that exist there. Without the sockets for oldstyle clients
   * and for descriptors the disk is served all the same, and the log says why they are missing.
   *
   * @param log Writes a line to the log.
   * @param ports The TCP ports of the process, for `network`.
   * @throws {SystemError}
   */
  constructor(
    scheduler: Scheduler,
    vbd: Vbd,
    sockets: NbdSockets,
    log: (message: string) => void,
    ports?: NbdPorts,
  ) {
    this.#log = log;
    this.#meter = vbd.meters.open({ of: "nbd", minor: vbd.minor }, SLOTS);
    const connections = new NbdConnections(scheduler, vbd, { log, meter: this.#meter });
    this.#connections = connections;
    this.handover = new ClientsHandover(connections, ports);
    try {
      this.#sockets.push(new NbdListener(this.#connections, sockets.newstyle, "newstyle"));
    } catch (error) {
      this.close();
      throw error;
    }
    const { oldstyle, handoverNewstyle, handoverOldstyle } = sockets;
    this.#add(oldstyle, (path) => new NbdListener(this.#connections, path, "oldstyle"));
    this.#add(handoverNewstyle, (path) => this.#handover(path, "newstyle"));
    this.#add(handoverOldstyle, (path) => this.#handover(path, "oldstyle"));
    if (ports === undefined) return;
    this.network = {
      serve: (request) => ports.serve(connections, request),
      unserve: (chosen) => ports.unserve(connections, chosen),
      exports: () => ports.list(connections),
    };
  }

  #add(path: string | undefined, open: (path: string) => { close(): void }): void {
    if (path === undefined) return;
    try {
      this.#sockets.push(open(path));
    } catch (error) {
      this.#log(`Minor ${this.#connections.vbd.minor} has no socket ${path}: ${messageOf(error)}`);
    }
  }

  #handover(path: string, style: GreetingStyle): HandoverSocket {
    const { scheduler } = this.#connections;
    return new HandoverSocket(scheduler, path, {
      log: this.#log,
      // The text is the caller's name for the connection: a socket has one disk.
      taken: (_text, fd) => this.#connections.addHandedOver(fd, style),
    });
  }

  /** The number of connected clients. */
  get clients(): number {
    return this.#connections.size;
  }

  /** Drops all clients and removes the sockets. */
  close(): void {
    this.network?.unserve({});
    for (const socket of this.#sockets.splice(0)) socket.close();
    this.#meter.hide();
    this.#connections.close();
  }
}
