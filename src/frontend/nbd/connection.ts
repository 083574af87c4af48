import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT } from "../../../ffi/epoll.ts";
import { Errno } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import type { Arena } from "../../../ffi/memory.ts";
import {
  enlargeSendBuffer,
  IOVEC_BYTES,
  putIovec,
  putMsghdr,
  receiveMessage,
  sendAt,
} from "../../../ffi/sockets.ts";
import type { Deferred } from "../../driver/deferral.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler } from "../../scheduler/scheduler.ts";
import type { SlotWaiter } from "../../vbd/requests.ts";
import { RequestKind, type RequestOwner, SLOT_BYTES } from "../../vbd/slots.ts";
import { kindOf, refusalOf } from "./commands.ts";
import type { ConnectionHost } from "./connection_host.ts";
import { Handshake, type HandshakeStage, LONGEST_REPLY_BYTES } from "./handshake.ts";
import { LongRead, READ_PIECE_BYTES } from "./long_read.ts";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_REQUEST_MAGIC,
  REQUEST_BYTES,
} from "../../nbd/protocol.ts";
import { ReplyQueue } from "./reply_queue.ts";

const NONE = -1;
const RECEIVE_BYTES = 128 * 1024;
/** Where the buffer begins; what the handshake sends lies before it. */
const RECEIVE_AT = 2 * 4096;
const IOVECS_AT = 64;
const SEND_AT = 128;
/** Writes of at least this size are received straight into their slots, header by header. */
const LARGE_WRITE_BYTES = 16 * 1024;
const SEND_BUFFER_BYTES = 4 * 1024 * 1024;
const MOST_EXTENTS = 8192;
/** Receives of one turn, so that one busy client does not keep others waiting. */
const MOST_RECEIVES = 16;
/**
 * Requests that are taken before they are carried out and answered, though more may have been
 * received: the client works on the first answers while the others are being made.
 */
const MOST_REQUESTS = 12;
const SECTOR_BYTES = 512;

/** One client of an export. A fault of the code here ends the client, and nobody else. */
export class NbdConnection implements FdHandler, RequestOwner, SlotWaiter, Deferred, FaultOwner {
  /** Whether it is in its server's list for the end of the turn. */
  deferred = false;
  /** The client asked to disconnect: answers still leave. */
  hasLeft = false;
  readonly #fd: number;
  readonly #host: ConnectionHost;
  readonly #handshake: Handshake;
  readonly #replies: ReplyQueue;
  readonly #memory: Arena;
  /** Where this client's part of the memory begins, and where it receives to. */
  readonly #base: number;
  readonly #receiveAt: number;
  readonly #msghdr: Deno.PointerObject;
  /** What was received and not worked through. */
  #start: number;
  #end: number;
  /** Part of a write that is being filled, and how far. */
  #part = NONE;
  #partFilled = 0;
  /** Head of the write whose data comes in, and its bytes behind the part. */
  #writeHead = NONE;
  #writeLeft = 0;
  readonly #longRead = new LongRead();
  #largeWrites = false;
  /** Bytes of a refused write that are to be thrown away. */
  #skip = 0;
  /** Waits for slots: nothing is received meanwhile. */
  #stalled = false;
  #watched = EPOLLIN;
  #closed = false;
  #inFlight = 0;
  /** Requests taken since answers were last sent. */
  #taken = 0;

  /**
   * @param memoryOffset Of this client's memory in the device's.
   * @param stage "transmission" for a client that sends requests without a handshake.
   */
  constructor(fd: number, memoryOffset: number, host: ConnectionHost, stage: HandshakeStage) {
    this.#fd = fd;
    this.#host = host;
    this.#memory = host.vbd.requests.memory;
    this.#base = memoryOffset;
    this.#receiveAt = memoryOffset + RECEIVE_AT;
    this.#msghdr = this.#memory.pointerAt(memoryOffset);
    this.#start = this.#end = this.#receiveAt;
    this.#replies = new ReplyQueue(host.vbd.requests, host.slots);
    this.#handshake = new Handshake(() => host.describe(), (bytes) => this.#sendNow(bytes));
    enlargeSendBuffer(fd, SEND_BUFFER_BYTES);
    host.scheduler.watch(fd, EPOLLIN, this, this);
    this.#handshake.start(stage);
  }

  get faults(): FaultOwner {
    return this;
  }

  get failed(): boolean {
    return this.#closed;
  }

  fault(error: unknown): void {
    this.#host.vbd.noteFault("a client's connection", error);
    this.close();
  }

  /** Sends a few bytes of the handshake; a client that does not take them is dropped. */
  #sendNow(bytes: Uint8Array): void {
    if (this.#closed) return;
    if (bytes.length > LONGEST_REPLY_BYTES) throw new RangeError("An answer is too long");
    this.#memory.bytes.set(bytes, this.#base + SEND_AT);
    const sent = sendAt(this.#fd, this.#memory.address + this.#base + SEND_AT, bytes.length);
    if (sent !== bytes.length) this.close();
  }

  ready(events: number): void {
    if ((events & EPOLLOUT) !== 0) this.runDeferred();
    if ((events & EPOLLIN) !== 0 && !this.#stalled && !this.hasLeft) this.#receive();
    else if ((events & (EPOLLERR | EPOLLHUP)) !== 0) this.close();
  }

  #receive(): void {
    for (let i = 0; i < MOST_RECEIVES && this.#isTaking && !this.#longRead.isActive; i++) {
      const wanted = this.#part === NONE ? this.#receiveHeaders() : this.#receivePayload();
      if (!wanted) return;
    }
  }

  /** Whether more requests can be taken just now. */
  get #isTaking(): boolean {
    return !this.#closed && !this.#stalled && !this.hasLeft && this.#taken < MOST_REQUESTS;
  }

  /** Receives into the buffer; false when the socket has no more just now. */
  #receiveHeaders(): boolean {
    this.#makeRoom();
    const room = this.#receiveAt + RECEIVE_BYTES - this.#end;
    const missing = REQUEST_BYTES - (this.#end - this.#start);
    const most = this.#largeWrites && missing > 0 ? missing : room;
    const { view, address } = this.#memory;
    putIovec(view, this.#base + IOVECS_AT, address + this.#end, most);
    putMsghdr(view, this.#base, address + this.#base + IOVECS_AT, 1);
    const got = receiveMessage(this.#fd, this.#msghdr);
    if (!this.#take(got)) return false;
    this.#end += got;
    this.#consume();
    return got === most;
  }

  /** Receives the rest of a part into its slot, and what follows the write's data. */
  #receivePayload(): boolean {
    const { vbd, slots } = this.#host;
    const part = this.#part;
    const missing = slots.length[part] - this.#partFilled;
    const { view, address } = this.#memory;
    const isLast = this.#writeLeft === 0;
    const behind = isLast ? (this.#largeWrites ? REQUEST_BYTES : RECEIVE_BYTES) : 0;
    const to = vbd.requests.slotAddress(part) + this.#partFilled;
    putIovec(view, this.#base + IOVECS_AT, to, missing);
    putIovec(view, this.#base + IOVECS_AT + IOVEC_BYTES, address + this.#receiveAt, behind);
    putMsghdr(view, this.#base, address + this.#base + IOVECS_AT, isLast ? 2 : 1);
    const got = receiveMessage(this.#fd, this.#msghdr);
    if (!this.#take(got)) return false;
    this.#start = this.#receiveAt;
    this.#end = this.#receiveAt + Math.max(0, got - missing);
    this.#partFilled += Math.min(got, missing);
    if (this.#partFilled === slots.length[part]) this.#startPart();
    this.#consume();
    return got === missing + behind;
  }

  /** Looks at the result of a receive; false when there is nothing to go on with. */
  #take(got: number): boolean {
    if (got > 0) return true;
    if (got === 0 || (got !== -Errno.EAGAIN && got !== -Errno.EINTR)) this.close();
    return false;
  }

  #makeRoom(): void {
    if (this.#start === this.#end) {
      this.#start = this.#end = this.#receiveAt;
    } else if (this.#receiveAt + RECEIVE_BYTES - this.#end < RECEIVE_BYTES / 2) {
      this.#memory.bytes.copyWithin(this.#receiveAt, this.#start, this.#end);
      this.#end -= this.#start - this.#receiveAt;
      this.#start = this.#receiveAt;
    }
  }

  /** Works through what was received. */
  #consume(): void {
    if (this.#handshake.stage !== "transmission") this.#negotiate();
    if (this.#handshake.stage !== "transmission") return;
    while (this.#isTaking && (this.#longRead.isActive || this.#start < this.#end)) {
      if (this.#longRead.isActive) {
        if (!this.#continueRead()) return;
      } else if (this.#skip > 0) this.#skipPayload();
      else if (this.#part !== NONE) this.#fillFromBuffer();
      else if (this.#writeHead !== NONE) this.#nextPart();
      else if (this.#end - this.#start < REQUEST_BYTES || !this.#request()) return;
    }
  }

  #negotiate(): void {
    const view = new DataView(
      this.#memory.bytes.buffer,
      this.#start,
      this.#end - this.#start,
    );
    this.#start += this.#handshake.consume(view);
    this.#replies.structured = this.#handshake.structuredReplies;
    if (this.#handshake.stage === "closed") this.close();
  }

  #skipPayload(): void {
    const skipped = Math.min(this.#skip, this.#end - this.#start);
    this.#skip -= skipped;
    this.#start += skipped;
  }

  #fillFromBuffer(): void {
    const { vbd, slots } = this.#host;
    const part = this.#part;
    const bytes = Math.min(slots.length[part] - this.#partFilled, this.#end - this.#start);
    const to = vbd.requests.slotOffset(part) + this.#partFilled;
    this.#memory.bytes.copyWithin(to, this.#start, this.#start + bytes);
    this.#start += bytes;
    this.#partFilled += bytes;
    if (this.#partFilled === slots.length[part]) this.#startPart();
  }

  /** A part has all its data and starts; the next one is taken, or the write is complete. */
  #startPart(): void {
    const { vbd, slots } = this.#host;
    const part = this.#part;
    const head = this.#writeHead;
    const done = slots.totalLength[head] - this.#writeLeft - slots.length[part];
    const sector = (slots.offset[head] + done) / SECTOR_BYTES;
    const count = slots.length[part] / SECTOR_BYTES;
    const fua = ((slots.command[head] >>> 8) & NBD_CMD_FLAG_FUA) !== 0;
    this.#part = NONE;
    slots.partsLeft[head]++;
    vbd.requests.start(part, RequestKind.Write, sector, count, fua, this);
    if (this.#writeLeft > 0) return this.#nextPart();
    this.#writeHead = NONE;
    this.#partDone(head);
  }

  /** Takes a slot for the next part of a write; without one, the connection stalls. */
  #nextPart(): void {
    const part = this.#takeSlots(Math.min(this.#writeLeft, SLOT_BYTES));
    if (part === NONE) return;
    this.#host.slots.head[part] = this.#writeHead;
    this.#writeLeft -= this.#host.slots.length[part];
    this.#part = part;
    this.#partFilled = 0;
  }

  /** Takes the request whose header is next in the buffer; false when it has to wait. */
  #request(): boolean {
    const { view } = this.#memory;
    const at = this.#start;
    if (view.getUint32(at, false) !== NBD_REQUEST_MAGIC) {
      this.close();
      return false;
    }
    const flags = view.getUint16(at + 4, false);
    const command = view.getUint16(at + 6, false);
    const offset = view.getUint32(at + 16, false) * 0x1_0000_0000 + view.getUint32(at + 20, false);
    const length = view.getUint32(at + 24, false);
    if (command === NBD_CMD_DISC) return this.#leave();
    const carriesData = command === NBD_CMD_READ || command === NBD_CMD_WRITE;
    const refusal = this.#refusal(command, flags, offset, length);
    const dataBytes = carriesData && refusal === 0 ? length : 0;
    if (command === NBD_CMD_READ && dataBytes > READ_PIECE_BYTES) {
      this.#longRead.start(view, at);
      this.#start += REQUEST_BYTES;
      this.#updateWatch();
      return true;
    }
    // A write takes slots as its data comes.
    const head = this.#takeSlots(
      command === NBD_CMD_WRITE ? Math.min(dataBytes, SLOT_BYTES) : dataBytes,
    );
    if (head === NONE) return false;
    this.#start += REQUEST_BYTES;
    this.#host.scheduler.noteRequest();
    if (++this.#taken === MOST_REQUESTS) this.#host.makeDue(this);
    const { slots } = this.#host;
    slots.cookieHigh[head] = view.getUint32(at + 8, false);
    slots.cookieLow[head] = view.getUint32(at + 12, false);
    slots.command[head] = command | (flags << 8);
    slots.offset[head] = offset;
    slots.totalLength[head] = length;
    slots.announced[head] = length;
    slots.error[head] = 0;
    if (command !== NBD_CMD_READ) this.#largeWrites = false;
    if (refusal !== 0) this.#refuse(head, command, length, refusal);
    else if (command === NBD_CMD_WRITE && length > 0) this.#startWrite(head);
    else this.#begin(head);
    return true;
  }

  /** The error number for a request that is refused before it starts; 0 for others. */
  #refusal(command: number, flags: number, offset: number, length: number): number {
    if (command === NBD_CMD_BLOCK_STATUS && !this.#handshake.baseAllocation) return Errno.EINVAL;
    const refusal = refusalOf(command, flags, offset, length);
    if (refusal !== 0 || length <= SLOT_BYTES) return refusal;
    // What is done in parts is not to fail in the middle: the device looks at each part alone.
    if (offset + length <= this.#host.vbd.sectors * SECTOR_BYTES) return 0;
    return command === NBD_CMD_WRITE ? Errno.ENOSPC : Errno.EINVAL;
  }

  /** Its data comes next. One part that is yet to come holds the answer back. */
  #startWrite(head: number): void {
    const { slots } = this.#host;
    this.#largeWrites = slots.totalLength[head] >= LARGE_WRITE_BYTES;
    this.#inFlight++;
    this.#writeHead = head;
    this.#writeLeft = slots.totalLength[head] - slots.length[head];
    this.#part = head;
    this.#partFilled = 0;
  }

  /** Takes a long read a step further; false when it has to wait for what is under way. */
  #continueRead(): boolean {
    if (this.#inFlight > 0) return false;
    const bytes = this.#longRead.nextBytes();
    if (bytes === 0) {
      this.#updateWatch();
      return true;
    }
    const head = this.#takeSlots(bytes);
    if (head === NONE) return false;
    this.#longRead.putPiece(this.#host.slots, head, bytes);
    this.#begin(head);
    return true;
  }

  #refuse(head: number, command: number, length: number, errno: number): void {
    if (command === NBD_CMD_WRITE) this.#skip = length;
    this.#host.slots.error[head] = errno;
    this.#inFlight++;
    this.#host.slots.partsLeft[head] = 1;
    this.requestDone(head, errno);
  }

  /** Takes as many slots as the data needs; -1, and nothing received, until there are so many. */
  #takeSlots(dataBytes: number): number {
    const { requests } = this.#host.vbd;
    const parts = Math.max(1, Math.ceil(dataBytes / SLOT_BYTES));
    // Who holds slots takes more only while it leaves others as many.
    const held = this.#replies.slotsHeld;
    const needed = held === 0 ? parts : held + 2 * parts;
    if (requests.freeSlots < needed) {
      this.#stalled = true;
      requests.waitForSlots(this);
      this.#updateWatch();
      return NONE;
    }
    const { slots } = this.#host;
    const head = requests.takeSlot();
    let left = dataBytes;
    for (let part = head;; part = slots.next[part]) {
      slots.head[part] = head;
      slots.length[part] = Math.min(left, SLOT_BYTES);
      left -= slots.length[part];
      slots.next[part] = left > 0 ? requests.takeSlot() : NONE;
      if (left === 0) break;
    }
    slots.partsLeft[head] = parts;
    this.#replies.slotsHeld += parts;
    return head;
  }

  slotsFree(): void {
    if (this.#closed || !this.#stalled) return;
    this.#stalled = false;
    this.#consume();
    this.#updateWatch();
  }

  /** Starts a request that is complete. */
  #begin(head: number): void {
    const { vbd, slots } = this.#host;
    const command = slots.command[head] & 0xff;
    const flags = slots.command[head] >>> 8;
    slots.command[head] = command;
    const kind = kindOf(command, flags);
    const total = slots.totalLength[head];
    const fua = (flags & NBD_CMD_FLAG_FUA) !== 0 && command !== NBD_CMD_READ;
    let sector = slots.offset[head] / SECTOR_BYTES;
    this.#inFlight++;
    if (command === NBD_CMD_BLOCK_STATUS) {
      const most = (flags & NBD_CMD_FLAG_REQ_ONE) !== 0 ? 1 : MOST_EXTENTS;
      return vbd.requests.startStatus(head, sector, total / SECTOR_BYTES, most, this);
    }
    if (command !== NBD_CMD_READ && command !== NBD_CMD_WRITE) {
      return vbd.requests.start(head, kind, sector, total / SECTOR_BYTES, fua, this);
    }
    for (let part = head; part !== NONE;) {
      // The last part may end, and with it the request, while it is being started.
      const next = slots.next[part];
      const sectors = slots.length[part] / SECTOR_BYTES;
      vbd.requests.start(part, kind, sector, sectors, fua, this);
      sector += sectors;
      part = next;
    }
  }

  requestDone(slot: number, errno: number): void {
    const { slots } = this.#host;
    const head = slots.head[slot];
    if (errno !== 0 && slots.error[head] === 0) slots.error[head] = errno;
    // A write gives its parts back one by one; its head waits for all of them.
    const isWrite = (slots.command[head] & 0xff) === NBD_CMD_WRITE;
    if (isWrite && slot !== head) this.#replies.releaseParts(slot);
    this.#partDone(head);
  }

  #partDone(head: number): void {
    const { slots } = this.#host;
    if (--slots.partsLeft[head] > 0) return;
    this.#inFlight--;
    slots.command[head] &= 0xff;
    if (this.#closed) {
      this.#replies.releaseParts(head);
      this.#retireWhenDone();
    } else {
      this.#replies.push(head);
      this.#host.makeDue(this);
      // Part of the answer has left without an error: there is only hanging up.
      if (slots.error[head] !== 0 && this.#longRead.fail(slots, head)) this.close();
    }
  }

  /** Sends the answers that wait. */
  runDeferred(): void {
    if (this.#closed) return;
    const result = this.#replies.send(this.#fd);
    if (result < 0 && result !== -Errno.EAGAIN && result !== -Errno.EINTR) return this.close();
    if (this.hasLeft && this.#inFlight === 0 && this.#replies.isEmpty) return this.close();
    this.#taken = 0;
    if (this.#longRead.isActive || this.#start < this.#end) this.#consume();
    this.#updateWatch();
  }

  #updateWatch(): void {
    const receiving = !this.#stalled && !this.hasLeft && !this.#longRead.isActive;
    const wanted = (receiving ? EPOLLIN : 0) | (this.#replies.isEmpty ? 0 : EPOLLOUT);
    if (wanted === this.#watched || this.#closed) return;
    this.#watched = wanted;
    this.#host.scheduler.rewatch(this.#fd, wanted);
  }

  /** The client is done: what it asked for before is still answered. */
  #leave(): boolean {
    this.hasLeft = true;
    this.#start = this.#end;
    this.#host.makeDue(this);
    return false;
  }

  /** Drops the client. Its requests under way end by themselves. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#host.scheduler.unwatch(this.#fd);
    closeFile(this.#fd);
    this.#abandonWrite();
    this.#replies.close();
    this.#host.gone(this);
    this.#retireWhenDone();
  }

  /** The data of a write will not come any more; parts that have started end by themselves. */
  #abandonWrite(): void {
    const { slots } = this.#host;
    const head = this.#writeHead;
    if (head === NONE) return;
    if (this.#part !== NONE && this.#part !== head) this.#replies.releaseParts(this.#part);
    this.#part = NONE;
    this.#writeHead = NONE;
    if (--slots.partsLeft[head] > 0) return;
    this.#inFlight--;
    this.#replies.releaseParts(head);
  }

  #retireWhenDone(): void {
    if (this.#inFlight === 0) this.#host.retire(this);
  }

  /** Unmaps its memory. The server calls this when nothing can be looking at it any more. */
  release(): void {
    this.#replies.release();
    this.#host.vbd.requests.giveClientMemory(this.#base);
  }
}
