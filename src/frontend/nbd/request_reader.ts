import { assert } from "../../../ffi/assert.ts";
import { IOVEC_BYTES, putIovec, putMsghdr, receiveMessage } from "../../../ffi/sockets.ts";
import type { SecureStream } from "../../../ffi/secure_stream.ts";
import { REQUEST_BYTES } from "../../nbd/protocol.ts";
import { type ClientSeat, RECEIVE_BYTES } from "./client_seat.ts";

/**
 * Receives what a client sends: headers into a buffer, and the data of writes into the memory of
 * slots. Data that arrives together with its header is copied from the buffer.
 */
export class RequestReader {
  /**
   * Whether writes are large. Then only one header is received after the data of a write, so that
   * the next data goes to its slot without a copy.
   */
  expectsLargeWrites = false;
  /** Whether the last receive filled its buffers, so that the socket may have more. */
  wasFull = false;
  readonly #fd: number;
  readonly #tls: SecureStream | null;
  readonly #seat: ClientSeat;
  /** Offsets of received bytes that are not processed. */
  #start: number;
  #end: number;
  /** Where the missing data of a part goes, and its bytes. */
  #payloadAt = 0;
  #payloadLeft = 0;
  /** Whether it is the last part of the write. */
  #payloadIsLast = true;
  /** Bytes of a refused write that are still to be discarded. */
  #skip = 0;

  /** @param tls The TLS of the connection; null without. */
  constructor(fd: number, seat: ClientSeat, tls: SecureStream | null = null) {
    this.#fd = fd;
    this.#tls = tls;
    this.#seat = seat;
    this.#start = this.#end = seat.receiveAt;
  }

  /** Offset of the received bytes. */
  get at(): number {
    return this.#start;
  }

  /** The number of received bytes. */
  get bytes(): number {
    return this.#end - this.#start;
  }

  /** A copy of the received bytes. */
  get rest(): Uint8Array<ArrayBuffer> {
    return this.#seat.memory.bytes.slice(this.#start, this.#end);
  }

  /** Whether data of a part is missing. */
  get isFilling(): boolean {
    return this.#payloadLeft > 0;
  }

  /** Whether data is being discarded. */
  get isSkipping(): boolean {
    return this.#skip > 0;
  }

  /** Moves past processed bytes. */
  take(bytes: number): void {
    assert(bytes <= this.#end - this.#start, "No more is worked through than was received");
    this.#start += bytes;
  }

  /** Adds bytes that were received elsewhere. They are fewer than one receive brings. */
  put(bytes: Uint8Array): void {
    assert(this.#end + bytes.length <= this.#seat.receiveAt + RECEIVE_BYTES, "The bytes have room");
    this.#seat.memory.bytes.set(bytes, this.#end);
    this.#end += bytes.length;
  }

  /** Drops the received bytes. */
  clear(): void {
    this.#start = this.#end;
  }

  /** Discards the next `bytes` bytes of the client. */
  skip(bytes: number): void {
    this.#skip = bytes;
  }

  /** Discards the received part of them. */
  skipReceived(): void {
    const skipped = Math.min(this.#skip, this.#end - this.#start);
    this.#skip -= skipped;
    this.#start += skipped;
  }

  /**
   * The next bytes are data of a write.
   *
   * @param at Offset in the memory of the device at which they go.
   * @param isLast Whether the data of the write ends with them.
   */
  expect(at: number, bytes: number, isLast: boolean): void {
    this.#payloadAt = at;
    this.#payloadLeft = bytes;
    this.#payloadIsLast = isLast;
  }

  /** The missing data is not expected any more. */
  abandon(): void {
    this.#payloadLeft = 0;
  }

  /** Moves data from the buffer to its place; true when nothing is missing. */
  fill(): boolean {
    const bytes = Math.min(this.#payloadLeft, this.#end - this.#start);
    this.#seat.memory.bytes.copyWithin(this.#payloadAt, this.#start, this.#start + bytes);
    this.#start += bytes;
    this.#payloadAt += bytes;
    this.#payloadLeft -= bytes;
    return this.#payloadLeft === 0;
  }

  /** Receives once. Returns bytes, 0 at the end of the stream, or -errno. */
  receive(): number {
    return this.#payloadLeft > 0 ? this.#receivePayload() : this.#receiveHeaders();
  }

  #receiveHeaders(): number {
    this.#makeRoom();
    const { memory, receiveAt, receiveIovecsAt, receiveMsghdrAt, receiveMsghdr } = this.#seat;
    const { view, sector } = memory;
    const room = receiveAt + RECEIVE_BYTES - this.#end;
    const missing = REQUEST_BYTES - (this.#end - this.#start);
    const most = this.expectsLargeWrites && missing > 0 ? missing : room;
    putIovec(view, receiveIovecsAt, sector, this.#end, most);
    putMsghdr(view, receiveMsghdrAt, sector, receiveIovecsAt, 1);
    const got = this.#tls === null
      ? receiveMessage(this.#fd, receiveMsghdr)
      : this.#tls.receive(receiveMsghdr, view, receiveIovecsAt, 1);
    this.wasFull = got === most;
    if (got > 0) this.#end += got;
    return got;
  }

  /** Receives the missing data, and after the last part of a write also what follows. */
  #receivePayload(): number {
    assert(this.#start === this.#end, "Data is received while earlier bytes wait in the buffer");
    const { memory, receiveAt, receiveIovecsAt, receiveMsghdrAt, receiveMsghdr } = this.#seat;
    const { view, sector } = memory;
    const missing = this.#payloadLeft;
    const isLast = this.#payloadIsLast;
    const behind = isLast ? (this.expectsLargeWrites ? REQUEST_BYTES : RECEIVE_BYTES) : 0;
    putIovec(view, receiveIovecsAt, sector, this.#payloadAt, missing);
    putIovec(view, receiveIovecsAt + IOVEC_BYTES, sector, receiveAt, behind);
    const iovecs = isLast ? 2 : 1;
    putMsghdr(view, receiveMsghdrAt, sector, receiveIovecsAt, iovecs);
    const got = this.#tls === null
      ? receiveMessage(this.#fd, receiveMsghdr)
      : this.#tls.receive(receiveMsghdr, view, receiveIovecsAt, iovecs);
    this.wasFull = got === missing + behind;
    if (got <= 0) return got;
    const filled = Math.min(got, missing);
    this.#payloadAt += filled;
    this.#payloadLeft -= filled;
    this.#start = receiveAt;
    this.#end = receiveAt + got - filled;
    return got;
  }

  #makeRoom(): void {
    const { memory, receiveAt } = this.#seat;
    if (this.#start === this.#end) {
      this.#start = this.#end = receiveAt;
    } else if (receiveAt + RECEIVE_BYTES - this.#end < RECEIVE_BYTES / 2) {
      memory.bytes.copyWithin(receiveAt, this.#start, this.#end);
      this.#end -= this.#start - receiveAt;
      this.#start = receiveAt;
    }
  }
}
