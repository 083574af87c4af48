import { assert } from "../../../ffi/assert.ts";
import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT } from "../../../ffi/epoll.ts";
import { Errno } from "../../../ffi/errno.ts";
import { POLLRDHUP, waitForDescriptor } from "../../../ffi/poll.ts";
import { enlargeSendBuffer } from "../../../ffi/sockets.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler } from "../../scheduler/scheduler.ts";
import type { SlotClaim, SlotHolder } from "../../vbd/slot_shares.ts";
import { type RequestOwner, SLOT_BYTES } from "../../vbd/slots.ts";
import { beginPart, beginRequest } from "./begin_request.ts";
import type { ClientSeat } from "./client_seat.ts";
import { clientTitle } from "./client_title.ts";
import { carriesData, packed, refusalBeyond, refusalOf } from "./commands.ts";
import type {
  ClientKind,
  ConnectionHost,
  HandedClient,
  ServedConnection,
} from "./connection_host.ts";
import { Handshake } from "./handshake.ts";
import { LongRead, READ_PIECE_BYTES } from "./long_read.ts";
import {
  NBD_CMD_DISC,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_REQUEST_MAGIC,
  REQUEST_BYTES,
} from "../../nbd/protocol.ts";
import { partsOf, putRequest, releaseParts, takeParts } from "./nbd_slots.ts";
import { ReplyQueue } from "./reply_queue.ts";
import { RequestReader } from "./request_reader.ts";
import { TlsWake } from "./tls_wake.ts";
import { TurnBudget } from "./turn_budget.ts";

const NONE = -1;
/** Size from which writes are received into their slots directly; see `expectsLargeWrites`. */
const LARGE_WRITE_BYTES = 16 * 1024;
const SEND_BUFFER_BYTES = 4 * 1024 * 1024;
/** The most receives of one turn, so that a busy client does not delay others. */
const MOST_RECEIVES = 16;
const SECTOR_BYTES = 512;

/** One client of an export. A fault in this code ends the client only. */
export class NbdConnection
  implements FdHandler, RequestOwner, SlotHolder, ServedConnection, FaultOwner {
  readonly faults: FaultOwner = this;
  /** Whether it is in the list of the server for the end of the turn. */
  deferred = false;
  /** Whether the client sent NBD_CMD_DISC. Replies are still sent. */
  hasLeft = false;
  /** The memory of the client. Its server releases it. */
  readonly seat: ClientSeat;
  readonly #fd: number;
  readonly #wake: TlsWake;
  readonly #host: ConnectionHost;
  readonly kind: ClientKind;
  readonly #handshake: Handshake;
  readonly #claim: SlotClaim;
  readonly #replies: ReplyQueue;
  readonly #reader: RequestReader;
  /** The write whose data is received: its head, the part that is filled, the bytes after that. */
  #writeHead = NONE;
  #part = NONE;
  #writeLeft = 0;
  readonly #longRead = new LongRead();
  /** Whether the client waits for slots. Nothing is received meanwhile. */
  #stalled = false;
  #watched = EPOLLIN;
  #held = false;
  #closed = false;
  #inFlight = 0;
  readonly #budget: TurnBudget;

  constructor(fd: number, seat: ClientSeat, host: ConnectionHost, kind: ClientKind) {
    const { vbd, slots } = host;
    this.#fd = fd;
    this.#host = host;
    this.seat = seat;
    this.kind = kind;
    this.#claim = vbd.requests.shares.open(this, () => clientTitle(fd, kind));
    const tls = (kind.entered ?? kind.resumed)?.tls ?? null;
    this.#wake = new TlsWake(tls, host);
    this.#budget = new TurnBudget(this, host);
    this.#reader = new RequestReader(fd, seat, tls);
    this.#replies = new ReplyQueue(fd, { vbd, slots, seat, claim: this.#claim, tls });
    this.#handshake = kind.entered?.handshake ??
      new Handshake(() => host.describe(), (bytes) => this.#sendNow(bytes));
  }

  /**
   * Starts to serve. Throws `SystemError` when the loop cannot watch the descriptor.
   *
   * @param isHeld Whether no requests are taken until `goOn`.
   */
  start(isHeld: boolean): void {
    try {
      this.#host.scheduler.watch(this.#fd, EPOLLIN, this, this);
    } catch (error) {
      this.#closed = true;
      this.#claim.end();
      throw error;
    }
    enlargeSendBuffer(this.#fd, SEND_BUFFER_BYTES);
    this.#held = isHeld;
    const { entered, resumed, style } = this.kind;
    const { rest } = entered ?? resumed ?? {};
    if (rest === undefined) {
      this.#handshake.start(style);
      return this.#negotiated();
    }
    if (resumed !== undefined) this.#handshake.restore(resumed.state.handshake);
    this.#reader.put(rest);
    this.#negotiated();
    this.#consume();
    this.#updateWatch();
  }

  hold(isHeld: boolean): void {
    this.#held = isHeld;
    this.#consume();
    this.#updateWatch();
  }

  /** Whether no request is being received, or read in pieces, while no more are taken. */
  get #isIdle(): boolean {
    return this.#held && this.#writeHead === NONE && !this.#reader.isSkipping &&
      !this.#longRead.isActive;
  }

  get isQuiet(): boolean {
    return this.#isIdle && this.#inFlight === 0 && this.#replies.isEmpty;
  }

  handOver(): HandedClient {
    assert(this.isQuiet && !this.#closed, "A client that is handed over is owed nothing");
    return { fd: this.#fd, handshake: this.#handshake.state, rest: this.#reader.rest };
  }

  get failed(): boolean {
    return this.#closed;
  }

  get hasAbandoned(): boolean {
    return this.#closed && !this.hasLeft;
  }

  get hasEnded(): boolean {
    return this.#closed || this.hasLeft;
  }

  fault(error: unknown): void {
    this.#host.vbd.noteFault("a client's connection", error);
    this.close();
  }

  /** Sends a message of the handshake. A client whose socket is full is dropped. */
  #sendNow(bytes: Uint8Array): void {
    if (this.#closed) return;
    if (!this.seat.send(this.#fd, bytes)) this.close();
  }

  ready(events: number): void {
    this.#budget.startTurn();
    if ((events & EPOLLOUT) !== 0) this.runDeferred();
    if ((events & EPOLLHUP) !== 0 && !this.hasLeft) this.leaveIfGone(true);
    if ((events & EPOLLIN) !== 0 && !this.#stalled && !this.hasLeft) this.#receive();
    else if ((events & (EPOLLERR | EPOLLHUP)) !== 0) this.close();
    this.#wake.look(this, this.#watched);
  }

  #receive(): void {
    if (this.#reader.bytes > 0) this.#consume(); // The work of a turn may have ended within it.
    for (let i = 0; i < MOST_RECEIVES && this.#isTaking && !this.#longRead.isActive; i++) {
      const got = this.#reader.receive();
      if (got <= 0) {
        if (got === 0 || (got !== -Errno.EAGAIN && got !== -Errno.EINTR)) this.close();
        return;
      }
      const { wasFull } = this.#reader;
      if (this.#part !== NONE && !this.#reader.isFilling) this.#startPart();
      this.#consume();
      if (!wasFull) return;
    }
  }

  /** Whether more requests can be taken now. */
  get #isTaking(): boolean {
    return !this.#closed && !this.#stalled && !this.hasLeft && this.#budget.isLeft && !this.#isIdle;
  }

  /** Processes the received bytes. */
  #consume(): void {
    if (this.#handshake.stage !== "transmission" && !this.#held) this.#negotiate();
    if (this.#handshake.stage === "transmission") {
      while (this.#isTaking && (this.#longRead.isActive || this.#reader.bytes > 0)) {
        if (!this.#step()) break;
      }
    }
    this.#noteWaiting();
  }

  /** Does one step of processing; false when it has to wait. */
  #step(): boolean {
    const reader = this.#reader;
    if (this.#longRead.isActive) return this.#continueRead();
    if (reader.isSkipping) reader.skipReceived();
    else if (reader.isFilling) {
      if (reader.fill()) this.#startPart();
    } else if (this.#writeHead !== NONE) this.#nextPart();
    else return reader.bytes >= REQUEST_BYTES && this.#request();
    return true;
  }

  /** Tells the claim whether slots wait for the client to receive replies or to send data. */
  #noteWaiting(): void {
    // The kernel's client does not keep slots longer than needed.
    if (this.kind.style === "none" || this.#closed) return;
    const wantsData = this.#writeHead !== NONE && !this.#stalled;
    if (this.#replies.isBlocked || wantsData) this.#claim.waitForPeer();
    else this.#claim.peerMoved();
  }

  #negotiate(): void {
    const { buffer } = this.seat.memory.bytes;
    this.#reader.take(
      this.#handshake.consume(new DataView(buffer, this.#reader.at, this.#reader.bytes)),
    );
    this.#negotiated();
  }

  #negotiated(): void {
    const { stage } = this.#handshake;
    this.#replies.structured = this.#handshake.structuredReplies;
    this.#replies.contexts = this.#handshake.contexts;
    if (stage === "closed") this.close();
    if (stage !== "transmission" || this.#closed) return;
    this.#host.negotiated(this);
    this.#host.vbd.requests.order.ownerCame(this);
  }

  leaveIfGone(isGone = waitForDescriptor(this.#fd, POLLRDHUP, 0)): void {
    if (!isGone || this.#handshake.stage !== "transmission") return;
    this.#budget.lift();
    if (this.#isTaking && !this.#longRead.isActive) this.#receive();
    if (!this.hasLeft) this.close();
  }

  /** Starts a part whose data is complete, and takes a slot for the next part. */
  #startPart(): void {
    const { slots } = this.#host;
    const part = this.#part;
    const head = this.#writeHead;
    const done = slots.totalLength[head] - this.#writeLeft - slots.length[part];
    this.#part = NONE;
    this.#claim.peerMoved();
    this.#budget.takeData(slots.length[part]);
    beginPart(this.#host, part, done, this);
    if (this.#writeLeft > 0) return this.#nextPart();
    this.#writeHead = NONE;
    this.#partDone(head);
  }

  /** Takes a slot for the next part of a write. Without one the connection waits. */
  #nextPart(): void {
    const part = this.#takeSlots(Math.min(this.#writeLeft, SLOT_BYTES));
    if (part === NONE) return;
    this.#host.slots.head[part] = this.#writeHead;
    this.#writeLeft -= this.#host.slots.length[part];
    this.#expectPart(part);
  }

  /** Receives the next data into a part. */
  #expectPart(part: number): void {
    const { vbd, slots } = this.#host;
    this.#part = part;
    const at = vbd.requests.slotOffset(part);
    this.#reader.expect(at, slots.length[part], this.#writeLeft === 0);
  }

  /** Takes the next request from the buffer; false when it has to wait. */
  #request(): boolean {
    const { view } = this.seat.memory;
    const reader = this.#reader;
    const { at } = reader;
    if (view.getUint32(at, false) !== NBD_REQUEST_MAGIC) {
      this.close();
      return false;
    }
    const flags = view.getUint16(at + 4, false);
    const command = view.getUint16(at + 6, false);
    const offset = view.getUint32(at + 16, false) * 0x1_0000_0000 + view.getUint32(at + 20, false);
    const length = view.getUint32(at + 24, false);
    if (command === NBD_CMD_DISC) return this.#leave();
    const refusal = refusalOf(command, flags, this.#handshake, offset, length) ||
      refusalBeyond(command, offset, length, this.#host.vbd.sectors * SECTOR_BYTES);
    const dataBytes = carriesData(command) && refusal === 0 ? length : 0;
    const isRead = command === NBD_CMD_READ;
    // A write takes slots as its data arrives, and a long read for each of its pieces.
    if (isRead && dataBytes > SLOT_BYTES) {
      const isLong = dataBytes > READ_PIECE_BYTES || !this.#canTake(dataBytes);
      if (isLong) return this.#startLongRead(at);
    }
    const head = this.#takeSlots(isRead ? dataBytes : Math.min(dataBytes, SLOT_BYTES));
    if (head === NONE) return false;
    reader.take(REQUEST_BYTES);
    this.#budget.takeRequest(isRead ? dataBytes : 0);
    putRequest(this.#host.slots, head, view, at, packed(command, flags));
    if (!isRead) reader.expectsLargeWrites = false;
    if (refusal !== 0) this.#refuse(head, command, length, refusal);
    else if (command === NBD_CMD_WRITE && length > 0) this.#startWrite(head);
    else this.#begin(head);
    return true;
  }

  #opened(head: number): void {
    this.#inFlight++;
    this.#host.meter.begin(head, this.#host.slots.command[head] & 0xff);
  }

  #ended(head: number, errno: number): void {
    const { meter, slots } = this.#host;
    this.#inFlight--;
    meter.end(head, slots.command[head] & 0xff, slots.totalLength[head] / SECTOR_BYTES, errno);
  }

  /** Continues in a new turn after the work of one turn was done. */
  nextTurn(): void {
    this.#budget.startTurn();
    if (this.#wake.take(this.#watched)) this.#receive();
    this.#host.makeDue(this);
  }

  /** Starts a write, whose data comes next. `partsLeft` is one more until all parts have started. */
  #startWrite(head: number): void {
    const { slots } = this.#host;
    this.#reader.expectsLargeWrites = slots.totalLength[head] >= LARGE_WRITE_BYTES;
    this.#opened(head);
    this.#writeHead = head;
    this.#writeLeft = slots.totalLength[head] - slots.length[head];
    this.#expectPart(head);
  }

  #startLongRead(at: number): boolean {
    this.#longRead.start(this.seat.memory.view, at);
    this.#reader.take(REQUEST_BYTES);
    this.#budget.takeRequest(0);
    this.#updateWatch();
    return true;
  }

  /** Starts the next piece of a long read; false when it waits for requests in flight or slots. */
  #continueRead(): boolean {
    if (this.#inFlight > 0) return false;
    const longRead = this.#longRead;
    if (longRead.isDone) {
      longRead.end();
      this.#updateWatch();
      return true;
    }
    const head = longRead.takePiece(this.#host.slots, this.#claim);
    if (head === NONE) return this.#stall();
    this.#budget.takeData(this.#host.slots.totalLength[head]);
    this.#begin(head);
    return true;
  }

  #refuse(head: number, command: number, length: number, errno: number): void {
    if (command === NBD_CMD_WRITE) this.#reader.skip(length);
    this.#host.slots.error[head] = errno;
    this.#opened(head);
    this.#host.slots.partsLeft[head] = 1;
    this.requestDone(head, errno);
  }

  /** Whether there are slots for `dataBytes`. */
  #canTake(dataBytes: number): boolean {
    const parts = partsOf(dataBytes);
    return this.#claim.mayTake(parts) === parts;
  }

  /** Takes the slots for `dataBytes`; without them it returns -1 and the connection waits. */
  #takeSlots(dataBytes: number): number {
    if (this.#canTake(dataBytes)) {
      return takeParts(this.#host.slots, this.#claim, partsOf(dataBytes), dataBytes);
    }
    this.#stall();
    return NONE;
  }

  #stall(): false {
    this.#stalled = true;
    this.#claim.wait();
    this.#updateWatch();
    return false;
  }

  slotsFree(): void {
    if (this.#closed || !this.#stalled) return;
    this.#stalled = false;
    this.#consume();
    this.#updateWatch();
  }

  giveUpSlots(why: string): void {
    this.#host.hangUp(this, why);
  }

  /** Starts a request that needs no data of the client. */
  #begin(head: number): void {
    this.#opened(head);
    beginRequest(this.#host, head, this.#replies, this);
  }

  requestDone(slot: number, errno: number): void {
    const { slots } = this.#host;
    const head = slots.head[slot];
    if (errno !== 0 && slots.error[head] === 0) slots.error[head] = errno;
    // A write releases its parts as they end. Its head is released with the reply.
    const isWrite = (slots.command[head] & 0xff) === NBD_CMD_WRITE;
    if (isWrite && slot !== head) releaseParts(slots, this.#claim, slot);
    this.#partDone(head);
  }

  #partDone(head: number): void {
    const { slots } = this.#host;
    if (--slots.partsLeft[head] > 0) return;
    this.#ended(head, slots.error[head]);
    slots.command[head] &= 0xff;
    if (this.#closed) {
      releaseParts(slots, this.#claim, head);
      this.#retireWhenDone();
    } else {
      this.#replies.push(head);
      this.#host.makeDue(this);
      // The first part of the reply was sent without an error. Only closing can report this one.
      if (slots.error[head] !== 0 && this.#longRead.fail(slots, head)) this.close();
    }
  }

  runDeferred(): void {
    if (this.#closed) return;
    const result = this.#replies.send();
    if (result < 0 && result !== -Errno.EAGAIN && result !== -Errno.EINTR) return this.close();
    if (this.hasLeft && this.#inFlight === 0 && this.#replies.isEmpty) return this.close();
    this.#budget.repliesSent();
    if (this.#longRead.isActive || this.#reader.bytes > 0) this.#consume();
    else this.#noteWaiting();
    this.#updateWatch();
  }

  #updateWatch(): void {
    const receiving = !this.#stalled && !this.hasLeft && !this.#longRead.isActive && !this.#isIdle;
    const wanted = (receiving ? EPOLLIN : 0) | (this.#replies.isEmpty ? 0 : EPOLLOUT);
    if (this.#closed) return;
    if (wanted !== this.#watched) this.#host.scheduler.rewatch(this.#fd, wanted);
    this.#watched = wanted;
    this.#wake.look(this, wanted);
  }

  /** The client sent NBD_CMD_DISC. Earlier requests still get replies. */
  #leave(): boolean {
    this.hasLeft = true;
    this.#host.vbd.requests.order.ownerWent(this);
    this.#reader.clear();
    this.#host.makeDue(this);
    return false;
  }

  /** Drops the client. Its requests in flight end by themselves. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#host.scheduler.unwatch(this.#fd);
    this.#abandonWrite();
    this.#replies.close();
    this.#claim.end();
    this.#budget.end();
    this.#host.vbd.requests.order.ownerWent(this);
    this.#host.gone(this, this.#fd, this.kind);
    this.#retireWhenDone();
  }

  /** Gives up a write whose data is incomplete. Parts that have started end by themselves. */
  #abandonWrite(): void {
    const { slots } = this.#host;
    const head = this.#writeHead;
    if (head === NONE) return;
    if (this.#part !== NONE && this.#part !== head) releaseParts(slots, this.#claim, this.#part);
    this.#part = NONE;
    this.#writeHead = NONE;
    this.#reader.abandon();
    if (--slots.partsLeft[head] > 0) return;
    this.#ended(head, Errno.ECONNRESET);
    releaseParts(slots, this.#claim, head);
  }

  #retireWhenDone(): void {
    if (this.#inFlight === 0) this.#host.retire(this);
  }
}
