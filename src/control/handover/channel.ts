/**
 * `src/control/handover`: a tapdisk that takes over the disks of another one, while their users go on:
 * what the two tell each other, and the steps on both sides. It must not move a disk's data.
 *
 * This file has the channel between them: a UNIX socket that carries frames of JSON with descriptors.
 *
 * @module
 */
import {
  type HandedMessage,
  MOST_OF_A_MESSAGE,
  receiveDescriptors,
  sendDescriptors,
} from "../../../ffi/descriptors.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { POLLIN, POLLOUT, waitForDescriptor } from "../../../ffi/poll.ts";

/** What came at once. */
export interface Frame {
  readonly value: unknown;
  /** The receiver owns them. */
  readonly descriptors: readonly number[];
}

// A frame: u32 length of the text @0, u32 number of descriptors @4, the text.
const HEAD_BYTES = 8;
/** The longest text: what a client has sent has at most 128 KiB, and a third more in base 64. */
const LONGEST_TEXT_BYTES = 1 << 20;
const RECEIVE_BYTES = 64 * 1024;

/** The most descriptors of a frame. */
export const MOST_DESCRIPTORS = MOST_OF_A_MESSAGE;

/** One end of a channel. It owns the descriptor, and those that were received and not taken. */
export class HandoverChannel {
  readonly fd: number;
  #bytes = new Uint8Array(0);
  #descriptors: number[] = [];
  #ended = false;

  readonly #mostDescriptors: number;

  /** @param mostDescriptors How many descriptors a frame may bring. */
  constructor(fd: number, mostDescriptors = MOST_DESCRIPTORS) {
    this.fd = fd;
    this.#mostDescriptors = mostDescriptors;
  }

  /**
   * Sends a frame. Waits while the socket is full.
   *
   * @param untilMs When to give up, on the clock of `performance.now()`.
   * @throws {SystemError} ETIMEDOUT; EPIPE when the other process has gone.
   */
  send(value: unknown, descriptors: readonly number[], untilMs: number): void {
    const text = new TextEncoder().encode(JSON.stringify(value));
    const frame = new Uint8Array(HEAD_BYTES + text.length);
    const head = new DataView(frame.buffer);
    head.setUint32(0, text.length, true);
    head.setUint32(4, descriptors.length, true);
    frame.set(text, HEAD_BYTES);
    for (let sent = 0; sent < frame.length;) {
      // The descriptors go with the first byte.
      const put = sendDescriptors(this.fd, frame.subarray(sent), sent === 0 ? descriptors : []);
      if (put > 0) sent += put;
      else if (put === -Errno.EAGAIN) this.#wait(POLLOUT, untilMs);
      else if (put !== -Errno.EINTR) {
        throw new SystemError(-put, "Cannot send to the other tapdisk");
      }
    }
  }

  /** Receives a frame, and waits for it. Throws `SystemError`: ETIMEDOUT; EPIPE at the end. */
  receive(untilMs: number): Frame {
    for (;;) {
      const frame = this.take();
      if (frame !== null) return frame;
      this.#wait(POLLIN, untilMs);
    }
  }

  /** Takes a frame if all of it has arrived. Throws `SystemError`: EPIPE at the end, EPROTO. */
  take(): Frame | null {
    for (;;) {
      const frame = this.#whole();
      if (frame !== null) return frame;
      if (this.#ended) {
        throw new SystemError(Errno.EPIPE, "Cannot go on: the other tapdisk has ended");
      }
      const message = receiveDescriptors(this.fd, RECEIVE_BYTES, this.#mostDescriptors);
      if (message === null) return null;
      this.#add(message);
    }
  }

  #add({ bytes, descriptors, hadMore }: HandedMessage): void {
    this.#descriptors.push(...descriptors);
    if (hadMore) {
      throw new SystemError(Errno.EMFILE, "Cannot take the descriptors of the other tapdisk");
    }
    // Those of the frame that arrives, and those of one before it whose text was complete with them.
    if (this.#descriptors.length > 2 * this.#mostDescriptors) throw broken();
    if (bytes.length === 0) this.#ended = true;
    const both = new Uint8Array(this.#bytes.length + bytes.length);
    both.set(this.#bytes);
    both.set(bytes, this.#bytes.length);
    this.#bytes = both;
  }

  #whole(): Frame | null {
    const bytes = this.#bytes;
    if (bytes.length < HEAD_BYTES) return null;
    const head = new DataView(bytes.buffer);
    const length = head.getUint32(0, true);
    const count = head.getUint32(4, true);
    if (length > LONGEST_TEXT_BYTES || count > this.#mostDescriptors) throw broken();
    if (bytes.length < HEAD_BYTES + length) return null;
    if (this.#descriptors.length < count) throw broken();
    const text = new TextDecoder().decode(bytes.subarray(HEAD_BYTES, HEAD_BYTES + length));
    this.#bytes = bytes.slice(HEAD_BYTES + length);
    const descriptors = this.#descriptors.splice(0, count);
    try {
      return { value: JSON.parse(text), descriptors };
    } catch {
      for (const fd of descriptors) closeFile(fd);
      throw broken();
    }
  }

  #wait(events: number, untilMs: number): void {
    if (waitForDescriptor(this.fd, events, Math.max(0, untilMs - performance.now()))) return;
    throw new SystemError(Errno.ETIMEDOUT, "Cannot go on: the other tapdisk does not answer");
  }

  /** Closes the channel. */
  close(): void {
    for (const fd of this.#descriptors.splice(0)) closeFile(fd);
    closeFile(this.fd);
  }
}

function broken(): SystemError {
  return new SystemError(Errno.EPROTO, "Cannot go on: the other tapdisk sends what makes no sense");
}
