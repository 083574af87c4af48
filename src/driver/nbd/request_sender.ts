import { Arena } from "../../../ffi/memory.ts";
import {
  IOVEC_BYTES,
  putIovec,
  putMsghdr,
  sendMessage,
  shortenIovec,
} from "../../../ffi/sockets.ts";
import type { TlsStream } from "../../../ffi/tls_stream.ts";
import {
  NBD_CMD_FLUSH,
  NBD_CMD_WRITE,
  NBD_REQUEST_MAGIC,
  REQUEST_BYTES,
} from "../../nbd/protocol.ts";
import { SECTOR_BYTES } from "../driver.ts";
import type { PieceTable } from "../pieces.ts";
import { WINDOW } from "./operations.ts";

const IOVECS_AT = 64;
const HEADER_ROOM_BYTES = 32;
const HEADERS_AT = IOVECS_AT + 2 * WINDOW * IOVEC_BYTES;

/**
 * Sends the requests of a turn in one message: headers from a buffer here, data from the memory of
 * the requests. Each operation has its own place for the header, so the header stays until the reply.
 */
export class RequestSender {
  readonly #pieces: PieceTable;
  readonly #arena = new Arena(HEADERS_AT + WINDOW * HEADER_ROOM_BYTES);
  readonly #msghdr = this.#arena.pointerAt(0);
  /** The TLS of the connection; null without. */
  tls: TlsStream | null = null;
  #iovecs = 0;
  #firstIovec = 0;

  constructor(pieces: PieceTable) {
    this.#pieces = pieces;
  }

  /** Whether the message has left as a whole, so that a new one may begin. */
  get isEmpty(): boolean {
    return this.#firstIovec === this.#iovecs && !(this.tls?.hasUnsent ?? false);
  }

  /** Adds an operation to the message, no part of which has been sent. */
  add(operation: number, piece: number): void {
    const pieces = this.#pieces;
    const { view } = this.#arena;
    const command = pieces.kind[piece];
    const at = HEADERS_AT + operation * HEADER_ROOM_BYTES;
    const isFlush = command === NBD_CMD_FLUSH;
    const offset = isFlush ? 0 : pieces.sector[piece] * SECTOR_BYTES;
    const bytes = isFlush ? 0 : pieces.count[piece] * SECTOR_BYTES;
    view.setUint32(at, NBD_REQUEST_MAGIC, false);
    view.setUint16(at + 4, 0, false);
    view.setUint16(at + 6, command, false);
    view.setUint32(at + 8, 0, false);
    view.setUint32(at + 12, operation, false);
    view.setUint32(at + 16, Math.floor(offset / 0x1_0000_0000), false);
    view.setUint32(at + 20, offset >>> 0, false);
    view.setUint32(at + 24, bytes, false);
    this.#addIovec(this.#arena.sector, at, REQUEST_BYTES);
    if (command === NBD_CMD_WRITE) this.#addIovec(pieces.memory[piece], 0, bytes);
  }

  #addIovec(memorySector: number, offsetBytes: number, bytes: number): void {
    const at = IOVECS_AT + this.#iovecs++ * IOVEC_BYTES;
    putIovec(this.#arena.view, at, memorySector, offsetBytes, bytes);
  }

  /**
   * Sends what the socket takes. Returns 0 when all has left, -EAGAIN when the socket is full, or
   * another negative errno when it is broken.
   */
  send(fd: number): number {
    const { view, sector } = this.#arena;
    const { tls } = this;
    while (this.#firstIovec < this.#iovecs) {
      const iovecs = IOVECS_AT + this.#firstIovec * IOVEC_BYTES;
      const count = this.#iovecs - this.#firstIovec;
      putMsghdr(view, 0, sector, iovecs, count);
      const sent = tls === null
        ? sendMessage(fd, this.#msghdr)
        : tls.send(this.#msghdr, view, iovecs, count);
      if (sent < 0) return sent;
      this.#advance(sent);
    }
    this.clear();
    return tls === null ? 0 : tls.flush();
  }

  #advance(sent: number): void {
    const { view } = this.#arena;
    while (this.#firstIovec < this.#iovecs) {
      const at = IOVECS_AT + this.#firstIovec * IOVEC_BYTES;
      const length = view.getUint32(at + 8, true);
      if (sent < length) {
        shortenIovec(view, at, sent);
        return;
      }
      sent -= length;
      this.#firstIovec++;
    }
  }

  /** Forgets the message. */
  clear(): void {
    this.#iovecs = 0;
    this.#firstIovec = 0;
  }

  /** Unmaps its memory. */
  release(): void {
    this.#arena.release();
  }
}
