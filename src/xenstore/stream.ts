import { Errno, SystemError } from "../../ffi/errno.ts";
import { closeFile, O_NONBLOCK, O_RDWR, openFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import { POLLIN, POLLOUT, waitForDescriptor } from "../../ffi/poll.ts";
import { receiveAt, sendAt, unixConnect } from "../../ffi/sockets.ts";
import { readStream, writeStream } from "../../ffi/streams.ts";
import {
  decodeXsMessage,
  encodeXsMessage,
  XENSTORE_PAYLOAD_MAX,
  XS_HEADER_BYTES,
  type XsMessage,
} from "./wire.ts";

/** The socket of xenstored, unless `XENSTORED_PATH` names another one, as for Xen's own programs. */
const XENSTORED_SOCKET = "/run/xenstored/socket";
/** The kernel's way to a xenstored, which may run in another domain. */
const XENBUS_DEVICE = "/dev/xen/xenbus";

/** A message that was not taken; the connection is as it was. */
export class RefusedMessage extends SystemError {}

/** Messages to and from xenstored, in order. */
export interface XenstoreStream {
  /** Is readable when a message has arrived. */
  readonly fd: number;
  /** Sends a message. Throws `SystemError`; `RefusedMessage` when the connection goes on. */
  send(message: XsMessage): void;
  /**
   * The next message.
   *
   * @returns Null when `timeoutMs` passed first.
   * @throws {SystemError}
   */
  receive(timeoutMs: number): XsMessage | null;
  close(): void;
}

/** Room for some messages; there is more when one needs it. */
const INPUT_BYTES = 4 * (XS_HEADER_BYTES + XENSTORE_PAYLOAD_MAX);
/** How long xenstored may take to take a message. */
const SEND_TIMEOUT_MS = 10_000;
/** The name of the peer, for errors. */
const PEER = "xenstored";

type Transfer = (fd: number, address: number, lengthBytes: number) => number;

/** A descriptor that does not block. */
class DescriptorStream implements XenstoreStream {
  #input = new Uint8Array(INPUT_BYTES);
  #inputAddress = addressOf(this.#input);
  #received = 0;

  /** @param isDevice Whether this is the kernel's device, and not a socket. */
  constructor(
    readonly fd: number,
    readonly read: Transfer,
    readonly write: Transfer,
    readonly isDevice: boolean,
  ) {}

  send(message: XsMessage): void {
    const bytes = encodeXsMessage(message);
    const address = addressOf(bytes);
    for (let done = 0; done < bytes.length;) {
      const put = this.write(this.fd, address + done, bytes.length - done);
      if (put > 0) done += put;
      else if (put === -Errno.EAGAIN) this.#waitToSend();
      else if (put !== -Errno.EINTR) this.#fail(put, done);
    }
  }

  /**
   * The kernel tells by a failed write what xenstored thinks of a watch (xenbus_file_write of Linux's
   * xenbus_dev_frontend.c). It has taken the whole message then.
   */
  #fail(put: number, done: number): never {
    const errno = put === 0 ? Errno.EPIPE : -put;
    const isRefused = this.isDevice && done === 0;
    throw new (isRefused ? RefusedMessage : SystemError)(errno, `Cannot send to ${PEER}`);
  }

  #waitToSend(): void {
    if (waitForDescriptor(this.fd, POLLOUT, SEND_TIMEOUT_MS)) return;
    throw new SystemError(Errno.ETIMEDOUT, `Cannot send to ${PEER}`);
  }

  receive(timeoutMs: number): XsMessage | null {
    const untilMs = performance.now() + timeoutMs;
    for (;;) {
      const message = this.#take();
      if (message !== null) return message;
      if (!this.#fill() && !waitForDescriptor(this.fd, POLLIN, untilMs - performance.now())) {
        return null;
      }
    }
  }

  #take(): XsMessage | null {
    const taken = decodeXsMessage(this.#input.subarray(0, this.#received));
    if (taken === null) return null;
    this.#input.copyWithin(0, taken.lengthBytes, this.#received);
    this.#received -= taken.lengthBytes;
    return taken.message;
  }

  /** Receives what is there; false when there is nothing. */
  #fill(): boolean {
    if (this.#received === this.#input.length) this.#grow();
    const room = this.#input.length - this.#received;
    const got = this.read(this.fd, this.#inputAddress + this.#received, room);
    if (got > 0) {
      this.#received += got;
      return true;
    }
    if (got === -Errno.EAGAIN || got === -Errno.EINTR) return false;
    const why = got === 0 ? `Cannot receive from ${PEER} (it closed the connection)` : null;
    throw new SystemError(got === 0 ? Errno.EPIPE : -got, why ?? `Cannot receive from ${PEER}`);
  }

  /** A message is longer than the buffer. `decodeXsMessage` has a limit. */
  #grow(): void {
    const input = new Uint8Array(2 * this.#input.length);
    input.set(this.#input);
    this.#input = input;
    this.#inputAddress = addressOf(input);
  }

  close(): void {
    closeFile(this.fd);
  }
}

/**
 * Connects to xenstored: by its socket, or else by the kernel's device.
 *
 * @throws {SystemError} Neither way works.
 */
export function openXenstoreStream(): XenstoreStream {
  const chosen = Deno.env.get("XENSTORED_PATH") ?? "";
  const path = chosen === "" ? XENSTORED_SOCKET : chosen;
  try {
    return new DescriptorStream(unixConnect(path, SEND_TIMEOUT_MS), receiveAt, sendAt, false);
  } catch (error) {
    if (!(error instanceof SystemError) || chosen !== "") throw error;
    return openDevice(error);
  }
}

function openDevice(socketError: SystemError): XenstoreStream {
  try {
    const fd = openFile(XENBUS_DEVICE, O_RDWR | O_NONBLOCK);
    return new DescriptorStream(fd, readStream, writeStream, true);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    const hint = "start xenstored, or name its socket in XENSTORED_PATH";
    const message = `${socketError.message}, and ${error.message}; ${hint}`;
    throw new SystemError(error.errno, "Cannot connect to xenstored", { message });
  }
}
