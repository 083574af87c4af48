import { Errno } from "../../../ffi/errno.ts";
import { Arena, memoryAddress, zeroMemory } from "../../../ffi/memory.ts";
import {
  IOVEC_BYTES,
  putIovec,
  putIovecCount,
  putMsghdr,
  receiveMessage,
} from "../../../ffi/sockets.ts";
import type { TlsStream } from "../../../ffi/tls_stream.ts";
import {
  CHUNK_HEADER_BYTES,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_READ,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  SIMPLE_REPLY_BYTES,
} from "../../nbd/protocol.ts";
import { SECTOR_BYTES } from "../driver.ts";
import type { PieceTable } from "../pieces.ts";
import { Fragments } from "./fragments.ts";
import type { Operations } from "./operations.ts";

const NONE = -1;
const IOVECS_AT = 64;
const BUFFER_AT = 128;
const BUFFER_BYTES = 64 * 1024 - BUFFER_AT;
/** Bytes of a chunk of data up to the data. */
const DATA_HEADER_BYTES = CHUNK_HEADER_BYTES + 8;
const HOLE_BYTES = CHUNK_HEADER_BYTES + 12;
const EXTENT_BYTES = 8;
/** Extents of one answer that are looked at; what follows them is asked for again. */
const MOST_EXTENTS = 4096;
/** Receives of one turn, so that one busy server does not keep others waiting. */
const MOST_RECEIVES = 64;

/** Who is told of answers. */
export interface AnswerSink {
  /** An operation was answered, and is not in use by the server any more. */
  answered(operation: number, errno: number): void;
  /** So was one for extents, with one at least: pairs of 32 bits in `view`, bytes and state. */
  answeredExtents(operation: number, view: DataView, at: number, count: number): void;
}

/**
 * Receives the server's replies. The data of a read goes straight to the memory of its request: while
 * reads are in flight, at most one header is received into the buffer here.
 */
export class ReplyReceiver {
  readonly #pieces: PieceTable;
  readonly #operations: Operations;
  readonly #sink: AnswerSink;
  readonly #fragments = new Fragments();
  readonly #arena = new Arena(BUFFER_AT + BUFFER_BYTES);
  readonly #msghdr = this.#arena.pointerAt(0);
  /** The TLS of the connection; null without. */
  #tls: TlsStream | null = null;
  /** Why TLS failed; empty for another end. */
  why = "";
  #structured = false;
  #allocationId: number | null = null;
  /** What was received and not worked through. */
  #start = BUFFER_AT;
  #end = BUFFER_AT;
  /** Bytes that the message at `#start` has at least. */
  #needed = SIMPLE_REPLY_BYTES;
  /** Operation whose data comes in: where to, how much is missing, whether it is the last. */
  #reading = NONE;
  #memorySector = 0;
  #filled = 0;
  #missing = 0;
  #isLast = false;
  /** Iovecs of the next receive. */
  #iovecs = 0;
  /** Bytes of an answer that nobody wants. */
  #skip = 0;
  /** Counts connections: a sink may end this one while it is told of an answer. */
  #connection = 0;

  constructor(pieces: PieceTable, operations: Operations, sink: AnswerSink) {
    this.#pieces = pieces;
    this.#operations = operations;
    this.#sink = sink;
    putMsghdr(this.#arena.view, 0, this.#arena.sector, IOVECS_AT, 0);
  }

  /** Forgets all of a connection before another begins, or after it. */
  reset(structured: boolean, allocationId: number | null, tls: TlsStream | null = null): void {
    this.#tls = tls;
    if (tls !== null) this.why = "";
    this.#structured = structured;
    this.#allocationId = allocationId;
    this.#start = BUFFER_AT;
    this.#end = BUFFER_AT;
    this.#reading = NONE;
    this.#missing = 0;
    this.#skip = 0;
    this.#connection++;
  }

  /**
   * Receives what there is. Returns 0, or a negative errno when the connection is of no use any
   * more: -EPROTO when the server breaks the protocol.
   */
  receive(fd: number): number {
    const connection = this.#connection;
    for (let i = 0; i < MOST_RECEIVES; i++) {
      const wanted = this.#prepare();
      const got = this.#tls === null
        ? receiveMessage(fd, this.#msghdr)
        : this.#tls.receive(this.#msghdr, this.#arena.view, IOVECS_AT, this.#iovecs);
      if (got < 0 && this.#tls !== null) this.why = this.#tls.why;
      if (got === 0) return -Errno.ECONNRESET;
      if (got === -Errno.EAGAIN || got === -Errno.EINTR) return 0;
      if (got < 0) return got;
      const data = Math.min(got, this.#missing);
      this.#missing -= data;
      this.#filled += data;
      this.#end += got - data;
      const fine = this.#dataDone(connection) && this.#consume(connection);
      if (connection !== this.#connection) return 0;
      if (!fine) return -Errno.EPROTO;
      if (got < wanted) return 0;
    }
    return 0;
  }

  /** Writes the message header for the next receive; returns the bytes that it has room for. */
  #prepare(): number {
    const { view, sector, bytes } = this.#arena;
    if (this.#start > BUFFER_AT) {
      bytes.copyWithin(BUFFER_AT, this.#start, this.#end);
      this.#end -= this.#start - BUFFER_AT;
      this.#start = BUFFER_AT;
    }
    const have = this.#end - this.#start;
    if (have === 0) this.#needed = SIMPLE_REPLY_BYTES;
    const most = this.#skip > 0 ? this.#skip : this.#headerBytes - have;
    const behind = Math.min(most, BUFFER_BYTES - have);
    let iovecs = 0;
    if (this.#missing > 0) {
      const at = IOVECS_AT + IOVEC_BYTES * iovecs++;
      putIovec(view, at, this.#memorySector, this.#filled, this.#missing);
    }
    const at = IOVECS_AT + IOVEC_BYTES * iovecs++;
    putIovec(view, at, sector, this.#end, behind);
    putIovecCount(view, 0, iovecs);
    this.#iovecs = iovecs;
    return this.#missing + behind;
  }

  /** The most bytes that can be received from the start of a message on without data among them. */
  get #headerBytes(): number {
    if (this.#operations.reads === 0) return BUFFER_BYTES;
    const header = this.#structured ? DATA_HEADER_BYTES : SIMPLE_REPLY_BYTES;
    return Math.max(header, this.#needed);
  }

  /** Ends a read whose data has come; false for a server that breaks the protocol. */
  #dataDone(connection: number): boolean {
    if (this.#reading === NONE || this.#missing > 0) return true;
    const operation = this.#reading;
    this.#reading = NONE;
    return !this.#isLast || this.#finish(operation, connection);
  }

  /** Works through what was received; false for a server that breaks the protocol. */
  #consume(connection: number): boolean {
    while (connection === this.#connection && this.#start < this.#end) {
      const have = this.#end - this.#start;
      if (this.#skip > 0) {
        const skipped = Math.min(this.#skip, have);
        this.#skip -= skipped;
        this.#start += skipped;
        continue;
      }
      if (this.#missing > 0) return false;
      this.#needed = SIMPLE_REPLY_BYTES;
      if (have < SIMPLE_REPLY_BYTES) return true;
      const magic = this.#arena.view.getUint32(this.#start, false);
      if (magic === NBD_SIMPLE_REPLY_MAGIC) {
        if (!this.#simple(connection)) return false;
      } else if (magic !== NBD_STRUCTURED_REPLY_MAGIC || !this.#structured) return false;
      else {
        this.#needed = this.#chunkNeeds(have);
        if (this.#needed < 0) return false;
        if (have < this.#needed) return true;
        if (!this.#chunk(connection)) return false;
      }
    }
    return true;
  }

  #simple(connection: number): boolean {
    const { view } = this.#arena;
    const at = this.#start;
    const errno = view.getUint32(at + 4, false);
    const operation = view.getUint32(at + 12, false);
    if (!this.#operations.isInUse(view.getUint32(at + 8, false), operation)) return false;
    this.#start += SIMPLE_REPLY_BYTES;
    const command = this.#pieces.kind[this.#operations.piece[operation]];
    if (errno !== 0) {
      this.#operations.error[operation] = localErrno(errno);
    } else if (command === NBD_CMD_BLOCK_STATUS) return false;
    else if (command === NBD_CMD_READ) {
      if (this.#structured) return false;
      const bytes = this.#pieces.count[this.#operations.piece[operation]] * SECTOR_BYTES;
      return this.#expectData(operation, 0, bytes, true);
    }
    return this.#finish(operation, connection);
  }

  /** Receives the next bytes to where they belong in a read. */
  #expectData(operation: number, skippedBytes: number, bytes: number, isLast: boolean): boolean {
    const piece = this.#operations.piece[operation];
    this.#operations.receivedBytes[operation] += bytes;
    this.#reading = operation;
    this.#memorySector = this.#pieces.memory[piece];
    this.#filled = skippedBytes;
    this.#missing = bytes;
    this.#isLast = isLast;
    return true;
  }

  /** Bytes of a chunk that must be there before it is looked at; -1: it makes no sense. */
  #chunkNeeds(have: number): number {
    if (have < CHUNK_HEADER_BYTES) return CHUNK_HEADER_BYTES;
    const { view } = this.#arena;
    const type = view.getUint16(this.#start + 6, false);
    const length = view.getUint32(this.#start + 16, false);
    if (type === NBD_REPLY_TYPE_NONE) return length === 0 ? CHUNK_HEADER_BYTES : NONE;
    if (type === NBD_REPLY_TYPE_OFFSET_DATA) return length > 8 ? DATA_HEADER_BYTES : NONE;
    if (type === NBD_REPLY_TYPE_OFFSET_HOLE) return length === 12 ? HOLE_BYTES : NONE;
    if (type === NBD_REPLY_TYPE_BLOCK_STATUS) {
      if (length < 4 + EXTENT_BYTES || length % EXTENT_BYTES !== 4) return NONE;
      return CHUNK_HEADER_BYTES + Math.min(length, 4 + MOST_EXTENTS * EXTENT_BYTES);
    }
    const isError = (type & 0x8000) !== 0;
    return isError && length >= 6 ? CHUNK_HEADER_BYTES + 6 : NONE;
  }

  #chunk(connection: number): boolean {
    const { view } = this.#arena;
    const at = this.#start;
    const operation = view.getUint32(at + 12, false);
    if (!this.#operations.isInUse(view.getUint32(at + 8, false), operation)) return false;
    const type = view.getUint16(at + 6, false);
    const isLast = (view.getUint16(at + 4, false) & NBD_REPLY_FLAG_DONE) !== 0;
    const length = view.getUint32(at + 16, false);
    this.#start += this.#needed;
    this.#skip = 0;
    if (type === NBD_REPLY_TYPE_NONE) return isLast && this.#finish(operation, connection);
    if (type === NBD_REPLY_TYPE_OFFSET_DATA || type === NBD_REPLY_TYPE_OFFSET_HOLE) {
      return this.#content(operation, at, length, isLast, connection);
    }
    this.#skip = CHUNK_HEADER_BYTES + length - this.#needed;
    if (type === NBD_REPLY_TYPE_BLOCK_STATUS) return this.#extents(operation, at, isLast);
    if (this.#operations.error[operation] === 0) {
      this.#operations.error[operation] = localErrno(view.getUint32(at + 20, false));
    }
    return !isLast || this.#finish(operation, connection);
  }

  /** A part of a read: data, which follows, or zeros. */
  #content(
    operation: number,
    at: number,
    length: number,
    isLast: boolean,
    connection: number,
  ): boolean {
    const { view } = this.#arena;
    const piece = this.#operations.piece[operation];
    if (this.#pieces.kind[piece] !== NBD_CMD_READ) return false;
    const isHole = view.getUint16(at + 6, false) === NBD_REPLY_TYPE_OFFSET_HOLE;
    const offset = view.getUint32(at + 20, false) * 0x1_0000_0000 + view.getUint32(at + 24, false);
    const bytes = isHole ? view.getUint32(at + 28, false) : length - 8;
    const within = offset - this.#pieces.sector[piece] * SECTOR_BYTES;
    const total = this.#pieces.count[piece] * SECTOR_BYTES;
    if (within < 0 || bytes === 0 || within + bytes > total) return false;
    if (bytes < total && !this.#isNew(operation, within, bytes)) return false;
    if (!isHole) return this.#expectData(operation, within, bytes, isLast);
    zeroMemory(memoryAddress(this.#pieces.memory[piece]) + within, bytes);
    this.#operations.receivedBytes[operation] += bytes;
    return !isLast || this.#finish(operation, connection);
  }

  /** Whether no byte of this part came before. Two parts cannot each be all of a read. */
  #isNew(operation: number, within: number, bytes: number): boolean {
    if (this.#operations.receivedBytes[operation] === 0) this.#fragments.clear(operation);
    return this.#fragments.add(operation, within, within + bytes);
  }

  #extents(operation: number, at: number, isLast: boolean): boolean {
    const { view } = this.#arena;
    const piece = this.#operations.piece[operation];
    const isExpected = this.#pieces.kind[piece] === NBD_CMD_BLOCK_STATUS && isLast &&
      view.getUint32(at + CHUNK_HEADER_BYTES, false) === this.#allocationId;
    if (!isExpected) return false;
    const first = CHUNK_HEADER_BYTES + 4;
    this.#sink.answeredExtents(operation, view, at + first, (this.#needed - first) / EXTENT_BYTES);
    return true;
  }

  /** An answer is complete; false when it is not, although the server says so. */
  #finish(operation: number, connection: number): boolean {
    const piece = this.#operations.piece[operation];
    const errno = this.#operations.error[operation];
    if (errno === 0) {
      const command = this.#pieces.kind[piece];
      const expected = command === NBD_CMD_READ ? this.#pieces.count[piece] * SECTOR_BYTES : 0;
      if (this.#operations.receivedBytes[operation] !== expected) return false;
      if (command === NBD_CMD_BLOCK_STATUS) return false;
    }
    if (connection === this.#connection) this.#sink.answered(operation, errno);
    return true;
  }

  /** Unmaps its memory. */
  release(): void {
    this.#connection++;
    this.#arena.release();
  }
}

/** Error numbers on the wire are Linux's; one that cannot be is an I/O error. */
function localErrno(errno: number): number {
  return errno > 0 && errno < 4096 ? errno : Errno.EIO;
}
