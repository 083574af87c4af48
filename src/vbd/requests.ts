import { Errno } from "../../ffi/errno.ts";
import type { Arena } from "../../ffi/memory.ts";
import type { Deferred } from "../driver/deferral.ts";
import type { RequestSink } from "../driver/driver.ts";
import { Meter } from "../metrics/meter.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { AdmissionClient } from "./admission.ts";
import { DiskRoom } from "./disk_room.ts";
import { DrainGate, type RequestTarget } from "./drain_gate.ts";
import { ExtentSearch } from "./extents.ts";
import type { RateLimits } from "./rate_limits.ts";
import { reportRequests } from "./request_report.ts";
import { MediaErrors } from "./media_errors.ts";
import { isOfUnknownFile } from "./reopening.ts";
import { RequestOrder } from "./request_order.ts";
import { RequestSteps, type StepSink } from "./request_steps.ts";
import { RequestTimes, Stage } from "./request_times.ts";
import { RetryQueue, type RetrySink } from "./retry.ts";
import { ImageSlots } from "./own_slots.ts";
import { SlotQueue } from "./slot_queue.ts";
import { SlotShares, type SlotWaiter } from "./slot_shares.ts";
import { RequestKind, type RequestOwner, SLOT_BYTES, SLOTS, SlotTable } from "./slots.ts";
import { VbdCounts } from "./statistics.ts";
import { Throttle } from "./throttle.ts";
import { Trouble } from "./trouble.ts";
import type { VbdContext } from "./vbd_context.ts";

/**
 * The requests of a device, from their start in a slot to their end. This class only passes them on
 * between its parts: a request waits for the gate to the image, for the limits of the device and for
 * room in the disk queue, goes to the image step by step, and waits for its next try when it fails.
 */
export class Requests implements RequestSink, AdmissionClient, Deferred, StepSink, RetrySink {
  /** For the end-of-turn list; not for anyone else. */
  deferred = false;
  readonly counts = new VbdCounts();
  readonly times: RequestTimes;
  /** Counts requests for monitoring programs. */
  readonly meter: Meter;
  /** The disk: what its drivers throw ends it. */
  readonly faults: FaultOwner;
  readonly #context: VbdContext;
  /** Which requests fail and are tried again. */
  readonly trouble: Trouble;
  readonly #slots = new SlotTable();
  readonly #extents = new ExtentSearch(this.#slots);
  readonly #gate = new DrainGate();
  readonly #room: DiskRoom;
  readonly #steps: RequestSteps;
  readonly #retries: RetryQueue;
  /** Holds back what goes beyond the limits. */
  readonly #throttle: Throttle;
  readonly #media: MediaErrors;
  /** Holds back what must come behind changes of clients that are gone. */
  readonly order: RequestOrder;
  readonly #waiting = new SlotQueue();
  /** Decides who gets the free slots. */
  readonly shares: SlotShares;
  /** For requests that the image makes itself. */
  readonly own: ImageSlots;

  /** @param minor The device's number, for the log. @param faults The disk. */
  constructor(context: VbdContext, minor: number, faults: FaultOwner) {
    this.#context = context;
    this.faults = faults;
    this.times = new RequestTimes(context.scheduler.lastMs, this.#slots);
    this.shares = new SlotShares(this.#slots, {
      scheduler: context.scheduler,
      faults,
      clients: this.times.clients,
      callSoon: () => context.deferral.add(this),
    });
    this.meter = new Meter(SLOTS, context.scheduler.lastMs);
    this.#room = new DiskRoom(context.queue);
    this.#media = new MediaErrors(context.queue, this.#gate, () => this.#leaveGate());
    const parts = { slots: this.#slots, gate: this.#gate };
    const seats = { shares: this.shares, room: this.#room, device: faults };
    this.own = new ImageSlots({ ...parts, ...seats, leave: (slot) => this.#leave(slot) });
    this.#retries = new RetryQueue(this.#slots, context.scheduler, this);
    const { log, queue: { health }, scheduler: { lastMs: clock } } = context;
    this.trouble = new Trouble({ minor, log, health, clock, retries: this.#retries });
    this.#throttle = new Throttle(this.#slots, {
      scheduler: context.scheduler,
      faults,
      due: () => context.admission.add(this),
    });
    this.order = new RequestOrder(this.#slots, (slot) => this.#wait(slot));
    this.#steps = new RequestSteps({ ...parts, extents: this.#extents, context, sink: this });
  }

  /** How many requests are open. */
  get outstanding(): number {
    const held = this.#throttle.size + this.order.size;
    return this.#gate.inFlight + this.#waiting.size + held + this.#retries.size;
  }

  /** The requests that failed and wait for their next try: how many, and their last error. */
  get retrying(): Pick<RetryQueue, "size" | "error"> {
    return this.#retries;
  }

  /** What the device does in a second at most. */
  get limits(): RateLimits {
    return this.#throttle.limits;
  }

  /** Changes the limits, also for requests that wait already. They outlast pauses. */
  limit(limits: RateLimits): void {
    this.#throttle.change(limits);
  }

  /** Age of the oldest request at the disk, milliseconds. */
  get unansweredMs(): number {
    return this.times.longestMs(Stage.Disk, this.#context.scheduler.nowMs());
  }

  /** One line for each open request, the oldest first, for the log. */
  report(): string[] {
    const nowMs = this.#context.scheduler.nowMs();
    return reportRequests(this.#slots, { times: this.times, retries: this.#retries, nowMs });
  }

  /** Runs requests against an image, those first that waited for it. */
  run(target: RequestTarget): void {
    this.#steps.fit(target.image);
    this.#media.open(target.files);
    this.#gate.open(target);
    if (!target.reopening.isRunning) this.#retries.beginAll();
    this.#startWaiting();
  }

  /**
   * Starts no more requests. Those that wait, and those that come, wait until `run`, or end with
   * ESHUTDOWN. Calls back when no request is at the image any more.
   *
   * @param hold Whether they wait.
   */
  stop(hold: boolean, drained: () => void): void {
    this.#gate.close(hold, () => {
      if (!hold) this.#endWaiting();
      drained();
    });
    this.#throttle.moveTo(this.#waiting);
    this.order.moveTo(this.#waiting);
    if (hold) {
      this.times.moveAll(Stage.Room, Stage.Paused);
      this.times.moveAll(Stage.Limit, Stage.Paused);
    } else this.#endWaiting();
    this.#gate.finish();
  }

  /** Takes `stop` back, and starts requests again; false when no request is at the image any more. */
  cancelStop(): boolean {
    if (!this.#gate.reopen()) return false;
    this.#startWaiting();
    return true;
  }

  #startWaiting(): void {
    this.times.moveAll(Stage.Paused, Stage.Room);
    if (this.#waiting.size > 0) this.#context.admission.add(this);
  }

  #endWaiting(): void {
    this.#retries.stop();
    for (let left = this.#retries.size; left > 0; left--) this.#drop(this.#retries.shift());
    for (let left = this.#waiting.size; left > 0; left--) this.#drop(this.#waiting.shift());
  }

  #drop(slot: number, errno: number = Errno.ESHUTDOWN): void {
    this.times.drop(slot, errno);
    this.meter.end(slot, this.#slots.kind[slot], 0, errno);
    this.#close(slot, errno);
    this.#tellOwner(slot, errno);
  }

  /**
   * The disk has failed: all requests end with EIO, and so do those that come, until `run`. The disk
   * queue may still move bytes of some: their room and slots stay taken until `releaseRoom`.
   */
  fail(): void {
    this.#gate.fail();
    this.#retries.clear();
    this.#waiting.clear();
    this.#throttle.clear();
    this.order.clear();
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.#room.holds(slot)) this.#slots.detain(slot);
      if (this.#slots.isOpen(slot)) this.#drop(slot, Errno.EIO);
    }
  }

  /** Gives back the room of the disk queue, and the slots, that a disk that failed used until now. */
  releaseRoom(): void {
    this.#room.giveAll();
    this.#slots.releaseDetained();
    if (this.shares.isWanted) this.#context.deferral.add(this);
    this.#media.forget();
  }

  /**
   * Unmaps the slots as soon as all are released: the kernel may still use the memory of some. No
   * request may be open.
   */
  destroy(): void {
    this.#slots.destroy();
    this.#media.destroy();
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

  /** Whether the disk may still use a slot's memory after the end of its request, as it failed. */
  isDetained(slot: number): boolean {
    return this.#slots.isDetained(slot);
  }

  /** Address of a slot's memory, `SLOT_BYTES` of it. */
  slotAddress(slot: number): number {
    return this.#slots.address(slot);
  }

  /** Sector of I/O memory at which a slot's memory begins. */
  slotSector(slot: number): number {
    return this.#slots.memorySector(slot);
  }

  /** Puts the data of a slot's next request elsewhere in I/O memory than in the slot's own. */
  putDataAt(slot: number, memorySector: number): void {
    this.#slots.dataSector[slot] = memorySector;
  }

  /** Where a slot's memory begins in `memory`, bytes. */
  slotOffset(slot: number): number {
    return slot * SLOT_BYTES;
  }

  /** The memory of all slots; behind it that of frontends. */
  get memory(): Arena {
    return this.#slots.arena;
  }

  /** Where in `memory` the `FRONTEND_BYTES` begin that are the frontends', bytes. */
  get frontendOffset(): number {
    return SLOTS * SLOT_BYTES;
  }

  /** Calls once when slots have become free. */
  waitForSlots(waiter: SlotWaiter): void {
    this.shares.waitUnclaimed(waiter);
  }

  runDeferred(): void {
    this.#gate.finish();
    this.shares.callWaiters();
  }

  /**
   * Starts a request. `requestDone` of the owner is called at its end, perhaps before this returns.
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
    this.#slots.describe(slot, kind, sector, count, fua, owner);
    this.#extents.begin(slot);
    this.#retries.begin(slot);
    this.order.begin(slot);
    const refusal = this.#refusal(kind, sector, count);
    if (refusal !== 0) return owner.requestDone(slot, refusal);
    // A request without sectors does not go to the image.
    if (count === 0 && kind !== RequestKind.Flush) return owner.requestDone(slot, 0);
    this.times.begin(slot);
    this.meter.begin(slot, kind);
    this.#slots.open(slot);
    if (!this.#gate.isOpen || this.#waiting.size > 0 || !this.#issue(slot, true)) this.#wait(slot);
  }

  /** Starts a request for the extents of a range; at most `mostExtents` are found. */
  startStatus(
    slot: number,
    sector: number,
    count: number,
    mostExtents: number,
    owner: RequestOwner,
  ): void {
    this.#extents.limit(slot, mostExtents);
    this.start(slot, RequestKind.Status, sector, count, false, owner);
  }

  /** How many extents a status request found; `ExtentSearch` says how they lie in its memory. */
  extents(slot: number): number {
    return this.#extents.count(slot);
  }

  /** The error number for a request that must not go to the image; 0 for others. */
  #refusal(kind: number, sector: number, count: number): number {
    if (this.faults.failed) return Errno.EIO;
    const { target, holds } = this.#gate;
    // Without an image there is nothing to compare with: requests that wait are checked later.
    if (target === null) return holds ? 0 : Errno.ESHUTDOWN;
    if (kind === RequestKind.Flush) return 0;
    if (sector + count > target.image.sectors) {
      return kind === RequestKind.Write ? Errno.ENOSPC : Errno.EINVAL;
    }
    const changes = kind !== RequestKind.Read && kind !== RequestKind.Status;
    return changes && target.readOnly ? Errno.EPERM : 0;
  }

  #wait(slot: number): void {
    const { isOpen } = this.#gate;
    this.#waiting.push(slot);
    this.times.move(slot, isOpen ? Stage.Room : Stage.Paused);
    if (isOpen) this.#context.admission.add(this);
  }

  /** Whether requests go to the image now. */
  get isRunning(): boolean {
    return this.#gate.isOpen && !this.faults.failed;
  }

  get wantsAdmission(): boolean {
    return this.isRunning && (this.#waiting.size > 0 || this.#throttle.isDue);
  }

  admit(): boolean {
    let any = false;
    while (this.isRunning && this.#waiting.size > 0) {
      const slot = this.#waiting.shift();
      if (!this.#issue(slot, true)) {
        this.#waiting.unshift(slot);
        return any;
      }
      any = true;
    }
    return this.#throttle.size > 0 && this.#admitHeld() || any;
  }

  /** Starts requests whose time by the limits has come. */
  #admitHeld(): boolean {
    let any = false;
    for (let slot = 0; this.isRunning && (slot = this.#throttle.release()) >= 0;) {
      if (!this.#issue(slot, false)) {
        this.#throttle.putBack(slot);
        return any;
      }
      any = true;
    }
    if (this.isRunning) this.#throttle.arm();
    return any;
  }

  /**
   * Hands a request to the image; false when the disk queue has no room for it. A fault of the image
   * ends the disk, and this request with it, and not the frontend that called.
   *
   * @param mayHold Whether it may be held back by a limit instead.
   */
  #issue(slot: number, mayHold: boolean): boolean {
    try {
      return this.#handOver(slot, mayHold);
    } catch (error) {
      this.#context.scheduler.contain(error, this.faults);
      return true;
    }
  }

  #handOver(slot: number, mayHold: boolean): boolean {
    const { kind, sector, count } = this.#slots;
    if (this.#retries.isMoot(slot)) {
      this.#drop(slot, Errno.ECONNRESET);
      return true;
    }
    const refusal = this.#refusal(kind[slot], sector[slot], count[slot]);
    if (this.order.isOn && refusal === 0 && this.order.holds(slot)) {
      this.times.move(slot, Stage.Room);
      return true;
    }
    const isLimited = this.#throttle.isOn && refusal === 0;
    if (isLimited && mayHold && this.#throttle.holds(slot)) {
      this.times.move(slot, Stage.Limit);
      return true;
    }
    if (!this.#room.take(slot, this.#steps.operations(slot))) return false;
    if (isLimited) this.#throttle.pass(slot, this.#steps.sectors(slot));
    this.times.move(slot, Stage.Disk);
    this.#gate.enter();
    if (refusal !== 0) this.#end(slot, refusal);
    else this.#steps.run(slot);
    return true;
  }

  /** The request leaves the image: it ended, or waits for its next step or try. */
  #leave(slot: number): void {
    this.#room.give(slot);
    this.#leaveGate();
  }

  #leaveGate(): void {
    // The image that ended the last request is still in a call: it is closed after that.
    if (this.#gate.leave()) this.#context.deferral.add(this);
  }

  #close(slot: number, errno: number): void {
    this.#slots.close(slot);
    this.order.end(slot);
    this.trouble.ended(slot, errno);
  }

  #end(slot: number, errno: number): void {
    const kind = this.#slots.kind[slot] as RequestKind;
    this.counts.note(kind, this.#slots.count[slot], errno);
    this.times.end(slot, kind, errno);
    this.meter.end(slot, kind, this.#slots.count[slot], errno);
    this.#close(slot, errno);
    this.#leave(slot);
    this.#tellOwner(slot, errno);
  }

  /** Ends a request for its owner. A fault of the owner ends the owner, and not the disk. */
  #tellOwner(slot: number, errno: number): void {
    const owner = this.#slots.owner[slot];
    try {
      owner.requestDone(slot, errno);
    } catch (error) {
      this.#context.scheduler.contain(error, owner.faults ?? this.faults);
    }
  }

  // ---- calls of the image and of the parts -------------------------------------------------

  pieceDone(slot: number, sectors: number, errno: number): void {
    if (!this.faults.failed) this.#steps.pieceDone(slot, sectors, errno);
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    return !this.faults.failed && this.#extents.add(slot, sectors, isData);
  }

  statusDone(slot: number, errno: number): void {
    if (!this.faults.failed) this.#steps.statusDone(slot, errno);
  }

  /** Between two steps the request queues up again, behind others. */
  stepDone(slot: number): void {
    this.order.stepDone(slot);
    this.#leave(slot);
    this.#wait(slot);
  }

  stepsDone(slot: number): void {
    this.#end(slot, 0);
  }

  stepFailed(slot: number, errno: number): void {
    const { target } = this.#gate;
    const again = target !== null && this.#retries.noteFailure(slot, errno, target.retry);
    const isOfPlace = !again && this.#retries.failedAtPlace(slot);
    if (isOfPlace) this.counts.mediaErrors++;
    if (target !== null) this.trouble.failed(slot, errno, target, { again, isOfPlace });
    if (!again) return this.#end(slot, errno);
    if (isOfUnknownFile(errno)) target.reopening.consider(target.retry);
    this.counts.retries++;
    this.#retries.push(slot);
    this.times.move(slot, Stage.Retry);
    this.#leave(slot);
  }

  areErrorsOfPlaces(sinceMs: number): boolean {
    return this.#media.areOfPlaces(sinceMs);
  }

  retriesBegin(sinceMs: number): void {
    this.#media.probe(sinceMs);
  }

  retry(slot: number): void {
    this.#wait(slot);
  }
}
