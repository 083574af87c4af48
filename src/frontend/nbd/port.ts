import { EPOLLIN } from "../../../ffi/epoll.ts";
import { addressPort, siteText, tcpAddress } from "../../../ffi/addresses.ts";
import { Errno, errnoName, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { boundAddress } from "../../../ffi/sockets.ts";
import type { TlsContext } from "../../../ffi/tls_context.ts";
import { describeFault, type FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import { RenewedContext } from "../../tls/renewed_context.ts";
import type { ServerTls } from "../../tls/tls.ts";
import { acceptTcpHere, listenTcp, stopListeningTcp } from "../listening.ts";
import { clientMemoryOf } from "./client_memory.ts";
import type { PortPlace } from "./connection_host.ts";
import type { NbdConnections } from "./connections.ts";
import type { Handshake, HandshakeServer } from "./handshake.ts";
import { listenText } from "./listen_text.ts";
import { greet, PortClient, type PortClientHost } from "./port_client.ts";

/** The most clients of a port in the handshake, and those from one address. */
const MOST_GREETINGS = 128;
const MOST_GREETINGS_OF_ADDRESS = 32;
/** How long a client has for its handshake when others wait. */
const GREETING_MS = 1000;
/** The most steps of handshakes of TLS in one turn: each may take milliseconds. */
const MOST_SECURED = 4;
/** The most clients that are accepted in one turn, and the length of the listener's queue. */
const MOST_ACCEPTED = 16;
const BACKLOG = 128;
const ACCEPT_AGAIN_MS = 50;
const SOCKADDR_BYTES = 128;
/** All addresses of this machine, of both families. */
const EVERYWHERE = "::";

/** A disk on a port. */
export interface PortExport {
  readonly name: string;
  readonly connections: NbdConnections;
  readonly maxClients: number;
  readonly maxClientsPerAddress: number;
  /** Its clients by address. */
  readonly clients: Map<string, number>;
  /** How many clients were turned away because there were too many. */
  turnedAway: number;
}

/** How many clients an export has. */
export function clientsOf({ clients }: PortExport): number {
  let count = 0;
  for (const ofAddress of clients.values()) count += ofAddress;
  return count;
}

/**
 * A TCP port on which disks of this process are served, each by its name. It listens on one or more
 * addresses of the machine.
 */
export class NbdPort implements PortClientHost {
  readonly scheduler: Scheduler;
  readonly #tls: RenewedContext | null;
  readonly settings: ServerTls;
  readonly exports = new Map<string, PortExport>();
  /** The port; chosen by the kernel when 0 was asked for. */
  readonly port: number;
  /** The addresses and the port, as they are written. */
  readonly at: string;
  readonly #log: (message: string) => void;
  readonly #listeners: Listener[] = [];
  /** Clients in the handshake, the oldest first, and the exports that they enter. */
  readonly #greeting = new Set<PortClient>();
  readonly #entering = new Map<PortClient, { into: PortExport; memory: number }>();
  /** Steps of TLS in a turn of the loop. */
  #securingTurn = -1;
  #secured = 0;
  #closed = false;

  /**
   * Listens.
   *
   * @param addresses Addresses in numbers; none for all of the machine.
   * @throws {SystemError} EADDRINUSE; what `serverContext` throws.
   */
  constructor(
    scheduler: Scheduler,
    { addresses, port, tls }: {
      addresses: readonly string[];
      port: number;
      tls: ServerTls;
    },
    log: (message: string) => void,
  ) {
    this.scheduler = scheduler;
    this.settings = tls;
    this.#log = log;
    this.#tls = tls.mode === "off" ? null : new RenewedContext(tls, (what) => this.note(what));
    try {
      this.port = this.#listen(addresses, port);
      this.at = listenText(addresses, this.port);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Listens on all addresses; returns the port. */
  #listen(addresses: readonly string[], wanted: number): number {
    if (addresses.length === 0) return this.#listenEverywhere(wanted);
    let port = wanted;
    const failures: SystemError[] = [];
    for (const address of addresses) {
      try {
        port = this.#listenOn(address, port, false);
      } catch (error) {
        // A name may have an address of a family that the machine does not use.
        if (!isMissing(error)) throw error;
        failures.push(error);
      }
    }
    if (failures.length === addresses.length) throw failures[0];
    return port;
  }

  /** A machine may have no IPv6. */
  #listenEverywhere(port: number): number {
    try {
      return this.#listenOn(EVERYWHERE, port, true);
    } catch (error) {
      if (!isMissing(error)) throw error;
      return this.#listenOn("0.0.0.0", port, false);
    }
  }

  #listenOn(address: string, port: number, isDual: boolean): number {
    const title = address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
    const fd = listenTcp(tcpAddress(address, port), title, { backlog: BACKLOG, isDual });
    this.#listeners.push(new Listener(fd, this.scheduler, this));
    return addressPort(boundAddress(fd));
  }

  /** Logs an event of a client. */
  note(what: string): void {
    this.#log(`Port ${this.port}: ${what}`);
  }

  /**
   * Takes a client that has connected.
   *
   * @param from What it is counted by.
   */
  accepted(fd: number, from: string): void {
    if (!this.#makeRoom(from)) {
      closeFile(fd);
      return this.note(`turned away an NBD client from ${from}: too many are in the handshake`);
    }
    const client = greet(fd, from, this);
    if (typeof client === "string") this.note(`a client cannot be served: ${client}`);
    else if (!client.failed) this.#greeting.add(client);
  }

  /** Whether there is room for a client in the handshake; one that is slow has to make room. */
  #makeRoom(from: string): boolean {
    const ofAddress = [...this.#greeting].filter((client) => client.from === from);
    const isFull = this.#greeting.size >= MOST_GREETINGS;
    if (!isFull && ofAddress.length < MOST_GREETINGS_OF_ADDRESS) return true;
    const [oldest] = isFull ? this.#greeting : ofAddress;
    if (this.scheduler.nowMs() - oldest.sinceMs < GREETING_MS) return false;
    oldest.end("it had not finished the handshake when others wanted to connect");
    return true;
  }

  get tls(): TlsContext | null {
    return this.#tls?.current() ?? null;
  }

  maySecure(): boolean {
    const [turn] = this.scheduler.turns;
    if (turn !== this.#securingTurn) this.#secured = 0;
    this.#securingTurn = turn;
    return this.#secured++ < MOST_SECURED;
  }

  serverFor(client: PortClient): HandshakeServer {
    return {
      names: () => [...this.exports.keys()],
      find: (name) => this.#find(name)?.connections.describe() ?? null,
      enter: (name) => this.#enter(client, name),
      tls: this.settings.mode,
    };
  }

  /** The export of a name. No name is that of the only export. */
  #find(name: string): PortExport | null {
    const found = this.exports.get(name);
    if (found !== undefined || name !== "" || this.exports.size !== 1) return found ?? null;
    return [...this.exports.values()][0];
  }

  #enter(client: PortClient, name: string): string | null {
    const into = this.#find(name);
    if (into === null) return "there is no export of this name";
    const ofAddress = into.clients.get(client.from) ?? 0;
    const isFull = clientsOf(into) >= into.maxClients;
    const memory = isFull || ofAddress >= into.maxClientsPerAddress
      ? -1
      : clientMemoryOf(into.connections.vbd.requests).take();
    if (memory < 0) {
      into.turnedAway++;
      const why = isFull || ofAddress < into.maxClientsPerAddress
        ? "the export has too many clients"
        : "the export has too many clients of this address";
      this.note(`turned away an NBD client from ${client.from}: ${why}`);
      return why;
    }
    into.clients.set(client.from, ofAddress + 1);
    this.#entering.set(client, { into, memory });
    return null;
  }

  entered(client: PortClient, handshake: Handshake, rest: Uint8Array): void {
    this.#greeting.delete(client);
    const seat = this.#entering.get(client);
    if (seat === undefined) throw new RangeError("A client enters without a place");
    this.#entering.delete(client);
    const { into, memory } = seat;
    const left = (): void => leave(into, client.from);
    const place = { at: this.at, port: this.port, name: into.name, from: client.from };
    const entered = { handshake, rest, tls: client.tls, place, left };
    into.connections.add(client.fd, memory, { style: "newstyle", handedOver: false, entered });
  }

  gone(client: PortClient, why: string): void {
    this.#greeting.delete(client);
    const place = this.#entering.get(client);
    this.#entering.delete(client);
    if (place !== undefined) {
      const { into, memory } = place;
      clientMemoryOf(into.connections.vbd.requests).give(memory);
      leave(into, client.from);
    }
    if (why !== "") this.note(`hung up on an NBD client from ${client.from}: ${why}`);
  }

  /** How many clients are in the handshake. */
  get greeting(): number {
    return this.#greeting.size;
  }

  /** Closes the connections of clients in the handshake. */
  dropGreetings(why: string): void {
    for (const client of [...this.#greeting]) client.end(why);
  }

  /** Counts a client of another process that has entered there; returns what to call when it has gone. */
  countResumed({ name, from }: PortPlace): () => void {
    const into = this.exports.get(name);
    if (into === undefined) return () => {};
    into.clients.set(from, (into.clients.get(from) ?? 0) + 1);
    return () => leave(into, from);
  }

  /** Adds a disk. Throws `SystemError`: EEXIST for a name that is taken. */
  add(added: PortExport): void {
    if (this.exports.has(added.name)) {
      const what = `Cannot serve an export named ${JSON.stringify(added.name)} on this port`;
      throw new SystemError(Errno.EEXIST, `${what} (there is one of this name already)`);
    }
    this.exports.set(added.name, added);
  }

  /** Removes a disk. Clients that are about to enter it are dropped; those that have entered stay. */
  remove(removed: PortExport): void {
    this.exports.delete(removed.name);
    for (const [client, { into }] of [...this.#entering]) {
      if (into === removed) client.end("its disk is served no more");
    }
  }

  /** Stops listening and drops the clients in the handshake. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const listener of this.#listeners) listener.close();
    this.dropGreetings("");
    this.#tls?.close();
  }
}

/** Whether an error says that the machine has no such address. */
function isMissing(error: unknown): error is SystemError {
  return error instanceof SystemError &&
    (error.errno === Errno.EADDRNOTAVAIL || error.errno === Errno.EAFNOSUPPORT);
}

function leave({ clients }: PortExport, from: string): void {
  const left = (clients.get(from) ?? 1) - 1;
  if (left === 0) clients.delete(from);
  else clients.set(from, left);
}

/** A socket of a port. */
class Listener implements FdHandler, FaultOwner {
  readonly failed = false;
  readonly #fd: number;
  readonly #scheduler: Scheduler;
  readonly #port: NbdPort;
  readonly #from = new Uint8Array(SOCKADDR_BYTES);
  #acceptTimer = 0;

  /** Throws `SystemError`; the descriptor is closed then. */
  constructor(fd: number, scheduler: Scheduler, port: NbdPort) {
    this.#fd = fd;
    this.#scheduler = scheduler;
    this.#port = port;
    try {
      scheduler.watch(fd, EPOLLIN, this, this);
    } catch (error) {
      stopListeningTcp(fd);
      throw error;
    }
  }

  fault(error: unknown): void {
    this.#port.note(`a client that connected was not served: ${describeFault(error)}`);
    this.#acceptLater();
  }

  ready(_events: number): void {
    for (let i = 0; i < MOST_ACCEPTED; i++) {
      const fd = acceptTcpHere(this.#fd, this.#from);
      if (fd === -Errno.EAGAIN) return;
      if (fd === -Errno.ECONNABORTED || fd === -Errno.EINTR) continue;
      if (fd < 0) {
        this.#port.note(`NBD clients wait to be accepted (${errnoName(-fd)})`);
        return this.#acceptLater();
      }
      this.#port.accepted(fd, siteText(this.#from));
    }
  }

  /** Stops accepting for a moment. */
  #acceptLater(): void {
    this.#scheduler.rewatch(this.#fd, 0);
    const again = (): void => this.#scheduler.rewatch(this.#fd, EPOLLIN);
    this.#scheduler.cancelTimer(this.#acceptTimer);
    this.#acceptTimer = this.#scheduler.addTimer(ACCEPT_AGAIN_MS, again, this);
  }

  close(): void {
    this.#scheduler.cancelTimer(this.#acceptTimer);
    this.#scheduler.unwatch(this.#fd);
    stopListeningTcp(this.#fd);
  }
}
