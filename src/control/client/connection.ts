import { Errno, errnoMessage, errnoName, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { addressOf } from "../../../ffi/libc.ts";
import { POLLIN, POLLOUT, waitForDescriptor } from "../../../ffi/poll.ts";
import type { Secret } from "../../../ffi/secret.ts";
import { receiveSeldom, sendSeldom, unixConnect } from "../../../ffi/sockets.ts";
import { decodeResponse } from "../protocol/answers.ts";
import { MESSAGE_BYTES, messageName, MessageType, messageType } from "../protocol/message.ts";
import { controlSocketPath, requireOwnFolder } from "../paths.ts";

/** A tapdisk's refusal, with the tapdisk's own message if it sent one. */
export class TapdiskError extends SystemError {
  override readonly name = "TapdiskError";

  constructor(errno: number, message: string) {
    super(errno, message, { message });
  }
}

/** Linux has no error number beyond this one (EHWPOISON). */
const LARGEST_ERRNO = 133;

/** Called with each message that is sent or received, for `--debug`. */
export type Tracer = (direction: "sending" | "received", message: Uint8Array) => void;

let tracer: Tracer | undefined;

/** Sets the tracer of all connections of this process. */
export function traceMessages(by: Tracer): void {
  tracer = by;
}

/** The error for a tapdisk that did not answer in time. */
export function noAnswer(pid: number): SystemError {
  return new SystemError(Errno.ETIMEDOUT, `Cannot get an answer from tapdisk ${pid}`);
}

/** A blocking control connection to one tapdisk, with one time limit for the whole exchange. */
export class Connection {
  readonly #pid: number;
  readonly #fd: number;
  readonly #untilMs: number;

  /** Connects. `timeoutMs` is Infinity for no limit. Throws `SystemError`: ENOENT for no tapdisk. */
  constructor(pid: number, timeoutMs: number) {
    this.#pid = pid;
    this.#untilMs = performance.now() + timeoutMs;
    try {
      requireOwnFolder();
      this.#fd = unixConnect(controlSocketPath(pid), timeoutMs);
    } catch (error) {
      if (!(error instanceof SystemError) || error.errno !== Errno.EAGAIN) throw error;
      throw noAnswer(pid);
    }
  }

  #wait(events: number): void {
    if (waitForDescriptor(this.#fd, events, this.#untilMs - performance.now())) return;
    throw noAnswer(this.#pid);
  }

  /** Sends a whole request. Throws `SystemError`. */
  send(request: Uint8Array<ArrayBuffer>): void {
    if (request.length >= MESSAGE_BYTES) traceMessage("sending", request);
    this.#sendFrom(addressOf(request), request.length);
  }

  /** Sends a key from where it is. Throws `SystemError`. */
  sendKey(key: Secret): void {
    this.#sendFrom(key.address, key.bytes.length);
  }

  #sendFrom(address: number, lengthBytes: number): void {
    for (let done = 0; done < lengthBytes;) {
      this.#wait(POLLOUT);
      const put = sendSeldom(this.#fd, address + done, lengthBytes - done);
      if (put >= 0) done += put;
      else if (put !== -Errno.EAGAIN && put !== -Errno.EINTR) {
        throw new SystemError(-put, `Cannot send to tapdisk ${this.#pid}`);
      }
    }
  }

  /** Receives exactly `lengthBytes` bytes. Throws `SystemError` (EPROTO when they end early). */
  receive(lengthBytes: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(lengthBytes);
    for (let done = 0; done < lengthBytes;) {
      this.#wait(POLLIN);
      const got = receiveSeldom(this.#fd, addressOf(bytes) + done, lengthBytes - done);
      if (got > 0) done += got;
      else if (got === 0) {
        const what = `Cannot get an answer from tapdisk ${this.#pid} (it closed the connection)`;
        throw new SystemError(Errno.EPROTO, what);
      } else if (got !== -Errno.EAGAIN && got !== -Errno.EINTR) {
        throw new SystemError(-got, `Cannot get an answer from tapdisk ${this.#pid}`);
      }
    }
    return bytes;
  }

  /**
   * Receives one message, which must be of the type that is expected. Throws `TapdiskError` when
   * it is an error, `SystemError` (EPROTO) when it is anything else.
   *
   * @param what What was asked for, as the start of an error's message: `Cannot …`.
   */
  expect(type: number, what: string): Uint8Array<ArrayBuffer> {
    const message = this.receive(MESSAGE_BYTES);
    traceMessage("received", message);
    checkAnswer(message, { pid: this.#pid, type, what });
    return message;
  }

  /** Waits for the beginning of an answer. Throws `SystemError` (ETIMEDOUT). */
  requireInput(withinMs: number): void {
    if (!this.hasInput(withinMs)) throw noAnswer(this.#pid);
  }

  /** Whether something has come, or comes within so many milliseconds. Throws `SystemError`. */
  hasInput(withinMs: number): boolean {
    return waitForDescriptor(this.#fd, POLLIN, withinMs);
  }

  /**
   * Receives what is there, into a part of a buffer.
   *
   * @returns Bytes; 0 when there are none now, -1 at the end of the connection.
   */
  receiveSome(buffer: Uint8Array<ArrayBuffer>, at: number, lengthBytes: number): number {
    const got = receiveSeldom(this.#fd, addressOf(buffer) + at, lengthBytes);
    if (got > 0) return got;
    return got === -Errno.EAGAIN || got === -Errno.EINTR ? 0 : -1;
  }

  /** Closes the connection. */
  close(): void {
    closeFile(this.#fd);
  }
}

/**
 * Makes sure that a message is of the type that is expected. Throws as `Connection.expect` does.
 */
export function checkAnswer(
  message: Uint8Array,
  { pid, type, what }: { pid: number; type: number; what: string },
): void {
  const got = messageType(message);
  if (got === type) return;
  if (got !== MessageType.ERROR) {
    throw brokenAnswer(what, `tapdisk ${pid} answered '${messageName(got)}'`);
  }
  const response = decodeResponse(message);
  const errno = Math.abs(response.error);
  // It becomes an exit status, of which 0 is success and which has eight bits.
  if (errno === 0 || errno > LARGEST_ERRNO) {
    throw brokenAnswer(what, `tapdisk ${pid} answered with error ${response.error}`);
  }
  const reason = response.message || `${what}: ${errnoMessage(errno)} (${errnoName(errno)})`;
  throw new TapdiskError(errno, reason);
}

/** The error for an answer that breaks the protocol. */
export function brokenAnswer(what: string, why: string): SystemError {
  return new SystemError(Errno.EPROTO, `${what} (${why})`);
}

/** Hands a message to the tracer, if there is one. */
export function traceMessage(...traced: Parameters<Tracer>): void {
  tracer?.(...traced);
}

/** Calls `work` with a connection of its own to a tapdisk. Throws `SystemError`, `TapdiskError`. */
export function withConnection<Result>(
  pid: number,
  timeoutMs: number,
  work: (connection: Connection) => Result,
): Result {
  const connection = new Connection(pid, timeoutMs);
  try {
    return work(connection);
  } finally {
    connection.close();
  }
}
