import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { ServerTls, TlsMode } from "../../tls/tls.ts";
import type { PortPlace } from "./connection_host.ts";
import type { NbdConnections } from "./connections.ts";
import { listenText } from "./listen_text.ts";
import { clientsOf, NbdPort, type PortExport } from "./port.ts";

/** The most exports of a disk over TCP. */
const MOST_EXPORTS = 64;

/** How a disk is served over TCP. */
export interface ServeRequest {
  /** Addresses of this machine in numbers; none for all of them. */
  readonly addresses: readonly string[];
  /** The port; 0 for one that the kernel chooses. */
  readonly port: number;
  /** The export's name. */
  readonly name: string;
  readonly tls: ServerTls;
  /** The most clients, in all and from one address. */
  readonly maxClients: number;
  readonly maxClientsPerAddress: number;
}

/** Where a disk is served over TCP, and to how many clients; the names are those of the statistics. */
export interface ServedExport {
  listen: string;
  name: string;
  tls: TlsMode;
  verify_peer: boolean;
  clients: number;
  max_clients: number;
  max_clients_per_address: number;
  /** Clients that were turned away because there were too many. */
  turned_away: number;
}

/** Whether what was asked for is among the exports that are chosen; all are without a choice. */
export function isChosen(
  { addresses, port, name }: ServeRequest,
  chosen: { at?: string; name?: string },
): boolean {
  return (chosen.at === undefined || chosen.at === listenText(addresses, port)) &&
    (chosen.name === undefined || chosen.name === name);
}

function sameTls(a: ServerTls, b: ServerTls): boolean {
  return a.mode === b.mode && a.certificates === b.certificates && a.psk === b.psk &&
    a.verifyPeer === b.verifyPeer;
}

/** The TCP ports of this process, which its disks share. */
export class NbdPorts {
  readonly #scheduler: Scheduler;
  readonly #log: (message: string) => void;
  /** By addresses and port. */
  readonly #ports = new Map<string, NbdPort>();

  /** @param log Writes a line to the log, which limits the number of similar ones. */
  constructor(scheduler: Scheduler, log: (message: string) => void) {
    this.#scheduler = scheduler;
    this.#log = log;
  }

  /**
   * Serves a disk.
   *
   * @returns The request, with the port that the kernel chose.
   * @throws {SystemError} EADDRINUSE, EEXIST for a name that is taken, EINVAL when the port is served
   * with other settings of TLS, and what opening TLS throws.
   */
  serve(connections: NbdConnections, request: ServeRequest): ServeRequest {
    const { name, tls, maxClients, maxClientsPerAddress } = request;
    const wanted = listenText(request.addresses, request.port);
    if (this.#of(connections).length >= MOST_EXPORTS) {
      const what = `Cannot serve ${JSON.stringify(name)} on ${wanted}`;
      throw new SystemError(Errno.EMFILE, `${what} (a disk has at most ${MOST_EXPORTS} exports)`);
    }
    const known = this.#ports.get(wanted);
    if (known !== undefined && !sameTls(known.settings, tls)) {
      const what = `Cannot serve ${JSON.stringify(name)} on ${wanted}`;
      throw new SystemError(Errno.EINVAL, `${what} (the port is served with other TLS settings)`);
    }
    const port = known ?? new NbdPort(this.#scheduler, request, this.#log);
    const clients = new Map<string, number>();
    port.add({ name, connections, maxClients, maxClientsPerAddress, clients, turnedAway: 0 });
    this.#ports.set(port.at, port);
    return { ...request, port: port.port };
  }

  /** The exports of a disk, with the port of each. */
  #of(connections: NbdConnections): [at: string, port: NbdPort, served: PortExport][] {
    return [...this.#ports].flatMap(([at, port]) =>
      [...port.exports.values()]
        .filter((served) => served.connections === connections)
        .map((served): [string, NbdPort, PortExport] => [at, port, served])
    );
  }

  /**
   * Ends exports of a disk. Clients that have connected stay; a port without an export is closed.
   *
   * @param chosen Which; all without.
   * @returns How many there were.
   */
  unserve(connections: NbdConnections, chosen: { at?: string; name?: string } = {}): number {
    const ending = this.#of(connections).filter(([at, _port, { name }]) =>
      (chosen.at === undefined || chosen.at === at) &&
      (chosen.name === undefined || chosen.name === name)
    );
    for (const [at, port, served] of ending) {
      port.remove(served);
      if (port.exports.size > 0) continue;
      port.close();
      this.#ports.delete(at);
    }
    return ending.length;
  }

  /** How many clients are in the handshake. */
  get greeting(): number {
    return this.#ports.values().reduce((sum, { greeting }) => sum + greeting, 0);
  }

  /** Closes the connections of clients in the handshake. */
  dropGreetings(why: string): void {
    for (const port of this.#ports.values()) port.dropGreetings(why);
  }

  /**
   * Counts a client of another process that uses a disk and has entered there; returns what to call when
   * it has gone. Two ports may have the same number, on other addresses.
   */
  countResumed(connections: NbdConnections, place: PortPlace): () => void {
    const port = this.#ports.values().find((each) =>
      each.port === place.port && (place.at === undefined || place.at === each.at) &&
      each.exports.get(place.name)?.connections === connections
    );
    return port?.countResumed(place) ?? (() => {});
  }

  /** Where a disk is served. */
  list(connections: NbdConnections): ServedExport[] {
    return this.#of(connections).map(([at, { settings }, served]) => ({
      listen: at,
      name: served.name,
      tls: settings.mode,
      verify_peer: settings.verifyPeer,
      clients: clientsOf(served),
      max_clients: served.maxClients,
      max_clients_per_address: served.maxClientsPerAddress,
      turned_away: served.turnedAway,
    }));
  }
}
