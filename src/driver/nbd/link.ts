import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT } from "../../../ffi/epoll.ts";
import { Errno, errnoName } from "../../../ffi/errno.ts";
import { enlargeSendBuffer, resetOnClose } from "../../../ffi/sockets.ts";
import type { TlsStream } from "../../../ffi/tls_stream.ts";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
} from "../../nbd/protocol.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler } from "../../scheduler/scheduler.ts";
import type { Deferred } from "../deferral.ts";
import type { ImageContext } from "../driver.ts";
import { TracedKind } from "../../trace/records.ts";
import type { TracedImage } from "../../trace/tracing.ts";
import { PieceLists } from "../pieces.ts";
import { closeConnected, type Connected } from "./dial.ts";
import { Operations } from "./operations.ts";
import { type AnswerSink, ReplyReceiver } from "./reply_receiver.ts";
import { RequestSender } from "./request_sender.ts";

const NONE = -1;
const SEND_BUFFER_BYTES = 4 * 1024 * 1024;

/**
 * How long a server may take for one request. Beyond that the connection counts as lost: the request
 * is made again on another one, as after a server that hung up.
 */
const REQUEST_TIMEOUT_MS = 30_000;
/** How often the oldest request is looked at. */
const WATCH_MS = 5_000;

/** By command: the kind of request that a trace shows. */
const TRACED_KINDS = new Uint8Array(NBD_CMD_BLOCK_STATUS + 1);
TRACED_KINDS[NBD_CMD_READ] = TracedKind.Read;
TRACED_KINDS[NBD_CMD_WRITE] = TracedKind.Write;
TRACED_KINDS[NBD_CMD_FLUSH] = TracedKind.Flush;
TRACED_KINDS[NBD_CMD_TRIM] = TracedKind.Discard;
TRACED_KINDS[NBD_CMD_WRITE_ZEROES] = TracedKind.Zero;
TRACED_KINDS[NBD_CMD_BLOCK_STATUS] = TracedKind.Status;

/** What a link needs of its image. */
export interface LinkHost extends TracedImage {
  readonly context: ImageContext;
  /** A piece has ended. */
  pieceEnded(command: number, slot: number, count: number, errno: number): void;
  /** So has one that asks for extents: pairs of 32 bits in `view`, bytes and state. */
  extentsCame(slot: number, sectors: number, view: DataView, at: number, count: number): void;
  /** The connection is of no use any more; what was under way on it fails after this. */
  linkLost(link: Link, errno: number): void;
}

/** One connection to a server, and the requests on it, which end in any order. */
export class Link implements FdHandler, Deferred, AnswerSink {
  /** For the end-of-turn list; not for anyone else. */
  deferred = false;
  readonly #host: LinkHost;
  readonly #context: ImageContext;
  readonly #operations = new Operations();
  readonly #sender: RequestSender;
  readonly #receiver: ReplyReceiver;
  /** Pieces that have not been sent, and how many. */
  readonly #waiting = new PieceLists(1);
  #waitingCount = 0;
  /** The socket; -1 while there is none. */
  #fd = NONE;
  #tls: TlsStream | null = null;
  #watched = EPOLLIN;
  /** Runs while a request is at the server. */
  #watchTimer = 0;
  readonly #lookAtOldest = (): void => this.#checkOldest();
  /** Receives again in the next turn. */
  #againTimer = 0;
  readonly #receiveAgain = (): void => {
    this.#againTimer = 0;
    this.ready(EPOLLIN);
  };

  constructor(host: LinkHost) {
    this.#host = host;
    this.#context = host.context;
    this.#sender = new RequestSender(host.context.pieces);
    this.#receiver = new ReplyReceiver(host.context.pieces, this.#operations, this);
  }

  /** Whether there is a connection. */
  get isOpen(): boolean {
    return this.#fd !== NONE;
  }

  /** How many pieces are under way or wait. */
  get load(): number {
    return this.#operations.inUse + this.#waitingCount;
  }

  /** Requests that the server has. */
  get asked(): number {
    return this.#operations.inUse;
  }

  /** When the oldest of them was handed to it; Infinity when it has none. */
  get oldestMs(): number {
    return this.#operations.oldestMs;
  }

  /** How long requests took of late, milliseconds. */
  get meanMs(): number {
    return this.#operations.meanMs[0];
  }

  /** Takes a connection; closes it when the loop cannot watch it. Throws `SystemError`. */
  use(connected: Connected): void {
    const { fd, remote, tls } = connected;
    try {
      this.#context.scheduler.watch(fd, EPOLLIN, this);
    } catch (error) {
      closeConnected(connected);
      throw error;
    }
    this.#fd = fd;
    this.#tls = tls;
    this.#receiver.reset(remote.structured, remote.allocationId, tls);
    this.#sender.clear();
    this.#sender.tls = tls;
    this.#watched = EPOLLIN;
    enlargeSendBuffer(fd, SEND_BUFFER_BYTES);
  }

  /** Asks for a piece. The link must be open. */
  start(command: number, slot: number, sector: number, count: number, memorySector: number): void {
    const { pieces, deferral } = this.#context;
    const piece = pieces.take(command, slot, sector, count, memorySector);
    pieces.append(this.#waiting, 0, piece);
    this.#waitingCount++;
    deferral.add(this);
  }

  get faults(): FaultOwner {
    return this.#context.faults;
  }

  /** The end-of-turn list calls this, and `ready`. A device that has failed sends nothing. */
  runDeferred(): void {
    if (!this.#context.faults.failed) this.#send();
  }

  /** Sends what waits, as far as the server and the socket take it. */
  #send(): void {
    while (this.#fd !== NONE) {
      if (this.#sender.isEmpty && !this.#compose()) return this.#watch(EPOLLIN);
      const result = this.#sender.send(this.#fd);
      if (result === -Errno.EAGAIN || result === -Errno.EINTR) {
        return this.#watch(EPOLLIN | EPOLLOUT);
      }
      if (result < 0) return this.#lose(-result);
    }
  }

  /** Puts what waits into the message; false when there is nothing, or no room at the server. */
  #compose(): boolean {
    const { pieces, scheduler } = this.#context;
    const nowMs = scheduler.lastMs[0];
    let any = false;
    while (!this.#waiting.isEmpty(0)) {
      const piece = this.#waiting.first[0];
      const operation = this.#operations.take(piece, nowMs);
      if (operation === NONE) break;
      this.#waiting.first[0] = pieces.next(piece);
      if (this.#waiting.first[0] === NONE) this.#waiting.last[0] = NONE;
      this.#waitingCount--;
      if (pieces.kind[piece] === NBD_CMD_READ) this.#operations.reads++;
      this.#sender.add(operation, piece);
      any = true;
    }
    if (any && this.#watchTimer === 0) this.#watchLater();
    return any;
  }

  #watchLater(): void {
    this.#watchTimer = this.#context.scheduler.addTimer(WATCH_MS, this.#lookAtOldest);
  }

  /** Leaves a server that owes an answer for too long. */
  #checkOldest(): void {
    this.#watchTimer = 0;
    if (this.#fd === NONE || this.#operations.inUse === 0) return;
    const waitedMs = this.#context.scheduler.nowMs() - this.#operations.oldestMs;
    if (waitedMs >= REQUEST_TIMEOUT_MS) this.#lose(Errno.ETIMEDOUT);
    else this.#watchLater();
  }

  #watch(events: number): void {
    if (this.#watched === events) return;
    this.#watched = events;
    this.#context.scheduler.rewatch(this.#fd, events);
  }

  ready(events: number): void {
    if ((events & EPOLLOUT) !== 0) this.runDeferred();
    if (this.#fd === NONE || (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) === 0) return;
    const result = this.#receiver.receive(this.#fd);
    if (result < 0) return this.#lose(-result);
    if (!this.#waiting.isEmpty(0)) this.#context.deferral.add(this);
    // What OpenSSL has received, the socket does not show.
    if (this.#tls !== null && this.#againTimer === 0 && this.#tls.hasPending) {
      this.#againTimer = this.#context.scheduler.addTimer(0, this.#receiveAgain);
    }
  }

  answered(operation: number, errno: number): void {
    this.#record(operation, errno);
    this.#endPiece(this.#giveOperation(operation), errno);
  }

  /** Records an operation that has ended, while the disk is traced. */
  #record(operation: number, errno: number): void {
    const { tracing, pieces } = this.#context;
    if (tracing === undefined || tracing.ring === null) return;
    const piece = this.#operations.piece[operation];
    const { startMs } = this.#operations;
    tracing.operation(
      this.#host,
      TRACED_KINDS[pieces.kind[piece]],
      pieces.slot[piece],
      pieces.count[piece],
      errno,
      startMs,
      operation,
      pieces.sector,
      piece,
    );
  }

  #giveOperation(operation: number): number {
    this.#operations.noteEnd(operation, this.#context.scheduler.lastMs);
    const piece = this.#operations.give(operation);
    if (this.#context.pieces.kind[piece] === NBD_CMD_READ) this.#operations.reads--;
    return piece;
  }

  /** Ends a piece; returns the one behind it in its list. */
  #endPiece(piece: number, errno: number): number {
    const { pieces } = this.#context;
    const command = pieces.kind[piece];
    const slot = pieces.slot[piece];
    const count = pieces.count[piece];
    const next = pieces.give(piece);
    this.#host.pieceEnded(command, slot, count, errno);
    return next;
  }

  answeredExtents(operation: number, view: DataView, at: number, count: number): void {
    const { pieces } = this.#context;
    this.#record(operation, 0);
    const piece = this.#giveOperation(operation);
    const slot = pieces.slot[piece];
    const sectors = pieces.count[piece];
    pieces.give(piece);
    this.#host.extentsCame(slot, sectors, view, at, count);
  }

  /** The connection is of no use any more: all that is under way fails. */
  #lose(errno: number): void {
    this.hangUp();
    this.#host.linkLost(this, errno);
    this.failAll();
  }

  /** Why TLS failed; empty for an error of the socket, or without TLS. */
  get why(): string {
    return this.#receiver.why;
  }

  /** Ends all pieces with ENOTCONN. The link must be closed. */
  failAll(): void {
    const { piece } = this.#operations;
    for (let operation = 0; operation < piece.length; operation++) {
      if (piece[operation] !== NONE) this.answered(operation, Errno.ENOTCONN);
    }
    let waiting = this.#waiting.takeAll(0);
    this.#waitingCount = 0;
    while (waiting !== NONE) waiting = this.#endPiece(waiting, Errno.ENOTCONN);
  }

  /**
   * Closes the connection, if there is one. Its pieces stay until `failAll`. A server must not get the rest
   * of them later, as they are made again on another connection.
   */
  hangUp(): void {
    if (this.#fd === NONE) return;
    if (this.#operations.inUse > 0) resetOnClose(this.#fd);
    const tls = this.#tls;
    const fd = this.#letGo();
    this.#sender.clear();
    this.#receiver.reset(false, null, null);
    closeConnected({ fd, tls });
  }

  /**
   * Tells the server that this was all, and closes the connection.
   *
   * @returns The socket, still open, when it can be used again: nothing was under way, and there is
   * no TLS; else -1.
   */
  leave(): number {
    if (this.#fd === NONE) return NONE;
    const isIdle = this.#operations.inUse === 0 && this.#sender.isEmpty;
    const wasTold = this.#sayGoodbye();
    if (isIdle && wasTold && this.#tls === null) return this.#letGo();
    this.hangUp();
    return NONE;
  }

  /**
   * False when that could not be sent. Over a descriptor that was handed over, the server then greets
   * again, for when the image is opened again.
   */
  #sayGoodbye(): boolean {
    const { pieces } = this.#context;
    const piece = pieces.take(NBD_CMD_DISC, 0, 0, 0, 0);
    this.#sender.add(0, piece);
    pieces.give(piece);
    return this.#sender.send(this.#fd) >= 0 && this.#sender.isEmpty;
  }

  /** Ends the use of the socket; returns it. */
  #letGo(): number {
    const fd = this.#fd;
    const { scheduler } = this.#context;
    scheduler.cancelTimer(this.#watchTimer);
    scheduler.cancelTimer(this.#againTimer);
    this.#watchTimer = 0;
    this.#againTimer = 0;
    scheduler.unwatch(fd);
    this.#fd = NONE;
    this.#tls = null;
    this.#sender.tls = null;
    return fd;
  }

  /** Frees the memory. The link must be closed. */
  release(): void {
    this.#receiver.reset(false, null, null);
    this.#receiver.release();
    this.#sender.release();
  }
}

/** How a lost connection is named in the log. */
export function lossText(link: Link, errno: number): string {
  return link.why === "" ? errnoName(errno) : `${errnoName(errno)}, TLS: ${link.why}`;
}
