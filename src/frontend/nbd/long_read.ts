import { SLOT_BYTES } from "../../vbd/slots.ts";
import type { NbdSlots } from "./nbd_slots.ts";
import { NBD_CMD_READ } from "../../nbd/protocol.ts";

const NONE = -1;

/** Reads longer than this go piece by piece; others do too where there are not as many slots. */
export const READ_PIECE_BYTES = 8 * SLOT_BYTES;

/**
 * A long read of a connection, one piece at a time. Its first piece's answer announces the whole;
 * the others follow as bare data. So it has the connection for itself from its start to its end:
 * other answers must not come in between.
 */
export class LongRead {
  /** Whether there is one, which waits, or a piece of which is under way. */
  isActive = false;
  #piece = NONE;
  #cookieHigh = 0;
  #cookieLow = 0;
  #offset = 0;
  #total = 0;
  #left = 0;

  /** Notes the read whose header is at `at`. */
  start(view: DataView, at: number): void {
    this.isActive = true;
    this.#cookieHigh = view.getUint32(at + 8, false);
    this.#cookieLow = view.getUint32(at + 12, false);
    this.#offset = view.getUint32(at + 16, false) * 0x1_0000_0000 + view.getUint32(at + 20, false);
    this.#total = view.getUint32(at + 24, false);
    this.#left = this.#total;
  }

  /** Whether all pieces have been read, or one failed. */
  get isDone(): boolean {
    return this.#left === 0;
  }

  /** Ends it. */
  end(): void {
    this.#piece = NONE;
    this.isActive = false;
  }

  /** Slots that the next piece takes, at most. */
  get mostParts(): number {
    return Math.ceil(Math.min(this.#left, READ_PIECE_BYTES) / SLOT_BYTES);
  }

  /** Bytes of the next piece if it has so many slots. */
  bytesFor(parts: number): number {
    return Math.min(this.#left, parts * SLOT_BYTES);
  }

  /** Makes the next piece the request of slot `head`. */
  putPiece(slots: NbdSlots, head: number, bytes: number): void {
    slots.cookieHigh[head] = this.#cookieHigh;
    slots.cookieLow[head] = this.#cookieLow;
    slots.command[head] = NBD_CMD_READ;
    slots.offset[head] = this.#offset;
    slots.totalLength[head] = bytes;
    slots.announced[head] = this.#left === this.#total ? this.#total : 0;
    slots.error[head] = 0;
    this.#piece = head;
    this.#offset += bytes;
    this.#left -= bytes;
  }

  /**
   * A request failed; if it is the piece under way, no more follow. Returns whether it was a later
   * piece, so that the client cannot be told by an answer any more.
   */
  fail(slots: NbdSlots, head: number): boolean {
    if (head !== this.#piece) return false;
    this.#left = 0;
    return slots.announced[head] === 0;
  }
}
