import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT } from "../../../ffi/epoll.ts";
import { type Done, Errno, errnoName, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { enlargeSendBuffer } from "../../../ffi/sockets.ts";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_STATE_ZERO,
} from "../../nbd/protocol.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler } from "../../scheduler/scheduler.ts";
import type { Deferred } from "../deferral.ts";
import {
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  type RequestSink,
  SECTOR_BYTES,
} from "../driver.ts";
import { PieceLists } from "../pieces.ts";
import { BackOff } from "./back_off.ts";
import { type Connected, type Destination, Dial, toError } from "./dial.ts";
import { handedOver } from "./handed_over.ts";
import type { RemoteExport } from "./handshake.ts";
import { Operations } from "./operations.ts";
import { type AnswerSink, ReplyReceiver } from "./reply_receiver.ts";
import { RequestSender } from "./request_sender.ts";

const NONE = -1;
const EXTENT_BYTES = 8;
const SEND_BUFFER_BYTES = 4 * 1024 * 1024;
/** Sectors of one request to write zeros, and of one for extents: its length has 32 bits. */
const ZERO_SECTORS = 1 << 16;
const STATUS_SECTORS = 1 << 22;

/**
 * How long a server may take for one request. Beyond that the connection counts as lost: the request
 * is made again on another one, as after a server that hung up.
 */
const REQUEST_TIMEOUT_MS = 30_000;
/** How often the oldest request is looked at. */
const WATCH_MS = 5_000;

/** Why an export cannot be this image; null when it can. */
export function exportFault(remote: RemoteExport, spec: ImageSpec): SystemError | null {
  const title = `${spec.type}:${spec.path}`;
  if (remote.minimumBlockBytes > SECTOR_BYTES) {
    const why = `its server takes no less than ${remote.minimumBlockBytes} bytes at a time`;
    return new SystemError(Errno.EINVAL, `Cannot serve ${title} (${why})`);
  }
  if (remote.maximumBlockBytes < SECTOR_BYTES) {
    const why = `its server takes no more than ${remote.maximumBlockBytes} bytes at a time`;
    return new SystemError(Errno.EINVAL, `Cannot serve ${title} (${why})`);
  }
  if (remote.sizeBytes < SECTOR_BYTES) {
    return new SystemError(Errno.EINVAL, `Cannot serve ${title}: it holds no whole sector`);
  }
  if (remote.sizeBytes > Number.MAX_SAFE_INTEGER) {
    // Larger sizes are not exact here, and 2^64 - 1 would become 2^64: a disk of no bytes to clients.
    return new SystemError(Errno.EFBIG, `Cannot serve ${title}: it is larger than 8 PiB`);
  }
  if (!spec.readOnly && (remote.flags & NBD_FLAG_READ_ONLY) !== 0) {
    return new SystemError(Errno.EROFS, `Cannot open ${title} for writing (its server forbids it)`);
  }
  return null;
}

/**
 * An export of an NBD server. Many requests are in flight at once and end in any order. When the
 * connection is lost, requests fail with ENOTCONN, which the device retries, and the image connects
 * again.
 *
 * A write that the server answered before the connection was lost counts as written. A later flush
 * makes durable what the server still has.
 */
export class NbdImage implements ImageDriver, FdHandler, Deferred, AnswerSink {
  readonly spec: ImageSpec;
  readonly sectors: number;
  readonly parent = null;
  readonly zeroSectors: number;
  readonly fillSectors: number;
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  /** For the end-of-turn list; not for anyone else. */
  deferred = false;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #destination: Destination;
  readonly #operations = new Operations();
  readonly #sender: RequestSender;
  readonly #receiver: ReplyReceiver;
  /** Pieces that have not been sent. */
  readonly #waiting = new PieceLists(1);
  readonly #mostSectors: number;
  #flags = 0;
  #allocationId: number | null = null;
  /** The socket; -1 while there is none. */
  #fd = NONE;
  #watched = EPOLLIN;
  #dial: Dial | null = null;
  #redialTimer = 0;
  /** Runs while a request is at the server. */
  #watchTimer = 0;
  readonly #lookAtOldest = (): void => this.#checkOldest();
  readonly #backOff = new BackOff();
  /** The device is to be closed: nothing is asked of the server any more. */
  #givenUp = false;
  #toldWhy = "";
  #closed = false;

  constructor(
    { spec, context, sink, connected }: {
      spec: ImageSpec;
      context: ImageContext;
      sink: RequestSink;
      connected: Connected;
    },
  ) {
    this.spec = spec;
    this.#context = context;
    this.#sink = sink;
    const { remote, destination } = connected;
    this.sectors = Math.floor(remote.sizeBytes / SECTOR_BYTES);
    this.#mostSectors = Math.floor(remote.maximumBlockBytes / SECTOR_BYTES);
    const canZero = (remote.flags & NBD_FLAG_SEND_WRITE_ZEROES) !== 0;
    this.zeroSectors = canZero ? ZERO_SECTORS : context.zeros.sectors;
    this.fillSectors = context.zeros.sectors;
    this.#destination = destination;
    this.#sender = new RequestSender(context.pieces);
    this.#receiver = new ReplyReceiver(context.pieces, this.#operations, this);
    try {
      this.#use(connected);
    } catch (error) {
      this.abandon();
      throw error;
    }
  }

  get #title(): string {
    return `${this.spec.type}:${this.spec.path}`;
  }

  /** Takes a connection; closes it when the loop cannot watch it. Throws `SystemError`. */
  #use({ fd, remote }: Connected): void {
    try {
      this.#context.scheduler.watch(fd, EPOLLIN, this);
    } catch (error) {
      closeFile(fd);
      throw error;
    }
    this.#fd = fd;
    this.#backOff.connected(this.#context.scheduler.nowMs());
    this.#flags = remote.flags;
    this.#allocationId = remote.allocationId;
    this.#receiver.reset(remote.structured, remote.allocationId);
    this.#sender.clear();
    this.#watched = EPOLLIN;
    enlargeSendBuffer(fd, SEND_BUFFER_BYTES);
  }

  operationsFor(sectors: number): number {
    return Math.max(
      1,
      Math.ceil(sectors / Math.min(this.#mostSectors, this.#context.zeros.sectors)),
    );
  }

  // ---- requests ---------------------------------------------------------------------------

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.counts.readSectors += count;
    for (let done = 0; done < count;) {
      const part = Math.min(this.#mostSectors, count - done);
      this.#start(NBD_CMD_READ, slot, sector + done, part, memorySector + done);
      done += part;
    }
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.counts.writtenSectors += count;
    for (let done = 0; done < count;) {
      const part = Math.min(this.#mostSectors, count - done);
      this.#start(NBD_CMD_WRITE, slot, sector + done, part, memorySector + done);
      done += part;
    }
  }

  zero(slot: number, sector: number, count: number): void {
    if ((this.#flags & NBD_FLAG_SEND_WRITE_ZEROES) !== 0) {
      return this.#start(NBD_CMD_WRITE_ZEROES, slot, sector, count, 0);
    }
    this.#writeZeros(slot, sector, count);
  }

  fill(slot: number, sector: number, count: number): void {
    this.counts.writtenSectors += count;
    this.#writeZeros(slot, sector, count);
  }

  #writeZeros(slot: number, sector: number, count: number): void {
    const { at, sectors } = this.#context.zeros;
    const most = Math.min(this.#mostSectors, sectors);
    for (let done = 0; done < count; done += most) {
      const part = Math.min(most, count - done);
      this.#start(NBD_CMD_WRITE, slot, sector + done, part, at);
    }
  }

  discard(slot: number, sector: number, count: number): void {
    if ((this.#flags & NBD_FLAG_SEND_TRIM) === 0) return this.#sink.pieceDone(slot, count, 0);
    this.#start(NBD_CMD_TRIM, slot, sector, count, 0);
  }

  flush(slot: number): void {
    if ((this.#flags & NBD_FLAG_SEND_FLUSH) === 0 && this.#fd !== NONE) {
      return this.#sink.pieceDone(slot, 1, 0);
    }
    this.#start(NBD_CMD_FLUSH, slot, 0, 1, 0);
  }

  status(slot: number, sector: number, count: number): void {
    if (this.#allocationId === null && this.#fd !== NONE) {
      this.#sink.extent(slot, count, true);
      return this.#sink.statusDone(slot, 0);
    }
    this.#start(NBD_CMD_BLOCK_STATUS, slot, sector, Math.min(count, STATUS_SECTORS), 0);
  }

  #start(command: number, slot: number, sector: number, count: number, memorySector: number): void {
    if (this.#fd === NONE) return this.#end(command, slot, count, Errno.ENOTCONN);
    const { pieces, deferral } = this.#context;
    const piece = pieces.take(command, slot, sector, count, memorySector);
    pieces.append(this.#waiting, 0, piece);
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

  // ---- answers ----------------------------------------------------------------------------

  ready(events: number): void {
    if ((events & EPOLLOUT) !== 0) this.runDeferred();
    if (this.#fd === NONE || (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) === 0) return;
    const result = this.#receiver.receive(this.#fd);
    if (result < 0) this.#lose(-result);
    else if (!this.#waiting.isEmpty(0)) this.#context.deferral.add(this);
  }

  answered(operation: number, errno: number): void {
    const piece = this.#giveOperation(operation);
    this.#endPiece(piece, errno);
  }

  #giveOperation(operation: number): number {
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
    this.#end(command, slot, count, errno);
    return next;
  }

  /** Tells the end of a piece. The one place that does: a status request ends in its own way. */
  #end(command: number, slot: number, count: number, errno: number): void {
    if (command === NBD_CMD_BLOCK_STATUS) this.#sink.statusDone(slot, errno);
    else this.#sink.pieceDone(slot, count, errno);
  }

  answeredExtents(operation: number, view: DataView, at: number, count: number): void {
    const { pieces } = this.#context;
    const piece = this.#giveOperation(operation);
    const slot = pieces.slot[piece];
    let left = pieces.count[piece];
    pieces.give(piece);
    for (let i = 0; i < count && left > 0; i++) {
      const bytes = view.getUint32(at + EXTENT_BYTES * i, false);
      const isZero = (view.getUint32(at + EXTENT_BYTES * i + 4, false) & NBD_STATE_ZERO) !== 0;
      // An extent that ends within its first sector counts as data.
      const sectors = Math.min(left, Math.max(1, Math.floor(bytes / SECTOR_BYTES)));
      left -= sectors;
      const wanted = this.#sink.extent(slot, sectors, !isZero || bytes < SECTOR_BYTES);
      // After an extent that ends within a sector, the rest is asked for again.
      if (!wanted || bytes % SECTOR_BYTES !== 0) break;
    }
    this.#sink.statusDone(slot, 0);
  }

  // ---- the connection ---------------------------------------------------------------------

  /** The connection is of no use any more: all that is under way fails, and another is sought. */
  #lose(errno: number): void {
    const { log } = this.#context;
    log(`${this.#title}: lost the connection (${errnoName(errno)}); connecting again`);
    this.#hangUp();
    this.#sender.clear();
    this.#receiver.reset(false, null);
    this.#backOff.lost(this.#context.scheduler.nowMs());
    this.#redialLater();
    this.#failAll();
  }

  giveUp(): void {
    this.#givenUp = true;
    const { log, scheduler } = this.#context;
    scheduler.cancelTimer(this.#redialTimer);
    this.#dial?.cancel();
    this.#dial = null;
    if (this.#fd === NONE) return;
    log(`${this.#title}: its server does not answer; it is left, with what it was asked`);
    this.#hangUp();
    this.#sender.clear();
    this.#receiver.reset(false, null);
    this.#failAll();
  }

  #failAll(): void {
    const { piece } = this.#operations;
    for (let operation = 0; operation < piece.length; operation++) {
      if (piece[operation] !== NONE) this.answered(operation, Errno.ENOTCONN);
    }
    let waiting = this.#waiting.takeAll(0);
    while (waiting !== NONE) waiting = this.#endPiece(waiting, Errno.ENOTCONN);
  }

  #redialLater(): void {
    if (this.#givenUp) return;
    this.#redialTimer = this.#context.scheduler.addTimer(this.#backOff.nextMs(), () => {
      this.#redialTimer = 0;
      this.#redial();
    });
  }

  #redial(): void {
    try {
      this.#dial = new Dial(this.#context.scheduler, this.#destination, (result) => {
        this.#dial = null;
        if (result instanceof Error) this.#notConnected(result);
        else this.#reconnected(result);
      });
    } catch (error) {
      this.#notConnected(toError(error));
    }
  }

  /** An attempt failed; why is logged once, and again when it changes. */
  #notConnected(error: Error): void {
    if (error.message !== this.#toldWhy) this.#context.log(error.message);
    this.#toldWhy = error.message;
    this.#redialLater();
  }

  #reconnected(connected: Connected): void {
    const { remote, fd } = connected;
    const isSame = Math.floor(remote.sizeBytes / SECTOR_BYTES) === this.sectors &&
      Math.floor(remote.maximumBlockBytes / SECTOR_BYTES) >= this.#mostSectors;
    const fault = isSame ? exportFault(remote, this.spec) : new SystemError(
      Errno.ESTALE,
      `Cannot go on with ${this.#title} (its size has changed to ${remote.sizeBytes} bytes)`,
    );
    if (fault !== null) {
      closeFile(fd);
      return this.#notConnected(fault);
    }
    try {
      this.#use(connected);
    } catch (error) {
      return this.#notConnected(toError(error));
    }
    this.#toldWhy = "";
    this.#context.log(`${this.#title}: connected again`);
  }

  close(done: Done): void {
    const { route } = this.#destination;
    if (this.#fd !== NONE) {
      const isIdle = this.#operations.inUse === 0 && this.#sender.isEmpty;
      const wasTold = this.#sayGoodbye();
      if (isIdle && wasTold && typeof route === "string") {
        handedOver.putBack(route, this.#letGo());
      }
    }
    this.abandon();
    done(null);
  }

  /**
   * Tells the server that this was all; false when that could not be sent. Over a descriptor that was
   * handed over, the server then greets again, for when the image is opened again.
   */
  #sayGoodbye(): boolean {
    const { pieces } = this.#context;
    const piece = pieces.take(NBD_CMD_DISC, 0, 0, 0, 0);
    this.#sender.add(0, piece);
    pieces.give(piece);
    return this.#sender.send(this.#fd) >= 0 && this.#sender.isEmpty;
  }

  abandon(): void {
    if (this.#closed) return;
    this.#closed = true;
    const { scheduler } = this.#context;
    scheduler.cancelTimer(this.#redialTimer);
    this.#dial?.cancel();
    this.#dial = null;
    if (this.#fd !== NONE) this.#hangUp();
    this.#receiver.reset(false, null);
    this.#receiver.release();
    this.#sender.release();
  }

  #hangUp(): void {
    closeFile(this.#letGo());
  }

  /** Ends the use of the socket; returns it. */
  #letGo(): number {
    const fd = this.#fd;
    this.#context.scheduler.cancelTimer(this.#watchTimer);
    this.#watchTimer = 0;
    this.#context.scheduler.unwatch(fd);
    this.#fd = NONE;
    return fd;
  }
}
