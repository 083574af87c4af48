import { assert } from "../../../ffi/assert.ts";
import type { Arena } from "../../../ffi/memory.ts";
import { IOVEC_BYTES, sendAt, UIO_MAXIOV } from "../../../ffi/sockets.ts";
import { SLOTS } from "../../vbd/slots.ts";
import { CLIENT_BYTES } from "./client_memory.ts";

/** The longest header of a reply, with the fixed fields of its content. */
const MOST_HEADER_BYTES = 32;
/** The longest message of the handshake. */
const HANDSHAKE_BYTES = 8000;
/** Bytes of one receive that does not go to slots. */
export const RECEIVE_BYTES = 128 * 1024;

const RECEIVE_IOVECS = 2;
const RECEIVE_IOVECS_AT = 64;
const HANDSHAKE_AT = RECEIVE_IOVECS_AT + RECEIVE_IOVECS * IOVEC_BYTES;
const SEND_MSGHDR_AT = 8 * 1024;
const SEND_IOVECS_AT = SEND_MSGHDR_AT + 64;
const HEADERS_AT = SEND_IOVECS_AT + UIO_MAXIOV * IOVEC_BYTES;
const RECEIVE_AT = 32 * 1024;

assert(HANDSHAKE_AT + HANDSHAKE_BYTES <= SEND_MSGHDR_AT, "The handshake's answers have room");
assert(HEADERS_AT + SLOTS * MOST_HEADER_BYTES <= RECEIVE_AT, "The headers of answers have room");
assert(RECEIVE_AT + RECEIVE_BYTES <= CLIENT_BYTES, "A client's memory holds its buffers");

/**
 * The memory of a client, with pointers into it. It is created for the first client that gets the
 * memory, and reused by later ones. Places are offsets in the memory of the device, bytes.
 */
export class ClientSeat {
  readonly memory: Arena;
  /** Where the memory begins: what `ClientMemory.take` gave. */
  readonly base: number;
  readonly handshakeAt: number;
  readonly receiveAt: number;
  readonly receiveIovecsAt: number;
  readonly receiveMsghdrAt: number;
  readonly receiveMsghdr: Deno.PointerObject;
  readonly sendMsghdrAt: number;
  readonly sendIovecsAt: number;
  readonly sendMsghdr: Deno.PointerObject;
  readonly headersAt: number;
  /** Heads of ended requests whose replies wait: a ring buffer. */
  readonly queue = new Int32Array(SLOTS);
  /** Heads of the requests whose replies are in the message, and the offset at which each ends. */
  readonly inMessage = new Int32Array(SLOTS);
  readonly answerEnds = new Float64Array(SLOTS);

  constructor(memory: Arena, base: number) {
    this.memory = memory;
    this.base = base;
    this.handshakeAt = base + HANDSHAKE_AT;
    this.receiveAt = base + RECEIVE_AT;
    this.receiveIovecsAt = base + RECEIVE_IOVECS_AT;
    this.receiveMsghdrAt = base;
    this.receiveMsghdr = memory.pointerAt(this.receiveMsghdrAt);
    this.sendMsghdrAt = base + SEND_MSGHDR_AT;
    this.sendIovecsAt = base + SEND_IOVECS_AT;
    this.sendMsghdr = memory.pointerAt(this.sendMsghdrAt);
    this.headersAt = base + HEADERS_AT;
  }

  /** Sends a message of the handshake; false when the socket does not take all of it. */
  send(fd: number, bytes: Uint8Array): boolean {
    if (bytes.length > HANDSHAKE_BYTES) throw new RangeError("An answer is too long");
    const { memory, handshakeAt } = this;
    memory.bytes.set(bytes, handshakeAt);
    return sendAt(fd, memory.address + handshakeAt, bytes.length) === bytes.length;
  }
}
