import { assert } from "../../ffi/assert.ts";
import { Errno, errnoName } from "../../ffi/errno.ts";
import type { Arena } from "../../ffi/memory.ts";
import type { Deferred } from "../driver/deferral.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import { type ImageDriver, REQUEST_SECTORS, type RequestSink } from "../driver/driver.ts";
import type { AdmissionClient, VbdContext } from "./vbd_context.ts";
import { addExtent } from "./extents.ts";
import { reportRequests } from "./request_report.ts";
import { RequestTimes, Stage } from "./request_times.ts";
import { isRetryable, RETRY_INTERVAL_MS, type RetryLimits } from "./retry.ts";
import {
  CLIENT_BYTES,
  MOST_CLIENTS,
  RequestKind,
  type RequestOwner,
  SLOT_BYTES,
  SlotQueue,
  SLOTS,
  SlotTable,
  StatusFlag,
} from "./slots.ts";
import { SlotShares, type SlotWaiter } from "./slot_shares.ts";
import { VbdCounts } from "./statistics.ts";

/** What requests run against: an open image, and how it is to be treated. */
export interface RequestTarget {
  readonly image: ImageDriver;
  /** The image's name, for the log. */
  readonly name: string;
  readonly readOnly: boolean;
  readonly retry: RetryLimits;
}

/** Memory of more clients than this goes back to the system when they leave. */
const CLIENTS_THAT_KEEP_PAGES = 32;
/** Longest step of a request to discard, sectors: others get their turn in between. */
const DISCARD_STEP_SECTORS = 1 << 20;
const STATUS_STEP_SECTORS = 1 << 22;
/** What part of the disk queue a step may take at most, so that each is admitted in the end. */
const STEP_SHARE = 16;
/** By kind: whether a request may be longer than what is done at once. */
const GOES_IN_STEPS: readonly boolean[] = [true, true, false, true, true, false, true];

/**
 * The requests of a device: they wait for an image and for room in the disk queue, are handed to
 * the image step by step, and are tried again when they fail.
 */
export class Requests implements RequestSink, AdmissionClient, Deferred {
  /** For the end-of-turn list; not for anyone else. */
  deferred = false;
  readonly counts = new VbdCounts();
  readonly times: RequestTimes;
  /** The disk: what its drivers throw ends it. */
  readonly faults: FaultOwner;
  readonly #context: VbdContext;
  readonly #minor: number;
  readonly #slots = new SlotTable();
  readonly #waiting = new SlotQueue();
  readonly #retrying = new SlotQueue();
  /** Who gets the free slots. */
  readonly shares: SlotShares;
  readonly #freeClients = Array.from({ length: MOST_CLIENTS }, (_, i) => MOST_CLIENTS - 1 - i);
  #target: RequestTarget | null = null;
  /** Whether requests without a target wait for one, or fail. */
  #holding = false;
  /** The most sectors of a step, by kind of request. */
  readonly #mostSectors = new Int32Array(GOES_IN_STEPS.length);
  #issued = 0;
  /** Room of the disk queue that the requests under way hold. */
  #held = 0;
  #retryTimer = 0;
  #drained: (() => void) | null = null;

  /**
   * @param minor The device's number, for the log.
   * @param faults The disk.
   */
  constructor(context: VbdContext, minor: number, faults: FaultOwner) {
    this.#context = context;
    this.faults = faults;
    this.#minor = minor;
    this.shares = new SlotShares(this.#slots, {
      scheduler: context.scheduler,
      faults,
      callSoon: () => context.deferral.add(this),
    });
    this.times = new RequestTimes(context.scheduler.lastMs);
  }

  /** How many requests have not ended. */
  get outstanding(): number {
    return this.#issued + this.#waiting.size + this.#retrying.size;
  }

  /** How many requests failed and wait to be tried again. */
  get retrying(): number {
    return this.#retrying.size;
  }

  /** For how long the oldest request at the disk has gone unanswered, milliseconds. */
  get unansweredMs(): number {
    const { stage, sinceMs } = this.times;
    const nowMs = this.#context.scheduler.nowMs();
    let longestMs = 0;
    for (let slot = 0; slot < SLOTS; slot++) {
      if (stage[slot] === Stage.Disk) longestMs = Math.max(longestMs, nowMs - sinceMs[slot]);
    }
    return longestMs;
  }

  /** Runs requests against an image, those first that waited for it. */
  run(target: RequestTarget): void {
    this.#sizeSteps(target.image);
    this.#target = target;
    this.#holding = false;
    // Failures of what was open before, and the time since, do not count against this target.
    this.#slots.attempts.fill(0);
    this.times.moveAll(Stage.Paused, Stage.Room);
    if (this.#waiting.size > 0) this.#context.admission.add(this);
  }

  /**
   * Starts no more requests; they wait when `hold` says so, and else end with ESHUTDOWN. Calls back
   * when nothing is under way any more.
   */
  stop(hold: boolean, drained: () => void): void {
    this.#target = this.#issued === 0 ? null : this.#target;
    this.#holding = hold;
    if (hold) this.times.moveAll(Stage.Room, Stage.Paused);
    else {
      this.#context.scheduler.cancelTimer(this.#retryTimer);
      this.#retryTimer = 0;
      this.#endWaiting();
    }
    this.#drained = (): void => {
      this.#target = null;
      if (!hold) this.#endWaiting();
      drained();
    };
    if (this.#issued === 0) this.#noteDrained();
  }

  /** Starts requests again after `stop`; false when that is through, and the target gone. */
  goOn(): boolean {
    if (this.#drained === null) return false;
    this.#drained = null;
    this.#holding = false;
    this.times.moveAll(Stage.Paused, Stage.Room);
    if (this.#waiting.size > 0) this.#context.admission.add(this);
    return true;
  }

  get #stopped(): boolean {
    return this.#target === null || this.#drained !== null;
  }

  get #image(): ImageDriver {
    if (this.#target === null) throw new Error(`Minor ${this.#minor} has no image`);
    return this.#target.image;
  }

  #endWaiting(): void {
    for (const queue of [this.#retrying, this.#waiting]) {
      for (let left = queue.size; left > 0; left--) {
        const slot = queue.shift();
        this.#drop(slot, Errno.ESHUTDOWN);
      }
    }
  }

  #drop(slot: number, errno: number): void {
    this.times.drop(slot);
    this.#slots.open[slot] = 0;
    this.#tell(slot, errno);
  }

  /** Tells an owner of the end of its request; what it throws ends the owner, and not the disk. */
  #tell(slot: number, errno: number): void {
    const owner = this.#slots.owner[slot];
    try {
      owner.requestDone(slot, errno);
    } catch (error) {
      this.#context.scheduler.contain(error, owner.faults ?? this.faults);
    }
  }

  /**
   * The disk has failed: all requests end with EIO, and so do those that come, until `run`. The disk
   * queue may still move bytes of some, so that its room stays taken until `releaseRoom`.
   */
  fail(): void {
    this.#context.scheduler.cancelTimer(this.#retryTimer);
    this.#retryTimer = 0;
    this.#target = null;
    this.#holding = false;
    this.#drained = null;
    this.#waiting.clear();
    this.#retrying.clear();
    this.#issued = 0;
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.#slots.open[slot] === 1) this.#drop(slot, Errno.EIO);
    }
  }

  /** Nothing of a disk that failed is at the disk queue any more: gives its room back. */
  releaseRoom(): void {
    this.#context.queue.release(this.#held);
    this.#held = 0;
    this.#slots.reserved.fill(0);
  }

  #noteDrained(): void {
    if (this.#drained === null || this.#issued > 0) return;
    const drained = this.#drained;
    this.#drained = null;
    drained();
  }

  /**
   * Unmaps the slots as soon as all are released: the kernel may have the memory of some for a
   * while still. Nothing may be under way.
   */
  destroy(): void {
    this.#slots.destroy();
  }

  /** A line on each request that has not ended, the oldest first, for the log. */
  report(): string[] {
    return reportRequests(this.#slots, this.times, this.#context.scheduler.nowMs());
  }

  /** Takes a free slot for a request; -1 when there is none (see `waitForSlots`). */
  takeSlot(): number {
    return this.#slots.take();
  }

  /** How many slots are free. */
  get freeSlots(): number {
    return this.#slots.freeCount;
  }

  /** Gives a slot back whose request has ended or was never started. */
  releaseSlot(slot: number): void {
    this.shares.release(slot);
  }

  /** Address of a slot's memory, `SLOT_BYTES` of it. */
  slotAddress(slot: number): number {
    return this.#slots.address(slot);
  }

  /** Sector of I/O memory at which a slot's memory begins. */
  slotSector(slot: number): number {
    return this.#slots.memorySector(slot);
  }

  /** Lets the data of a slot's next request lie elsewhere in I/O memory than in the slot's own. */
  putDataAt(slot: number, memorySector: number): void {
    this.#slots.dataSector[slot] = memorySector;
  }

  /** Where a slot's memory begins in `slotMemory`, bytes. */
  slotOffset(slot: number): number {
    return slot * SLOT_BYTES;
  }

  /** The memory of all slots and clients. */
  get memory(): Arena {
    return this.#slots.arena;
  }

  /** Gives a client memory: the offset of its `CLIENT_BYTES` in `memory`; -1 when there is none. */
  takeClientMemory(): number {
    const client = this.#freeClients.pop();
    return client === undefined ? -1 : this.#slots.clientOffset(client);
  }

  /** Takes a client's memory back. */
  giveClientMemory(offset: number): void {
    const client = (offset - this.#slots.clientOffset(0)) / CLIENT_BYTES;
    assert(Number.isInteger(client) && client >= 0, "Client memory is given back as it was taken");
    if (client >= CLIENTS_THAT_KEEP_PAGES) this.memory.discard(offset, CLIENT_BYTES);
    this.#freeClients.push(client);
  }

  /** Calls once when slots have become free. */
  waitForSlots(waiter: SlotWaiter): void {
    this.shares.waitUnclaimed(waiter);
  }

  /** The end-of-turn list calls this. */
  runDeferred(): void {
    this.#noteDrained();
    this.shares.callWaiters();
  }

  /**
   * Starts a request. `owner` is told of its end, at once perhaps.
   *
   * @param sector First sector; the range is checked here.
   * @param fua Whether a write, zeroing or discard must be on stable storage when it ends.
   */
  start(
    slot: number,
    kind: RequestKind,
    sector: number,
    count: number,
    fua: boolean,
    owner: RequestOwner,
  ): void {
    const slots = this.#slots;
    slots.kind[slot] = kind;
    slots.sector[slot] = sector;
    slots.count[slot] = count;
    slots.fua[slot] = fua ? 1 : 0;
    slots.owner[slot] = owner;
    slots.progress[slot] = 0;
    slots.attempts[slot] = 0;
    slots.error[slot] = 0;
    slots.lastError[slot] = 0;
    slots.extents[slot] = 0;
    slots.statusFlags[slot] = StatusFlag.Ended;
    slots.flushing[slot] = 0;
    const refusal = this.#refusal(kind, sector, count);
    if (refusal !== 0) return owner.requestDone(slot, refusal);
    // Images are asked for sectors, of which this has none.
    if (count === 0 && kind !== RequestKind.Flush) return owner.requestDone(slot, 0);
    this.times.begin(slot);
    slots.open[slot] = 1;
    if (this.#stopped || this.#waiting.size > 0 || !this.#issue(slot)) this.#wait(slot);
  }

  /** Starts a request for the extents of a range; at most `mostExtents` are found. */
  startStatus(
    slot: number,
    sector: number,
    count: number,
    mostExtents: number,
    owner: RequestOwner,
  ): void {
    this.#slots.mostExtents[slot] = mostExtents;
    this.start(slot, RequestKind.Status, sector, count, false, owner);
  }

  /**
   * How many extents a status request found. They are pairs of 32-bit little-endian numbers in the
   * slot's memory: sectors, and 1 for data or 0 for a hole.
   */
  extents(slot: number): number {
    return this.#slots.extents[slot];
  }

  #refusal(kind: RequestKind, sector: number, count: number): number {
    if (this.faults.failed) return Errno.EIO;
    // Without an image there is nothing to compare with; what waits is looked at again with one.
    if (this.#target === null) return this.#holding ? 0 : Errno.ESHUTDOWN;
    if (kind === RequestKind.Flush) return 0;
    if (sector + count > this.#target.image.sectors) {
      return kind === RequestKind.Write ? Errno.ENOSPC : Errno.EINVAL;
    }
    const changes = kind !== RequestKind.Read && kind !== RequestKind.Status;
    return changes && this.#target.readOnly ? Errno.EPERM : 0;
  }

  #wait(slot: number): void {
    this.#waiting.push(slot);
    this.times.move(slot, this.#stopped ? Stage.Paused : Stage.Room);
    if (!this.#stopped) this.#context.admission.add(this);
  }

  get wantsAdmission(): boolean {
    return !this.#stopped && this.#waiting.size > 0 && !this.faults.failed;
  }

  admit(): boolean {
    let any = false;
    while (this.wantsAdmission) {
      const slot = this.#waiting.shift();
      if (!this.#issue(slot)) {
        this.#waiting.unshift(slot);
        break;
      }
      any = true;
    }
    return any;
  }

  /**
   * Hands a request to the image; false when the disk queue has no room for it. What the image
   * throws is not its caller's fault, a frontend's: it ends the disk, and this request with it.
   */
  #issue(slot: number): boolean {
    try {
      return this.#handOver(slot);
    } catch (error) {
      this.#context.scheduler.contain(error, this.faults);
      return true;
    }
  }

  #handOver(slot: number): boolean {
    const slots = this.#slots;
    const kind = slots.kind[slot];
    const refusal = this.#refusal(kind as RequestKind, slots.sector[slot], slots.count[slot]);
    const operations = this.#image.operationsFor(this.#stepOf(slot));
    if (!this.#context.queue.reserve(operations, this.#held)) return false;
    slots.reserved[slot] = operations;
    this.times.move(slot, Stage.Disk);
    this.#held += operations;
    slots.error[slot] = 0;
    this.#issued++;
    if (refusal !== 0) this.#end(slot, refusal);
    else if (slots.flushing[slot] === 1) this.#flush(slot);
    else this.#step(slot);
    return true;
  }

  /** Sectors of the next step of a request. */
  #stepOf(slot: number): number {
    const slots = this.#slots;
    const kind = slots.kind[slot];
    if (kind === RequestKind.Flush || kind === RequestKind.Status) return 1;
    return Math.min(slots.count[slot] - slots.progress[slot], this.#mostSectors[kind]);
  }

  /**
   * Finds how many sectors a step of each kind may have. An image makes more operations for the same
   * sectors where its blocks are small or its chain is deep: a step that needed more than the queue
   * has would wait for ever.
   */
  #sizeSteps(image: ImageDriver): void {
    const { queue } = this.#context;
    const most = queue.capacity / STEP_SHARE;
    const fitting = (sectors: number): number => {
      while (sectors > 1 && image.operationsFor(sectors) > most) sectors = Math.floor(sectors / 2);
      return sectors;
    };
    const data = fitting(REQUEST_SECTORS);
    this.#mostSectors[RequestKind.Read] = data;
    this.#mostSectors[RequestKind.Write] = data;
    this.#mostSectors[RequestKind.Zero] = fitting(image.zeroSectors);
    this.#mostSectors[RequestKind.Fill] = fitting(image.fillSectors);
    this.#mostSectors[RequestKind.Discard] = fitting(DISCARD_STEP_SECTORS);
    assert(image.operationsFor(1) <= queue.capacity / 2, "A sector takes more than the disk queue");
  }

  #step(slot: number): void {
    const slots = this.#slots;
    const sector = slots.sector[slot] + slots.progress[slot];
    const count = this.#stepOf(slot);
    const image = this.#image;
    slots.pending[slot] = count;
    switch (slots.kind[slot]) {
      case RequestKind.Read:
        return image.read(slot, sector, count, (slots.dataSector[slot] + slots.progress[slot]) | 0);
      case RequestKind.Write:
        return image.write(
          slot,
          sector,
          count,
          (slots.dataSector[slot] + slots.progress[slot]) | 0,
        );
      case RequestKind.Discard:
        return image.discard(slot, sector, count);
      case RequestKind.Fill:
        return image.fill(slot, sector, count);
      case RequestKind.Zero:
        return image.zero(slot, sector, count);
      case RequestKind.Status:
        return this.#findExtents(slot);
      default:
        return this.#flush(slot);
    }
  }

  #flush(slot: number): void {
    this.#slots.pending[slot] = 1;
    if (this.#target?.readOnly === true) this.pieceDone(slot, 1, 0);
    else this.#image.flush(slot);
  }

  pieceDone(slot: number, sectors: number, errno: number): void {
    if (this.faults.failed) return;
    const slots = this.#slots;
    if (errno !== 0 && slots.error[slot] === 0) slots.error[slot] = errno;
    const pending = slots.pending[slot] - sectors;
    slots.pending[slot] = pending;
    if (pending === 0) this.#stepDone(slot);
    else if (pending < 0) throw new Error(`Slot ${slot} ended more sectors than it has`);
  }

  #stepDone(slot: number): void {
    const slots = this.#slots;
    const errno = slots.error[slot];
    if (errno !== 0) return this.#failed(slot, errno);
    const kind = slots.kind[slot];
    if (GOES_IN_STEPS[kind]) {
      if (slots.flushing[slot] === 0) slots.progress[slot] += this.#stepOf(slot);
      if (slots.progress[slot] < slots.count[slot]) return this.#nextStep(slot);
    }
    if (slots.fua[slot] === 1 && slots.flushing[slot] === 0) {
      slots.flushing[slot] = 1;
      return this.#flush(slot);
    }
    this.#end(slot, 0);
  }

  /** Between two steps the request queues up again, behind others. */
  #nextStep(slot: number): void {
    this.#unissue(slot);
    this.#wait(slot);
  }

  #unissue(slot: number): void {
    this.#context.queue.release(this.#slots.reserved[slot]);
    this.#held -= this.#slots.reserved[slot];
    this.#slots.reserved[slot] = 0;
    this.#issued--;
    // The image that told of the last end is in the midst of something: it is closed after that.
    if (this.#issued === 0 && this.#drained !== null) this.#context.deferral.add(this);
  }

  #end(slot: number, errno: number): void {
    const slots = this.#slots;
    const kind = slots.kind[slot] as RequestKind;
    this.counts.note(kind, slots.count[slot], errno);
    this.times.end(slot, kind);
    slots.open[slot] = 0;
    this.#unissue(slot);
    this.#tell(slot, errno);
  }

  // ---- status -----------------------------------------------------------------------------

  /** Asks the image for what the answer lacks, until it makes the request wait, or a step is over. */
  #findExtents(slot: number): void {
    const slots = this.#slots;
    const end = Math.min(slots.count[slot], slots.progress[slot] + STATUS_STEP_SECTORS);
    do {
      const sector = slots.sector[slot] + slots.progress[slot];
      slots.statusFlags[slot] = StatusFlag.Asking;
      this.#image.status(slot, sector, end - slots.progress[slot]);
      slots.statusFlags[slot] &= ~StatusFlag.Asking;
      if ((slots.statusFlags[slot] & StatusFlag.Ended) === 0) return;
    } while (this.#wantsExtents(slot) && slots.progress[slot] < end);
    this.#statusEnded(slot);
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    if (this.faults.failed) return false;
    const slots = this.#slots;
    const left = slots.count[slot] - slots.progress[slot];
    if (sectors <= 0 || sectors > left) throw new Error(`Slot ${slot} got an extent out of range`);
    const hasRoom = addExtent(slots, slot, sectors, isData, this.slotOffset(slot));
    slots.statusFlags[slot] |= hasRoom ? StatusFlag.Told : StatusFlag.Told | StatusFlag.Full;
    return hasRoom;
  }

  statusDone(slot: number, errno: number): void {
    if (this.faults.failed) return;
    const slots = this.#slots;
    const flags = slots.statusFlags[slot];
    if ((flags & StatusFlag.Ended) !== 0) throw new Error(`Slot ${slot} ended twice`);
    slots.statusFlags[slot] = flags | StatusFlag.Ended;
    // An image that tells nothing would be asked for ever.
    const found = errno === 0 && (flags & StatusFlag.Told) === 0 ? Errno.EIO : errno;
    if (found !== 0 && slots.error[slot] === 0) slots.error[slot] = found;
    if ((flags & StatusFlag.Asking) === 0) this.#statusEnded(slot);
  }

  /** Whether a status request lacks extents, and may ask for them. */
  #wantsExtents(slot: number): boolean {
    const slots = this.#slots;
    return slots.error[slot] === 0 && (slots.statusFlags[slot] & StatusFlag.Full) === 0 &&
      slots.progress[slot] < slots.count[slot];
  }

  #statusEnded(slot: number): void {
    if (this.#wantsExtents(slot)) this.#nextStep(slot);
    else this.#stepDone(slot);
  }

  // ---- retries ----------------------------------------------------------------------------

  #failed(slot: number, errno: number): void {
    const slots = this.#slots;
    const nowMs = this.#context.scheduler.nowMs();
    slots.lastError[slot] = errno;
    if (slots.attempts[slot]++ === 0) {
      slots.firstFailedMs[slot] = nowMs;
      this.#context.log(
        `minor ${this.#minor}: a request at sector ${slots.sector[slot]} of ` +
          `${this.#target?.name} failed ` +
          `(${errnoName(errno)})`,
      );
    }
    if (!isRetryable(errno) || this.#isExhausted(slot, nowMs)) return this.#end(slot, errno);
    this.counts.retries++;
    this.#retrying.push(slot);
    this.times.move(slot, Stage.Retry);
    this.#unissue(slot);
    this.#armRetryTimer();
  }

  #isExhausted(slot: number, nowMs: number): boolean {
    if (this.#target === null) return true;
    const { attempts, timeoutMs } = this.#target.retry;
    return this.#slots.attempts[slot] > attempts ||
      nowMs - this.#slots.firstFailedMs[slot] >= timeoutMs;
  }

  #armRetryTimer(): void {
    if (this.#retryTimer !== 0 || this.#retrying.size === 0) return;
    this.#retryTimer = this.#context.scheduler.addTimer(RETRY_INTERVAL_MS, () => {
      this.#retryTimer = 0;
      this.#retryAll();
    }, this.faults);
  }

  #retryAll(): void {
    if (this.faults.failed) return;
    for (let left = this.#retrying.size; left > 0; left--) this.#wait(this.#retrying.shift());
  }
}
