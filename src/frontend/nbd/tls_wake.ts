import { EPOLLIN } from "../../../ffi/epoll.ts";
import type { SecureStream } from "../../../ffi/secure_stream.ts";
import type { ConnectionHost, ServedConnection } from "./connection_host.ts";

/**
 * Continues a connection with TLS in the next turn when OpenSSL has received more than the connection
 * took: the socket does not show that data any more.
 */
export class TlsWake {
  readonly #tls: SecureStream | null;
  readonly #host: ConnectionHost;
  #isDue = false;

  /** @param tls The TLS of the connection; null without. */
  constructor(tls: SecureStream | null, host: ConnectionHost) {
    this.#tls = tls;
    this.#host = host;
  }

  /** Looks for such data, if the connection waits for the socket at all. */
  look(connection: ServedConnection, watched: number): void {
    if (this.#tls === null || this.#isDue) return;
    if ((watched & EPOLLIN) === 0 || !this.#tls.hasPending) return;
    this.#isDue = true;
    this.#host.makeDueNextTurn(connection);
  }

  /** Whether the turn that begins is to receive. */
  take(watched: number): boolean {
    const isDue = this.#isDue && (watched & EPOLLIN) !== 0;
    this.#isDue = false;
    return isDue;
  }
}
