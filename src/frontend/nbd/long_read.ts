import { SLOT_BYTES } from "../../vbd/slots.ts";
import type { SlotClaim } from "../../vbd/slot_shares.ts";
import { type NbdSlots, takeParts } from "./nbd_slots.ts";
import { NBD_CMD_READ } from "../../nbd/protocol.ts";

const NONE = -1;

/** Longer reads are done in pieces. Shorter ones are too when there are not enough free slots. */
export const READ_PIECE_BYTES = 8 * SLOT_BYTES;

/**
 * The long read of a connection, which is done one piece at a time. The reply to the first piece
 * has the header for the whole read, and the other pieces are sent as data only. No other reply may
 * be sent in between, so a long read has the connection to itself.
 */
export class LongRead {
  /** Whether there is a long read, waiting or with a piece in flight. */
  isActive = false;
  #piece = NONE;
  #cookieHigh = 0;
  #cookieLow = 0;
  #offset = 0;
  #total = 0;
  #left = 0;

  /** Starts the read whose header is at offset `at`. */
  start(view: DataView, at: number): void {
    this.isActive = true;
    this.#cookieHigh = view.getUint32(at + 8, false);
    this.#cookieLow = view.getUint32(at + 12, false);
    this.#offset = view.getUint32(at + 16, false) * 0x1_0000_0000 + view.getUint32(at + 20, false);
    this.#total = view.getUint32(at + 24, false);
    this.#left = this.#total;
  }

  /** Whether all pieces have started, or one failed. */
  get isDone(): boolean {
    return this.#left === 0;
  }

  /** Ends the read. */
  end(): void {
    this.#piece = NONE;
    this.isActive = false;
  }

  /** Takes slots for the next piece, and sets it up; returns its head, or -1 without slots. */
  takePiece(slots: NbdSlots, claim: SlotClaim): number {
    const parts = claim.mayTake(Math.ceil(Math.min(this.#left, READ_PIECE_BYTES) / SLOT_BYTES));
    if (parts === 0) return NONE;
    const bytes = Math.min(this.#left, parts * SLOT_BYTES);
    const head = takeParts(slots, claim, parts, bytes);
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
    return head;
  }

  /**
   * Notes that the request in slot `head` failed. If it is the piece in flight, no more pieces
   * start.
   *
   * @returns Whether it was a later piece, for which no reply can carry the error.
   */
  fail(slots: NbdSlots, head: number): boolean {
    if (head !== this.#piece) return false;
    this.#left = 0;
    return slots.announced[head] === 0;
  }
}
