import { assert } from "../../../ffi/assert.ts";
import { Errno } from "../../../ffi/errno.ts";
import type { Arena } from "../../../ffi/memory.ts";
import {
  IOVEC_BYTES,
  putIovec,
  putMsghdr,
  sendMessage,
  shortenIovec,
  UIO_MAXIOV,
} from "../../../ffi/sockets.ts";
import type { SecureStream } from "../../../ffi/secure_stream.ts";
import type { SlotClaim } from "../../vbd/slot_shares.ts";
import { SLOT_BYTES, SLOTS } from "../../vbd/slots.ts";
import type { Requests } from "../../vbd/requests.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { putChangedExtents } from "./changed_extents.ts";
import type { ClientSeat } from "./client_seat.ts";
import { type MetaContext, MOST_CONTEXTS } from "./meta_contexts.ts";
import { MOST_EXTENTS, type NbdSlots, releaseParts } from "./nbd_slots.ts";
import {
  CHUNK_HEADER_BYTES,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_READ,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STATE_HOLE,
  NBD_STATE_ZERO,
  NBD_STRUCTURED_REPLY_MAGIC,
  SIMPLE_REPLY_BYTES,
} from "../../nbd/protocol.ts";

const NONE = -1;
const SECTOR_BYTES = 512;
const EXTENT_BYTES = 8;
/** A chunk's header and the number of its meta context. */
const STATUS_HEADER_BYTES = CHUNK_HEADER_BYTES + 4;
/** Room in a slot's memory for the block status of a meta context. */
const STATUS_BYTES = 80 * 1024;
assert(STATUS_HEADER_BYTES + MOST_EXTENTS * EXTENT_BYTES <= STATUS_BYTES, "A status has room");
assert(MOST_CONTEXTS * STATUS_BYTES <= SLOT_BYTES, "The status of all contexts has room");

/** The errnos of the NBD protocol. All others become EIO. */
const nbdErrors: ReadonlySet<number> = new Set([
  Errno.EPERM,
  Errno.EIO,
  Errno.ENOMEM,
  Errno.EINVAL,
  Errno.ENOSPC,
  Errno.EOVERFLOW,
  Errno.EOPNOTSUPP,
  Errno.ESHUTDOWN,
]);

/**
 * The replies of a connection. Those of a turn are sent by one call, with data from the memory of
 * the slots. The slots of a request are released when its reply has been sent.
 */
export class ReplyQueue {
  /** Whether structured replies were negotiated. */
  structured = false;
  /** The meta contexts that a block status tells of. */
  contexts: readonly MetaContext[] = [];
  /** Whether the socket is full, so that the client has to receive replies. */
  isBlocked = false;
  readonly #fd: number;
  readonly #tls: SecureStream | null;
  readonly #vbd: Vbd;
  readonly #requests: Requests;
  readonly #slots: NbdSlots;
  readonly #seat: ClientSeat;
  readonly #claim: SlotClaim;
  readonly #memory: Arena;
  #queueHead = 0;
  #queueSize = 0;
  /** Replies in the message, and how many of them were sent. */
  #messageSize = 0;
  #answersSent = 0;
  /** Bytes of the message, and how many of them were sent. */
  #messageBytes = 0;
  #bytesSent = 0;
  #iovecs = 0;
  #firstIovec = 0;
  #headerBytes = 0;
  /** The end of the last iovec's memory; the next bytes may continue it. */
  #lastSector = NONE;
  #lastEnd = 0;

  constructor(
    fd: number,
    { vbd, slots, seat, claim, tls = null }: {
      vbd: Vbd;
      slots: NbdSlots;
      seat: ClientSeat;
      claim: SlotClaim;
      /** The TLS of the connection; null without. */
      tls?: SecureStream | null;
    },
  ) {
    this.#fd = fd;
    this.#tls = tls;
    this.#vbd = vbd;
    this.#requests = vbd.requests;
    this.#slots = slots;
    this.#seat = seat;
    this.#claim = claim;
    this.#memory = seat.memory;
  }

  /** Whether there is nothing to send. */
  get isEmpty(): boolean {
    return this.#messageSize === 0 && this.#queueSize === 0 && !(this.#tls?.hasUnsent ?? false);
  }

  /** The most extents that the device has to find for a block status. */
  mostAllocationExtents(head: number): number {
    // Without the context of allocation, what the device finds is not sent.
    return this.contexts[0].isOfLog ? 1 : this.#slots.mostExtents[head];
  }

  /** Queues the reply to an ended request. */
  push(head: number): void {
    this.#seat.queue[(this.#queueHead + this.#queueSize++) % SLOTS] = head;
  }

  /**
   * Sends replies.
   *
   * @returns 0 when all were sent, -EAGAIN when the socket is full, another -errno when it is
   * broken.
   */
  send(): number {
    this.isBlocked = false;
    for (;;) {
      if (this.#messageSize === 0 && !this.#compose()) return this.#flush();
      const { view, sector } = this.#memory;
      const { sendIovecsAt, sendMsghdrAt, sendMsghdr } = this.#seat;
      const iovecs = sendIovecsAt + this.#firstIovec * IOVEC_BYTES;
      const count = this.#iovecs - this.#firstIovec;
      putMsghdr(view, sendMsghdrAt, sector, iovecs, count);
      const sent = this.#tls === null
        ? sendMessage(this.#fd, sendMsghdr)
        : this.#tls.send(sendMsghdr, view, iovecs, count);
      if (sent < 0) {
        this.isBlocked = true;
        return sent;
      }
      const isAll = this.#advance(sent);
      this.#releaseSent(sent);
      if (isAll) this.#messageSize = this.#answersSent = 0;
    }
  }

  /** Sends what TLS has encrypted and not sent; returns as `send` does. */
  #flush(): number {
    const left = this.#tls === null ? 0 : this.#tls.flush();
    this.isBlocked = left < 0;
    return left;
  }

  /** Moves past the bytes that were sent; true when that was all. */
  #advance(sent: number): boolean {
    const { view } = this.#memory;
    const { sendIovecsAt } = this.#seat;
    while (this.#firstIovec < this.#iovecs) {
      const at = sendIovecsAt + this.#firstIovec * IOVEC_BYTES;
      const length = view.getUint32(at + 8, true);
      if (sent < length) {
        shortenIovec(view, at, sent);
        return false;
      }
      sent -= length;
      this.#firstIovec++;
    }
    return true;
  }

  /** Releases the slots of replies that were sent as a whole. */
  #releaseSent(sent: number): void {
    const { answerEnds, inMessage } = this.#seat;
    this.#bytesSent += sent;
    while (
      this.#answersSent < this.#messageSize && answerEnds[this.#answersSent] <= this.#bytesSent
    ) this.#release(inMessage[this.#answersSent++]);
  }

  #release(head: number): void {
    releaseParts(this.#slots, this.#claim, head);
  }

  /** Composes a message of the queued replies; false when there are none. */
  #compose(): boolean {
    if (this.#queueSize === 0) return false;
    const { queue, inMessage, answerEnds } = this.#seat;
    this.#iovecs = 0;
    this.#firstIovec = 0;
    this.#headerBytes = 0;
    this.#messageBytes = 0;
    this.#bytesSent = 0;
    this.#answersSent = 0;
    this.#lastSector = NONE;
    // A reply takes an iovec for each part of its request, and at most one for its header.
    while (this.#queueSize > 0 && this.#iovecs + SLOTS + 1 < UIO_MAXIOV) {
      const head = queue[this.#queueHead];
      this.#queueHead = (this.#queueHead + 1) % SLOTS;
      this.#queueSize--;
      this.#answer(head);
      inMessage[this.#messageSize] = head;
      answerEnds[this.#messageSize++] = this.#messageBytes;
    }
    return true;
  }

  #answer(head: number): void {
    const slots = this.#slots;
    const errno = slots.error[head];
    const command = slots.command[head];
    const ranged = command === NBD_CMD_READ || command === NBD_CMD_BLOCK_STATUS;
    // A later piece of a long read is data only. The header was sent with the first piece.
    const isContinued = command === NBD_CMD_READ && slots.announced[head] < slots.totalLength[head];
    if (isContinued) {
      if (errno !== 0) return;
    } else if (!this.structured || !ranged) this.#simple(head, errno);
    else if (errno !== 0) this.#chunk(head, NBD_REPLY_TYPE_ERROR, 6);
    else if (command === NBD_CMD_BLOCK_STATUS) return this.#blockStatus(head);
    else if (slots.totalLength[head] === 0) return this.#chunk(head, NBD_REPLY_TYPE_NONE, 0);
    else this.#chunk(head, NBD_REPLY_TYPE_OFFSET_DATA, 8 + slots.announced[head]);
    if (command !== NBD_CMD_READ || errno !== 0) return;
    for (let slot = head; slot !== NONE; slot = slots.next[slot]) {
      this.#addMemory(this.#requests.slotSector(slot), 0, slots.length[slot]);
    }
  }

  #simple(head: number, errno: number): void {
    const { view } = this.#memory;
    const at = this.#seat.headersAt + this.#headerBytes;
    view.setUint32(at, NBD_SIMPLE_REPLY_MAGIC, false);
    view.setUint32(at + 4, wireError(errno), false);
    view.setUint32(at + 8, this.#slots.cookieHigh[head], false);
    view.setUint32(at + 12, this.#slots.cookieLow[head], false);
    this.#addHeader(SIMPLE_REPLY_BYTES);
  }

  /** Adds the header of a reply's only chunk, with the fixed fields of its content. */
  #chunk(head: number, type: number, contentBytes: number): void {
    const slots = this.#slots;
    const { view } = this.#memory;
    const at = this.#seat.headersAt + this.#headerBytes;
    this.#putChunk(view, at, head, NBD_REPLY_FLAG_DONE, type, contentBytes);
    let bytes = CHUNK_HEADER_BYTES;
    if (type === NBD_REPLY_TYPE_OFFSET_DATA) {
      const offset = slots.offset[head];
      view.setUint32(at + 20, Math.floor(offset / 0x1_0000_0000), false);
      view.setUint32(at + 24, offset >>> 0, false);
      bytes += 8;
    } else if (type === NBD_REPLY_TYPE_ERROR) {
      view.setUint32(at + 20, wireError(slots.error[head]), false);
      view.setUint16(at + 24, 0, false);
      bytes += 6;
    }
    this.#addHeader(bytes);
  }

  #putChunk(
    view: DataView,
    at: number,
    head: number,
    flags: number,
    type: number,
    contentBytes: number,
  ): void {
    view.setUint32(at, NBD_STRUCTURED_REPLY_MAGIC, false);
    view.setUint16(at + 4, flags, false);
    view.setUint16(at + 6, type, false);
    view.setUint32(at + 8, this.#slots.cookieHigh[head], false);
    view.setUint32(at + 12, this.#slots.cookieLow[head], false);
    view.setUint32(at + 16, contentBytes, false);
  }

  /** Adds a chunk for each meta context. */
  #blockStatus(head: number): void {
    const { contexts } = this;
    for (let i = 0; i < contexts.length; i++) {
      const { id, isOfLog } = contexts[i];
      const flags = i === contexts.length - 1 ? NBD_REPLY_FLAG_DONE : 0;
      if (isOfLog) this.#changedBlocks(head, id, flags, i * STATUS_BYTES);
      else this.#allocation(head, id, flags);
    }
  }

  /** The extents are where the device put them, at the start of the slot's memory. */
  #allocation(head: number, id: number, flags: number): void {
    const count = this.#requests.extents(head);
    const { view } = this.#requests.memory;
    const start = this.#requests.slotOffset(head);
    for (let i = 0; i < count; i++) {
      const at = start + i * EXTENT_BYTES;
      const bytes = view.getUint32(at, true) * SECTOR_BYTES;
      const isData = view.getUint32(at + 4, true) === 1;
      view.setUint32(at, bytes, false);
      view.setUint32(at + 4, isData ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO, false);
    }
    const headerAt = this.#seat.headersAt + this.#headerBytes;
    this.#putStatus(this.#memory.view, headerAt, head, flags, id, count);
    this.#addHeader(STATUS_HEADER_BYTES);
    this.#addMemory(this.#requests.slotSector(head), 0, count * EXTENT_BYTES);
  }

  /** Header and extents are made in the slot's memory, `offsetBytes` after its start. */
  #changedBlocks(head: number, id: number, flags: number, offsetBytes: number): void {
    const { offset, totalLength, mostExtents } = this.#slots;
    const { view } = this.#requests.memory;
    const at = this.#requests.slotOffset(head) + offsetBytes;
    const sector = offset[head] / SECTOR_BYTES;
    const sectors = totalLength[head] / SECTOR_BYTES;
    const bits = this.#vbd.changedBits;
    const extentsAt = at + STATUS_HEADER_BYTES;
    const count = putChangedExtents(view, extentsAt, bits, sector, sectors, mostExtents[head]);
    this.#putStatus(view, at, head, flags, id, count);
    const bytes = STATUS_HEADER_BYTES + count * EXTENT_BYTES;
    this.#addMemory(this.#requests.slotSector(head), offsetBytes, bytes);
  }

  #putStatus(
    view: DataView,
    at: number,
    head: number,
    flags: number,
    id: number,
    extents: number,
  ): void {
    const contentBytes = 4 + extents * EXTENT_BYTES;
    this.#putChunk(view, at, head, flags, NBD_REPLY_TYPE_BLOCK_STATUS, contentBytes);
    view.setUint32(at + CHUNK_HEADER_BYTES, id, false);
  }

  #addHeader(bytes: number): void {
    this.#addMemory(this.#memory.sector, this.#seat.headersAt + this.#headerBytes, bytes);
    this.#headerBytes += bytes;
  }

  /** Adds bytes of I/O memory, which begin `offsetBytes` after the start of a sector. */
  #addMemory(memorySector: number, offsetBytes: number, bytes: number): void {
    const { view } = this.#memory;
    const { sendIovecsAt } = this.#seat;
    if (memorySector === this.#lastSector && offsetBytes === this.#lastEnd) {
      const at = sendIovecsAt + (this.#iovecs - 1) * IOVEC_BYTES + 8;
      view.setUint32(at, view.getUint32(at, true) + bytes, true);
    } else {
      const at = sendIovecsAt + this.#iovecs++ * IOVEC_BYTES;
      putIovec(view, at, memorySector, offsetBytes, bytes);
    }
    this.#messageBytes += bytes;
    this.#lastSector = memorySector;
    this.#lastEnd = offsetBytes + bytes;
  }

  /** Drops all replies and releases their slots. */
  close(): void {
    const { queue, inMessage } = this.#seat;
    while (this.#answersSent < this.#messageSize) this.#release(inMessage[this.#answersSent++]);
    this.#messageSize = this.#answersSent = 0;
    while (this.#queueSize > 0) {
      this.#release(queue[this.#queueHead]);
      this.#queueHead = (this.#queueHead + 1) % SLOTS;
      this.#queueSize--;
    }
  }
}

function wireError(errno: number): number {
  if (errno === 0 || nbdErrors.has(errno)) return errno;
  return errno === Errno.EDQUOT || errno === Errno.EFBIG ? Errno.ENOSPC : Errno.EIO;
}
