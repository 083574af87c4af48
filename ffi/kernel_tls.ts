/**
 * A connection whose TLS another process has begun, and that the kernel encrypts and decrypts both ways: the
 * keys are in the socket (linux/tls.h), and OpenSSL is not used. Data is received and sent as without TLS.
 *
 * Other records are taken one by one, and their type comes with them. After the handshake a client sends:
 * - alerts (RFC 5246, 7.2; RFC 8446, 6): close_notify ends the stream, a warning of TLS 1.2 is passed over, and
 *   any other ends the connection;
 * - messages of the handshake: KeyUpdate of TLS 1.3, after which the kernel cannot decrypt any more, and
 *   ClientHello of TLS 1.2, by which a client wants a new handshake. Both end the connection.
 * NewSessionTicket and HelloRequest are for servers to send, and break the protocol here.
 *
 * @module
 */
import { Errno } from "./errno.ts";
import type { SecureStream } from "./secure_stream.ts";
import { receiveMessage, sendMessage } from "./sockets.ts";
import { receiveRecord, sendRecord } from "./tls_records.ts";

/** Types of records (RFC 8446, 5.1). */
const ALERT = 21;
const HANDSHAKE = 22;

const WARNING = 1;
const CLOSE_NOTIFY = 0;
const CLIENT_HELLO = 1;
const KEY_UPDATE = 24;

/** The most records that are passed over in one receive; others have their turn then. */
const MOST_STEPS = 32;
/** The state of a connection that goes on. */
const FINE = 1;

/** The end of a connection that the kernel encrypts; see above. Its user closes the socket after it. */
export class KernelTlsStream implements SecureStream {
  readonly #fd: number;
  why = "";
  readonly hasUnsent = false;
  /** `FINE`, 0 after the end of the stream, or -errno. */
  #state = FINE;
  #closed = false;

  constructor(fd: number) {
    this.#fd = fd;
  }

  get hasPending(): boolean {
    return this.#state !== FINE && !this.#closed;
  }

  get isInKernel(): boolean {
    return this.#state === FINE;
  }

  receive(msghdr: Deno.PointerObject): number {
    if (this.#state !== FINE) return this.#state;
    const got = receiveMessage(this.#fd, msghdr);
    return got === -Errno.EIO ? this.#receiveOther(msghdr) : got;
  }

  /** The next record is none of data. */
  #receiveOther(msghdr: Deno.PointerObject): number {
    for (let i = 0; i < MOST_STEPS; i++) {
      const record = receiveRecord(this.#fd);
      if (typeof record === "number") return record;
      const state = this.#take(record);
      if (state !== FINE) return this.#state = state;
      const got = receiveMessage(this.#fd, msghdr);
      if (got !== -Errno.EIO) return got;
    }
    return this.#fail("the peer sends too many records without data");
  }

  #take({ type, bytes: [first, second] }: { type: number; bytes: Uint8Array }): number {
    if (type === ALERT) return this.#alert(first, second);
    if (type !== HANDSHAKE) return this.#fail(`the peer sends a record of type ${type}`);
    if (first === KEY_UPDATE) {
      return this.#fail("the peer changes its keys, which the kernel cannot follow");
    }
    if (first === CLIENT_HELLO) return this.#fail("the peer wants another handshake");
    return this.#fail(`the peer sends message ${first} of a handshake that has ended`);
  }

  #alert(level: number, description: number): number {
    if (description === CLOSE_NOTIFY) return 0;
    return level === WARNING ? FINE : this.#fail(`the peer sends alert ${description}`);
  }

  #fail(why: string): number {
    this.why = why;
    return this.#state = -Errno.EPROTO;
  }

  send(msghdr: Deno.PointerObject): number {
    return sendMessage(this.#fd, msghdr);
  }

  flush(): number {
    return 0;
  }

  close(): void {
    if (this.#closed) return;
    if (this.#state >= 0) sendRecord(this.#fd, ALERT, Uint8Array.of(WARNING, CLOSE_NOTIFY));
    this.#closed = true;
    this.#state = -Errno.ENOTCONN;
  }
}
