import { assert } from "../../../ffi/assert.ts";
import { EPOLLET, EPOLLIN } from "../../../ffi/epoll.ts";
import { type Done, Errno, errnoName, SystemError } from "../../../ffi/errno.ts";
import { RbdCommand, RbdIo } from "../../../ffi/rbd_io.ts";
import type { RbdSession } from "../../../ffi/rbd_session.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler } from "../../scheduler/scheduler.ts";
import type { Deferred } from "../deferral.ts";
import {
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  REQUEST_SLOTS,
  type RequestSink,
  SECTOR_BYTES,
} from "../driver.ts";
import { TracedKind } from "../../trace/records.ts";
import type { ServerCondition } from "../condition.ts";
import { PieceLists } from "../pieces.ts";
import { ExtentQuestions } from "./extent_questions.ts";
import { Operations } from "./operations.ts";

/** The most requests that librbd has of one image at once; others wait here. */
const WINDOW = REQUEST_SLOTS;
/** By command: the kind of request that a trace shows. */
const TRACED_KINDS = new Uint8Array(RbdCommand.Flush + 1);
TRACED_KINDS[RbdCommand.Read] = TracedKind.Read;
TRACED_KINDS[RbdCommand.Write] = TracedKind.Write;
TRACED_KINDS[RbdCommand.Discard] = TracedKind.Discard;
TRACED_KINDS[RbdCommand.Zero] = TracedKind.Zero;
TRACED_KINDS[RbdCommand.Fill] = TracedKind.Fill;
TRACED_KINDS[RbdCommand.Flush] = TracedKind.Flush;

/** How often the size is asked for. */
const SIZE_MS = 5_000;
/** How long a close waits for the cluster. */
const CLOSE_TIMEOUT_MS = 30_000;
/** Sectors of one request to write zeros: librbd makes a request of each object of it, all at once. */
const ZERO_SECTORS = 1 << 17;

/**
 * An image on a Ceph cluster. Requests go to librbd one by one, with the memory that they have, and
 * end in any order when the loop sees its descriptor. While a part of the cluster is away they wait in
 * librbd, and their memory with them: nothing takes them back.
 */
export class RbdImage implements ImageDriver, FdHandler, Deferred {
  readonly spec: ImageSpec;
  readonly parent = null;
  readonly zeroSectors = ZERO_SECTORS;
  readonly fillSectors = ZERO_SECTORS;
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  /** For the end-of-turn list; not for anyone else. */
  deferred = false;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #session: RbdSession;
  readonly #io: RbdIo;
  readonly #operations: Operations;
  /** Pieces beyond what librbd is given. */
  readonly #waiting = new PieceLists(1);
  readonly #extents: ExtentQuestions;
  #sectors: number;
  #sizeTimer = 0;
  /**
   * Where an image ends that was cut. librbd cuts a request that goes beyond, too, and ends it without an
   * error.
   */
  #cutAt = Infinity;
  /** The smaller size that was logged. */
  #toldSectors = -1;
  #isOpen = true;
  /** The end of a request was a fault: further ends are not told. */
  #isFaulty = false;

  constructor(
    { spec, context, sink, session }: {
      spec: ImageSpec;
      context: ImageContext;
      sink: RequestSink;
      session: RbdSession;
    },
  ) {
    this.spec = spec;
    this.#context = context;
    this.#sink = sink;
    this.#session = session;
    this.#sectors = Math.floor(session.sizeBytes / SECTOR_BYTES);
    if (this.sectors === 0) {
      throw new SystemError(
        Errno.EINVAL,
        `Cannot serve rbd:${spec.path}: it holds no whole sector`,
      );
    }
    this.#operations = new Operations(WINDOW, context.scheduler.lastMs);
    this.#io = new RbdIo(session.pointer);
    this.#extents = new ExtentQuestions(session, context, sink);
    context.scheduler.watch(session.fd, EPOLLIN | EPOLLET, this);
    this.#askSizeLater();
    if (!spec.readOnly && !session.isLocked) {
      context.log(`rbd:${spec.path} has no exclusive lock: others may write to it meanwhile`);
    }
  }

  get sectors(): number {
    return this.#sectors;
  }

  get faults(): FaultOwner {
    return this.#context.faults;
  }

  /** What librbd has not ended: it may read and write the memory of requests until then. */
  get pending(): number {
    return this.#operations.inUse + this.#extents.asked;
  }

  condition(nowMs: number): ServerCondition {
    const { inUse, oldestMs, meanMs } = this.#operations;
    return {
      kind: "server",
      image: `rbd:${this.spec.path}`,
      ...{ lostMs: null, why: "", nextTryMs: null },
      asked: inUse,
      oldestMs: oldestMs === Infinity ? 0 : nowMs - oldestMs,
      meanMs: meanMs[0],
    };
  }

  operationsFor(_sectors: number): number {
    return 1;
  }

  // ---- requests ---------------------------------------------------------------------------

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.counts.readSectors += count;
    this.#start(RbdCommand.Read, slot, sector, count, memorySector);
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.counts.writtenSectors += count;
    this.#start(RbdCommand.Write, slot, sector, count, memorySector);
  }

  zero(slot: number, sector: number, count: number): void {
    this.#start(RbdCommand.Zero, slot, sector, count, 0);
  }

  fill(slot: number, sector: number, count: number): void {
    this.counts.writtenSectors += count;
    this.#start(RbdCommand.Fill, slot, sector, count, 0);
  }

  discard(slot: number, sector: number, count: number): void {
    this.#start(RbdCommand.Discard, slot, sector, count, 0);
  }

  flush(slot: number): void {
    this.#start(RbdCommand.Flush, slot, 0, 1, 0);
  }

  status(slot: number, sector: number, count: number): void {
    this.#extents.ask(slot, sector, count);
  }

  #start(command: number, slot: number, sector: number, count: number, memorySector: number): void {
    if (this.#context.faults.failed) return;
    if (this.#waiting.isEmpty(0) && this.#submit(command, slot, sector, count, memorySector)) {
      return;
    }
    const { pieces } = this.#context;
    const piece = pieces.take(command, slot, sector, count, memorySector);
    pieces.append(this.#waiting, 0, piece);
  }

  /** Hands a request to librbd; false when that has enough. */
  #submit(
    command: number,
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
  ): boolean {
    if (sector + count > this.#cutAt && command !== RbdCommand.Flush) {
      this.#end(command, slot, count, Errno.EINVAL);
      return true;
    }
    const operation = this.#operations.take(command, slot, sector, count);
    if (operation < 0) return false;
    let result: number;
    try {
      result = this.#io.start(operation, command, sector, count, memorySector);
    } catch (error) {
      // librbd does not have it: the disk would wait for its end for ever.
      this.#operations.give(operation);
      throw error;
    }
    if (result < 0) {
      this.#operations.give(operation);
      this.#end(command, slot, count, -result);
    }
    return true;
  }

  /** Hands on what waits. The end-of-turn list calls this. */
  runDeferred(): void {
    const { pieces, faults } = this.#context;
    while (!faults.failed && !this.#waiting.isEmpty(0)) {
      if (this.#operations.inUse === WINDOW) return;
      const piece = pieces.takeFirst(this.#waiting, 0);
      const { kind, slot, sector, count, memory } = pieces;
      const at = sector[piece];
      const of = slot[piece];
      const sectors = count[piece];
      const command = kind[piece];
      const memorySector = memory[piece];
      pieces.give(piece);
      this.#submit(command, of, at, sectors, memorySector);
    }
  }

  // ---- ends -------------------------------------------------------------------------------

  /** librbd has ended requests. */
  ready(_events: number): void {
    let fault: unknown = null;
    let count: number;
    do {
      count = this.#io.take();
      for (let i = 0; i < count; i++) {
        try {
          this.#take(i);
        } catch (error) {
          // The others are taken all the same: the disk is let go of when librbd has none any more.
          this.#isFaulty = true;
          fault ??= error;
        }
      }
    } while (this.#io.isFull(count));
    if (fault !== null) throw fault;
    if (!this.#waiting.isEmpty(0)) this.#context.deferral.add(this);
  }

  #take(index: number): void {
    const operation = this.#io.finish(index);
    const result = this.#io.result[0];
    assert(this.#operations.isInUse(operation), "librbd ended a request that it does not have");
    const command = this.#operations.kind[operation];
    const slot = this.#operations.slot[operation];
    const count = this.#operations.count[operation];
    this.#operations.give(operation);
    if (this.#isFaulty || this.#context.faults.failed) return;
    const isShort = command === RbdCommand.Read && result >= 0 && result !== count * SECTOR_BYTES;
    const errno = isShort ? Errno.EIO : result < 0 ? -result : 0;
    this.#record(operation, errno);
    this.#end(command, slot, count, errno);
  }

  /** Records an operation that has ended, while the disk is traced. */
  #record(operation: number, errno: number): void {
    const { tracing } = this.#context;
    if (tracing === undefined || tracing.ring === null) return;
    const { kind, slot, count, startMs, sector } = this.#operations;
    tracing.operation(
      this,
      TRACED_KINDS[kind[operation]],
      slot[operation],
      count[operation],
      errno,
      startMs,
      operation,
      sector,
      operation,
    );
  }

  #end(command: number, slot: number, count: number, errno: number): void {
    const why = errno === 0 ? null : this.#endOfDisk(command, errno);
    if (why !== null) return this.#lose(why, errno);
    this.#sink.pieceDone(slot, count, errno);
  }

  /** Why the image cannot be used any more after this error; null when it can. */
  #endOfDisk(command: number, errno: number): string | null {
    if (errno === Errno.ESHUTDOWN) {
      return "the cluster has shut this client out (blocklist), as when its lock is broken";
    }
    if (this.spec.readOnly) return null;
    if (errno === Errno.EROFS) return "another client has taken its lock";
    // A cache that the settings of the image turn on drops what it could not write, and the next
    // flush would succeed.
    if (command === RbdCommand.Flush) return "writes that had ended may be lost: a flush failed";
    return null;
  }

  #lose(why: string, errno: number): void {
    const { scheduler, faults } = this.#context;
    const message = `Cannot go on with rbd:${this.spec.path}: ${why} (${errnoName(errno)})`;
    scheduler.contain(new SystemError(errno, message, { message }), faults);
  }

  // ---- the size ---------------------------------------------------------------------------

  /** Other clients may resize the image at any time. */
  #askSizeLater(): void {
    const { scheduler } = this.#context;
    this.#sizeTimer = scheduler.addTimer(SIZE_MS, () => {
      if (this.#isGone) return;
      const asked = this.#session.askSize().catch(() => false);
      scheduler.settle(asked, (isKnown) => {
        if (this.#isGone) return;
        if (isKnown) this.#noteSize();
        this.#askSizeLater();
      });
    });
  }

  get #isGone(): boolean {
    return !this.#isOpen || this.#context.faults.failed;
  }

  #noteSize(): void {
    const sectors = Math.floor(this.#session.sizeBytes / SECTOR_BYTES);
    this.#cutAt = sectors < this.#sectors ? sectors : Infinity;
    if (sectors === this.#sectors) return;
    const { log, grow } = this.#context;
    if (sectors > this.#sectors) {
      if (grow?.(sectors) === true) this.#sectors = sectors;
    } else if (sectors !== this.#toldSectors) {
      log(`rbd:${this.spec.path} was cut to ${sectors} sectors: requests beyond them fail`);
      this.#toldSectors = sectors;
    }
  }

  // ---- the end of its life, and snapshots -------------------------------------------------

  makeSnapshot(name: string, done: Done): void {
    this.#context.scheduler.settle(this.#session.makeSnapshot(name), (result) => {
      const what = `Cannot make the snapshot ${name} of rbd:${this.spec.path}`;
      done(result < 0 ? new SystemError(-result, what) : null);
    });
  }

  close(done: Done): void {
    const { scheduler } = this.#context;
    if (!this.#leave()) return done(null);
    const what = `Cannot close rbd:${this.spec.path}`;
    let isOver = false;
    const end = (errno: number, why = ""): void => {
      if (isOver) return;
      isOver = true;
      scheduler.cancelTimer(timer);
      done(errno === 0 ? null : new SystemError(errno, `${what}${why}`));
    };
    const timer = scheduler.addTimer(
      CLOSE_TIMEOUT_MS,
      () => end(Errno.ETIMEDOUT, " (the cluster does not answer; its lock may stay for a while)"),
    );
    scheduler.settle(
      this.#session.close({ flush: !this.spec.readOnly }),
      (result) => end(result < 0 ? -result : 0),
    );
  }

  abandon(): void {
    if (!this.#leave()) return;
    const { log } = this.#context;
    this.#session.close({ flush: false }).then((result) => {
      if (result < 0) log(`rbd:${this.spec.path} was closed with an error (${errnoName(-result)})`);
    }, () => {});
  }

  /** Ends the use of the descriptor; false when that was done before. */
  #leave(): boolean {
    if (!this.#isOpen) return false;
    this.#isOpen = false;
    this.#context.scheduler.cancelTimer(this.#sizeTimer);
    this.#context.scheduler.unwatch(this.#session.fd);
    return true;
  }
}
