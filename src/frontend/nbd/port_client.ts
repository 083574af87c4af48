import { EPOLLIN, EPOLLOUT } from "../../../ffi/epoll.ts";
import { Errno, errnoName, messageOf } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { addressOf } from "../../../ffi/libc.ts";
import { receiveAt, sendAt } from "../../../ffi/sockets.ts";
import type { TlsContext } from "../../../ffi/tls_context.ts";
import { TlsStream } from "../../../ffi/tls_stream.ts";
import { describeFault, type FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import { HANDSHAKE_MS } from "./connections.ts";
import { Handshake, type HandshakeServer } from "./handshake.ts";

/** The longest option with its header, and some bytes behind the last one. */
const INPUT_BYTES = 16 * 1024;
/** The most bytes of answers that a client may leave unread. */
const MOST_UNREAD_BYTES = 64 * 1024;
/** The most receives of one turn. */
const MOST_RECEIVES = 16;

/** What a client of a port needs of it. */
export interface PortClientHost {
  readonly scheduler: Scheduler;
  /** TLS for a client that asks for it now; null without. */
  readonly tls: TlsContext | null;
  /** The server, as this client sees it. `enter` notes the export of the client. */
  serverFor(client: PortClient): HandshakeServer;
  /** Whether another step of a handshake of TLS may be done in this turn. */
  maySecure(): boolean;
  /** The handshake has ended: the export's connections take the client over. */
  entered(client: PortClient, handshake: Handshake, rest: Uint8Array): void;
  /** The client has ended before that. */
  gone(client: PortClient, why: string): void;
}

/** A client of a port, until its handshake has ended. A fault in this code ends the client only. */
export class PortClient implements FdHandler, FaultOwner {
  readonly fd: number;
  /** Where it comes from, such as `192.0.2.1`; of IPv6 the network that a site has. */
  readonly from: string;
  /** When it connected, milliseconds of the loop. */
  readonly sinceMs: number;
  tls: TlsStream | null = null;
  readonly #host: PortClientHost;
  readonly #handshake: Handshake;
  readonly #input = new Uint8Array(INPUT_BYTES);
  #received = 0;
  #output: Uint8Array[] = [];
  #unread = 0;
  /** Whether the handshake of TLS goes on. */
  #isSecuring = false;
  #watched = EPOLLIN;
  #ended = false;
  readonly #timer: number;

  /** Greets a client. Throws `SystemError` when the loop cannot watch the descriptor. */
  constructor(fd: number, from: string, host: PortClientHost) {
    this.fd = fd;
    this.from = from;
    this.sinceMs = host.scheduler.nowMs();
    this.#host = host;
    this.#handshake = new Handshake(host.serverFor(this), (bytes) => this.#queue(bytes));
    host.scheduler.watch(fd, EPOLLIN, this, this);
    const seconds = HANDSHAKE_MS / 1000;
    const late = (): void => this.end(`it did not finish the handshake in ${seconds} s`);
    this.#timer = host.scheduler.addTimer(HANDSHAKE_MS, late, this);
    try {
      this.#handshake.start();
      this.#advance();
    } catch (error) {
      // The loop knows the descriptor by now, so that only `end` may close it.
      this.fault(error);
    }
  }

  get failed(): boolean {
    return this.#ended;
  }

  fault(error: unknown): void {
    this.end(`a fault: ${describeFault(error)}`);
  }

  #queue(bytes: Uint8Array): void {
    this.#output.push(bytes);
    this.#unread += bytes.length;
    if (this.#unread > MOST_UNREAD_BYTES) this.end("it does not read the answers");
  }

  ready(_events: number): void {
    if (this.#isSecuring) this.#secure();
    if (!this.#isSecuring) this.#advance();
  }

  /** Goes on as far as it can without waiting. */
  #advance(): void {
    for (let i = 0; i < MOST_RECEIVES && !this.#ended; i++) {
      this.#consume();
      if (this.#ended || !this.#send()) return;
      const { stage } = this.#handshake;
      if (stage === "closed") return this.end("");
      if (stage === "tls") return this.#startTls();
      if (stage === "transmission") return this.#enter();
      if (!this.#receive()) return;
    }
    // What OpenSSL has received, the socket does not show.
    if (!this.#ended && this.tls?.hasPending) {
      this.#host.scheduler.addTimer(0, () => this.#ended || this.#advance(), this);
    }
  }

  #consume(): void {
    if (this.#received === 0) return;
    const taken = this.#handshake.consume(new DataView(this.#input.buffer, 0, this.#received));
    this.#input.copyWithin(0, taken, this.#received);
    this.#received -= taken;
  }

  /** Receives once; false when there is nothing. */
  #receive(): boolean {
    const room = INPUT_BYTES - this.#received;
    const { tls } = this;
    const got = tls === null
      ? receiveAt(this.fd, addressOf(this.#input) + this.#received, room)
      : tls.receiveBytes(this.#input.subarray(this.#received));
    if (got > 0) this.#received += got;
    else if (got !== -Errno.EAGAIN && got !== -Errno.EINTR) this.#lost(got);
    this.#watch(EPOLLIN);
    return got > 0;
  }

  #lost(result: number): void {
    const why = this.tls?.why ?? "";
    if (why !== "") this.end(`TLS failed: ${why}`);
    else this.end(result === 0 ? "" : `the connection broke (${errnoName(-result)})`);
  }

  /** Sends the answers; false while they wait for room in the socket, or when it broke. */
  #send(): boolean {
    while (this.#output.length > 0) {
      const bytes = Uint8Array.from(this.#output[0]);
      const sent = this.tls === null
        ? sendAt(this.fd, addressOf(bytes), bytes.length)
        : this.tls.sendBytes(bytes);
      if (sent < 0) return this.#waitToSend(sent);
      this.#unread -= sent;
      if (sent < bytes.length) this.#output[0] = bytes.slice(sent);
      else this.#output.shift();
    }
    const left = this.tls?.flush() ?? 0;
    return left < 0 ? this.#waitToSend(left) : true;
  }

  #waitToSend(result: number): false {
    if (result === -Errno.EAGAIN || result === -Errno.EINTR) this.#watch(EPOLLOUT);
    else this.#lost(result);
    return false;
  }

  #watch(events: number): void {
    if (this.#ended || events === this.#watched) return;
    this.#watched = events;
    this.#host.scheduler.rewatch(this.fd, events);
  }

  /** Begins TLS. Bytes that came before it are another's, or those of a client that does not wait. */
  #startTls(): void {
    const { tls } = this.#host;
    if (this.#received > 0 || tls === null) return this.end("it sent data ahead of TLS");
    this.tls = new TlsStream(this.fd, tls);
    this.#isSecuring = true;
    this.#secure();
  }

  #secure(): void {
    const { tls } = this;
    // What is left in the socket calls again in the next turn.
    if (tls === null || !this.#host.maySecure()) return;
    const result = tls.handshake();
    if (result === -Errno.EAGAIN) return this.#watch(tls.wantsToSend ? EPOLLOUT : EPOLLIN);
    if (result < 0) return this.#lost(result);
    this.#isSecuring = false;
    this.#handshake.secured();
    this.#watch(EPOLLIN);
    this.#advance();
  }

  #enter(): void {
    const rest = this.#input.slice(0, this.#received);
    this.#leaveLoop();
    this.#host.entered(this, this.#handshake, rest);
  }

  #leaveLoop(): void {
    this.#ended = true;
    this.#host.scheduler.cancelTimer(this.#timer);
    this.#host.scheduler.unwatch(this.fd);
  }

  /** Hangs up. */
  end(why: string): void {
    if (this.#ended) return;
    this.#leaveLoop();
    try {
      this.tls?.close();
    } finally {
      closeFile(this.fd);
    }
    this.#host.gone(this, why);
  }
}

/** Greets a client; when that fails, closes the descriptor and returns why. */
export function greet(fd: number, from: string, host: PortClientHost): PortClient | string {
  try {
    return new PortClient(fd, from, host);
  } catch (error) {
    closeFile(fd);
    return messageOf(error);
  }
}
