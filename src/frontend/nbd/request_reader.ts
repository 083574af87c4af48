import { assert } from "../../../ffi/assert.ts";
import { IOVEC_BYTES, putIovec, putMsghdr, receiveMessage } from "../../../ffi/sockets.ts";
import { REQUEST_BYTES } from "../../nbd/protocol.ts";
import { type ClientSeat, RECEIVE_BYTES } from "./client_seat.ts";

/**
 * What a client sends, as it comes: headers into a buffer, the data of writes straight into the
 * memory of slots, as far as one receive can tell them apart.
 */
export class RequestReader {
  /** Writes are large: behind their data only one header is received, so that data follows whole. */
  expectsLargeWrites = false;
  /** Whether the last receive brought as much as it asked for: more may be there. */
  wasFull = false;
  readonly #fd: number;
  readonly #seat: ClientSeat;
  /** What was received and not worked through. */
  #start: number;
  #end: number;
  /** Where the data of a write goes that is being received, and how much of it has not come. */
  #payloadAt = 0;
  #payloadLeft = 0;
  /** Whether the write's data ends with it. */
  #payloadIsLast = true;
  /** Bytes of a refused write that are to be thrown away. */
  #skip = 0;

  constructor(fd: number, seat: ClientSeat) {
    this.#fd = fd;
    this.#seat = seat;
    this.#start = this.#end = seat.receiveAt;
  }

  /** Where what was received begins. */
  get at(): number {
    return this.#start;
  }

  /** How many bytes are there. */
  get bytes(): number {
    return this.#end - this.#start;
  }

  /** Whether data of a write has not come. */
  get isFilling(): boolean {
    return this.#payloadLeft > 0;
  }

  /** Whether data is thrown away. */
  get isSkipping(): boolean {
    return this.#skip > 0;
  }

  /** Moves past bytes that have been worked through. */
  take(bytes: number): void {
    assert(bytes <= this.#end - this.#start, "No more is worked through than was received");
    this.#start += bytes;
  }

  /** Forgets what was received. */
  clear(): void {
    this.#start = this.#end;
  }

  /** The next bytes are of no use. */
  skip(bytes: number): void {
    this.#skip = bytes;
  }

  /** Throws away what is there of bytes of no use. */
  skipReceived(): void {
    const skipped = Math.min(this.#skip, this.#end - this.#start);
    this.#skip -= skipped;
    this.#start += skipped;
  }

  /**
   * The next bytes are data, and go to a slot's memory.
   *
   * @param isLast Whether the write's data ends with them.
   */
  expect(at: number, bytes: number, isLast: boolean): void {
    this.#payloadAt = at;
    this.#payloadLeft = bytes;
    this.#payloadIsLast = isLast;
  }

  /** The data will not be wanted any more. */
  abandon(): void {
    this.#payloadLeft = 0;
  }

  /** Moves data that is in the buffer to its place; true when all of it is there. */
  fill(): boolean {
    const bytes = Math.min(this.#payloadLeft, this.#end - this.#start);
    this.#seat.memory.bytes.copyWithin(this.#payloadAt, this.#start, this.#start + bytes);
    this.#start += bytes;
    this.#payloadAt += bytes;
    this.#payloadLeft -= bytes;
    return this.#payloadLeft === 0;
  }

  /** Receives once; returns bytes, 0 at the end, or a negative errno. */
  receive(): number {
    return this.#payloadLeft > 0 ? this.#receivePayload() : this.#receiveHeaders();
  }

  #receiveHeaders(): number {
    this.#makeRoom();
    const { memory, receiveAt, receiveIovecsAt, receiveMsghdrAt, receiveMsghdr } = this.#seat;
    const { view, address } = memory;
    const room = receiveAt + RECEIVE_BYTES - this.#end;
    const missing = REQUEST_BYTES - (this.#end - this.#start);
    const most = this.expectsLargeWrites && missing > 0 ? missing : room;
    putIovec(view, receiveIovecsAt, address + this.#end, most);
    putMsghdr(view, receiveMsghdrAt, address + receiveIovecsAt, 1);
    const got = receiveMessage(this.#fd, receiveMsghdr);
    this.wasFull = got === most;
    if (got > 0) this.#end += got;
    return got;
  }

  /** Receives the rest of the data, and what follows when the write ends with it. */
  #receivePayload(): number {
    const { memory, receiveAt, receiveIovecsAt, receiveMsghdrAt, receiveMsghdr } = this.#seat;
    const { view, address } = memory;
    const missing = this.#payloadLeft;
    const isLast = this.#payloadIsLast;
    const behind = isLast ? (this.expectsLargeWrites ? REQUEST_BYTES : RECEIVE_BYTES) : 0;
    putIovec(view, receiveIovecsAt, address + this.#payloadAt, missing);
    putIovec(view, receiveIovecsAt + IOVEC_BYTES, address + receiveAt, behind);
    putMsghdr(view, receiveMsghdrAt, address + receiveIovecsAt, isLast ? 2 : 1);
    const got = receiveMessage(this.#fd, receiveMsghdr);
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
