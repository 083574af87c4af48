import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT } from "../../../ffi/epoll.ts";
import { Errno } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { addressOf } from "../../../ffi/libc.ts";
import { Secret } from "../../../ffi/secret.ts";
import { receiveAt, sendAt } from "../../../ffi/sockets.ts";
import type { Log } from "../../log/log.ts";
import { describeFault, type FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import { MESSAGE_BYTES } from "../protocol/message.ts";
import { MOST_SERVE_BYTES } from "../protocol/serve.ts";
import { MOST_UPGRADE_BYTES } from "../protocol/upgrade.ts";
import { keyLength, LONGEST_REQUEST_BYTES, requestLength } from "../protocol/params.ts";

/** How long a peer may take to send its request, or to receive the answer. */
const PEER_TIMEOUT_MS = 10_000;

/** The longest request that there is. */
const MOST_INPUT_BYTES = Math.max(
  LONGEST_REQUEST_BYTES,
  MESSAGE_BYTES + MOST_SERVE_BYTES,
  MESSAGE_BYTES + MOST_UPGRADE_BYTES,
);

/**
 * Takes a request. The key that came behind it is in memory for keys; whoever takes the request
 * releases it.
 */
export type RequestTaker = (
  connection: ControlConnection,
  request: Uint8Array<ArrayBuffer>,
  key: Secret | null,
) => void;

/** One connection to the control socket: it receives a request, and then sends the answer. */
export class ControlConnection implements FdHandler, FaultOwner {
  readonly fd: number;
  readonly #scheduler: Scheduler;
  readonly #requested: RequestTaker;
  readonly #closed: (connection: ControlConnection) => void;
  readonly #log: Log;
  readonly #input = new Uint8Array(MOST_INPUT_BYTES);
  #received = 0;
  /** The key behind the request, once its length is known. */
  #key: Secret | null = null;
  #keyReceived = 0;
  #output: Uint8Array<ArrayBuffer> | undefined;
  #sent = 0;
  #waitsForRoom = false;
  #timer = 0;
  /** Whether its command runs, or waits for others. */
  #running = false;
  open = true;
  /** Called when the peer hangs up while its command runs. */
  hungUp: (() => void) | undefined;

  constructor(
    fd: number,
    { scheduler, log, requested, closed }: {
      scheduler: Scheduler;
      log: Log;
      requested: RequestTaker;
      closed: (connection: ControlConnection) => void;
    },
  ) {
    this.fd = fd;
    this.#scheduler = scheduler;
    this.#requested = requested;
    this.#closed = closed;
    this.#log = log;
    scheduler.watch(fd, EPOLLIN, this, this);
    this.#timer = scheduler.addTimer(PEER_TIMEOUT_MS, () => this.close(), this);
  }

  get failed(): boolean {
    return !this.open;
  }

  fault(error: unknown): void {
    this.#log.error(`A control connection was ended by a fault: ${describeFault(error)}`);
    this.close();
  }

  ready(events: number): void {
    if (this.#running) {
      if ((events & (EPOLLHUP | EPOLLERR)) === 0) return;
      this.close();
      this.hungUp?.();
    } else if (this.#output === undefined) this.#receive();
    else this.#send(this.#output);
  }

  #receive(): void {
    if (this.#key !== null) return this.#receiveKey(this.#key);
    const address = addressOf(this.#input) + this.#received;
    const got = this.#receiveInto(address, this.#missing);
    if (got === 0) return;
    this.#received += got;
    if (this.#missing === 0) this.#begun();
  }

  /** All but the key is there. */
  #begun(): void {
    const keyBytes = keyLength(this.#input.subarray(0, this.#received));
    if (keyBytes !== null) this.#key = new Secret(keyBytes);
    if (keyBytes === null || keyBytes === 0) this.#whole();
  }

  /** The bytes that the request still needs, as far as those that have arrived tell. */
  get #missing(): number {
    return requestLength(this.#input.subarray(0, this.#received)) - this.#received;
  }

  /** The kernel puts the key where it stays: no other memory gets a copy. */
  #receiveKey(key: Secret): void {
    const wanted = key.bytes.length - this.#keyReceived;
    this.#keyReceived += this.#receiveInto(key.address + this.#keyReceived, wanted);
    if (this.open && this.#keyReceived === key.bytes.length) this.#whole();
  }

  /** Receives bytes; returns 0 when there are none now, or the connection ends. */
  #receiveInto(address: number, wantedBytes: number): number {
    const got = receiveAt(this.fd, address, wantedBytes);
    if (got > 0) return got;
    if (got !== -Errno.EAGAIN && got !== -Errno.EINTR) this.close();
    return 0;
  }

  /** All of the request is there. */
  #whole(): void {
    this.#running = true;
    this.#scheduler.cancelTimer(this.#timer);
    this.#scheduler.rewatch(this.fd, 0);
    const key = this.#key;
    this.#key = null;
    this.#requested(this, this.#input.slice(0, this.#received), key);
  }

  /** Sends the answer and closes the connection. */
  answer(reply: Uint8Array<ArrayBuffer>): void {
    if (!this.open || this.#output !== undefined) return;
    this.#running = false;
    this.#output = reply;
    this.#send(reply);
  }

  #send(reply: Uint8Array<ArrayBuffer>): void {
    while (this.#sent < reply.length) {
      const put = sendAt(this.fd, addressOf(reply) + this.#sent, reply.length - this.#sent);
      if (put > 0) this.#sent += put;
      else if (put === -Errno.EAGAIN) return this.#waitForRoom();
      else if (put !== -Errno.EINTR) break;
    }
    this.close();
  }

  #waitForRoom(): void {
    if (this.#waitsForRoom) return;
    this.#waitsForRoom = true;
    this.#scheduler.rewatch(this.fd, EPOLLOUT);
    this.#timer = this.#scheduler.addTimer(PEER_TIMEOUT_MS, () => this.close(), this);
  }

  /**
   * What has arrived of a request whose command does not run, for another process to go on with; null
   * when an answer is being sent, or a key has come, which stays in this process.
   */
  get unanswered(): Uint8Array<ArrayBuffer> | null {
    const request = this.#input.slice(0, this.#received);
    const isWhole = request.length > 0 && this.#missing === 0;
    const hasKey = isWhole && keyLength(request) !== null;
    return this.open && this.#output === undefined && !hasKey ? request : null;
  }

  /** Goes on with a request of which another process has received the beginning. */
  resume(begun: Uint8Array): void {
    this.#input.set(begun.subarray(0, this.#input.length));
    this.#received = Math.min(begun.length, this.#input.length);
    if (this.#received > 0 && this.#missing === 0) this.#begun();
  }

  /** Gives the connection up to the caller, who owns the descriptor from then on. */
  release(): number {
    this.open = false;
    this.#scheduler.cancelTimer(this.#timer);
    this.#scheduler.unwatch(this.fd);
    this.#closed(this);
    return this.fd;
  }

  close(): void {
    if (!this.open) return;
    this.open = false;
    this.#key?.release();
    this.#key = null;
    this.#scheduler.cancelTimer(this.#timer);
    this.#scheduler.unwatch(this.fd);
    closeFile(this.fd);
    this.#closed(this);
  }

  /** Whether an answer is outstanding: the command runs, or the answer is being sent. */
  get awaitsAnswer(): boolean {
    return this.open && (this.#running || this.#output !== undefined);
  }
}
