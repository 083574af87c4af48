import { closeFile } from "../../../ffi/files.ts";
import { KernelTlsStream } from "../../../ffi/kernel_tls.ts";
import type { HandedOverClient } from "./connection_host.ts";
import type { NbdConnections } from "./connections.ts";
import type { NbdPorts } from "./ports.ts";
import type { UsersHandover } from "../users_handover.ts";

/** The clients of an NBD server, as far as another process can go on with them. */
export class ClientsHandover implements UsersHandover {
  readonly #connections: NbdConnections;
  readonly #ports: NbdPorts | undefined;

  constructor(connections: NbdConnections, ports: NbdPorts | undefined) {
    this.#connections = connections;
    this.#ports = ports;
  }

  /** Why another process cannot go on with them; null when it can. */
  get whyStaying(): string | null {
    return this.#connections.whyStaying;
  }

  get needs(): string | null {
    return this.#connections.haveTls ? "tls" : null;
  }

  /** Takes no more requests, from the ends of those that are being received; or takes them again. */
  hold(isHeld: boolean): void {
    this.#connections.hold(isHeld);
  }

  /** Whether all are held, and none owes or is owed anything. */
  get areQuiet(): boolean {
    return this.#connections.areQuiet && (this.#ports?.greeting ?? 0) === 0;
  }

  /** Closes the connections to TCP ports that are in the handshake. They have no disk yet. */
  dropGreetings(): void {
    this.#ports?.dropGreetings("another process takes over, and it did not finish the handshake");
  }

  /** Closes all connections. */
  drop(why: string): void {
    this.#connections.hangUpAll(why);
  }

  /** The clients, which must be quiet. */
  handOver(): HandedOverClient[] {
    return this.#connections.handOver();
  }

  /**
   * Serves a client of another process.
   *
   * @param client Its descriptor belongs to this from now on.
   * @throws {SystemError}
   */
  resume({ fd, state, rest, isTls }: HandedOverClient): void {
    let left = (): void => {};
    try {
      const { place } = state;
      if (place !== undefined) left = this.#ports?.countResumed(this.#connections, place) ?? left;
    } catch (error) {
      closeFile(fd);
      throw error;
    }
    const tls = isTls ? new KernelTlsStream(fd) : null;
    this.#connections.resume(fd, { state, rest, tls, left });
  }
}
