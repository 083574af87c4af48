import { assert } from "../../../ffi/assert.ts";
import type { BlkifRing } from "../../../ffi/blkif_ring.ts";
import { Errno } from "../../../ffi/errno.ts";
import type { Grants } from "../../../ffi/xen.ts";
import type { Meter } from "../../metrics/meter.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { SlotClaim, SlotHolder } from "../../vbd/slot_shares.ts";
import { RequestKind, type RequestOwner, SLOTS } from "../../vbd/slots.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import type { HandedRing } from "./guest.ts";
import { NumberQueue } from "./number_queue.ts";
import { RequestChecks } from "./request_checks.ts";
import { OrderStep, RequestTable, statusOf } from "./request_table.ts";
import type { RingJournal } from "./ring_journal.ts";
import { SegmentTable } from "./segment_table.ts";
import { Transfers } from "./transfers.ts";

/** What the requests of a ring need. */
export interface RingRequestsHost {
  readonly scheduler: Scheduler;
  readonly vbd: Vbd;
  /** What a fault ends: the ring. */
  readonly owner: FaultOwner;
  /** Counts requests for monitoring programs, by their numbers here. */
  readonly meter: Meter;
  /** The ring makes no sense. No more requests are taken from it. */
  broken(reason: string): void;
}

const NONE = -1;

// Elements of `#at`.
const TAKEN = 0;
const ANSWERED = 1;
const PUBLISHED = 2;

/**
 * The requests of a guest's ring. A request is copied and checked, then gets a number of its own, which
 * is below the ring's number of entries, and waits for its turn. It is started in parts, each of which
 * takes a slot, and gets its response when all of its parts have ended. The number that the guest gave
 * it is only returned: it may be any, and several requests may have it.
 *
 * The memory of a slot gets the sectors of a part in the order of the disk, however they are scattered
 * over the guest's pages. So no page of the guest is in use by the disk, and a guest may go, or take
 * its grants back, at any time.
 */
export class RingRequests implements RequestOwner, SlotHolder {
  readonly #host: RingRequestsHost;
  readonly #ring: BlkifRing;
  readonly #segments: SegmentTable;
  readonly #transfers: Transfers;
  readonly #table: RequestTable;
  readonly #checks: RequestChecks;
  /** Its share of the disk's slots, which other guests and clients of the disk need, too. */
  readonly #claim: SlotClaim;
  /** Null where another tapdisk could not go on with the ring. */
  readonly #journal: RingJournal | null;
  /** Requests taken, responses written and responses published in all, modulo 2^32. */
  readonly #at = new Int32Array(3);
  #isTaking = true;
  /** The disk is being closed. */
  #isHeld = false;
  #isBroken = false;
  /** The ring is not mapped any more. */
  #isGone = false;
  /** Numbers that no request has. */
  readonly #free: Uint16Array;
  #freeCount: number;
  /** Requests that a disk that is being closed did not carry out. They have no answer. */
  #leftOver = 0;
  /** Requests with parts that have not started, in order of arrival. */
  readonly #waiting: NumberQueue;
  /** The ordered request whose end those that wait are waiting for. */
  #barrier = NONE;
  /** Whether those that wait may be able to go on. */
  #isDue = false;
  /** By slot: the request of the part in it. */
  readonly #numberOf = new Uint16Array(SLOTS);

  /** @param domain The guest. */
  constructor(
    host: RingRequestsHost,
    { ring, grants, domain, journal, isReadOnly, handed }: {
      ring: BlkifRing;
      grants: Grants;
      domain: number;
      journal: RingJournal | null;
      isReadOnly: boolean;
      /** What another process, which has had the ring, says of it. */
      handed: HandedRing | null;
    },
  ) {
    const { entries } = ring;
    this.#host = host;
    this.#ring = ring;
    this.#segments = new SegmentTable(entries, grants, domain);
    this.#transfers = new Transfers(host.vbd.requests, this.#segments, grants, domain);
    this.#table = new RequestTable(entries, isReadOnly);
    const parts = { ring, table: this.#table, segments: this.#segments, vbd: host.vbd };
    this.#checks = new RequestChecks(parts);
    this.#claim = host.vbd.requests.shares.open(this);
    this.#journal = journal;
    this.#free = Uint16Array.from({ length: entries }, (_, i) => i);
    this.#freeCount = entries;
    this.#waiting = new NumberQueue(entries);
    // Of a tapdisk that had the ring before, the answers are there.
    this.#at.fill(handed?.taken ?? ring.answered());
    this.#isBroken = handed?.isBroken ?? false;
  }

  get faults(): FaultOwner {
    return this.#host.owner;
  }

  /** Whether the guest waits for the answer to a request that was taken. */
  get isAwaited(): boolean {
    return this.#at[TAKEN] !== this.#at[PUBLISHED];
  }

  /** Whether no request is under way, after the ring was left. */
  get isQuiet(): boolean {
    return this.#freeCount + this.#leftOver === this.#ring.entries;
  }

  /** Whether no more requests are taken, as the indices of the ring made no sense. */
  get isBroken(): boolean {
    return this.#isBroken;
  }

  /** How many requests were taken from the ring in all, modulo 2^32. */
  get taken(): number {
    return this.#at[TAKEN];
  }

  /** Whether there are requests that a disk, which could not be closed, did not carry out. */
  get hasLeftOver(): boolean {
    return this.#leftOver > 0;
  }

  /** How many requests were taken from the ring and have no response. */
  get unanswered(): number {
    return this.#at[TAKEN] - this.#at[ANSWERED] | 0;
  }

  // ---- from the ring ----------------------------------------------------------------------

  /**
   * Takes new requests from the ring and starts them.
   *
   * The event that the guest is asked for is moved on before any of them has an answer, which may
   * overwrite its entry: by the event, another tapdisk knows that it needs the journal.
   *
   * @param wantsEvent Whether the guest shall notify of the next one.
   * @returns Whether there was one.
   */
  takeRequests(wantsEvent: boolean): boolean {
    if (!this.#isTaking) return false;
    let any = false;
    for (;;) {
      const count = this.#ring.produced() - this.#at[TAKEN] | 0;
      if (count === 0) {
        if (!wantsEvent) break;
        this.#ring.askForEvent(this.#at[TAKEN]);
        // The guest may have added one before it could see that.
        if (this.#ring.produced() === this.#at[TAKEN]) break;
        continue;
      }
      // A request that has no answer yet keeps its entry, so that this ends.
      if (count < 0 || count > this.#freeCount) {
        this.#break(`${count} new requests, and ${this.unanswered} without an answer`);
        break;
      }
      any = true;
      this.#take(count);
    }
    if (!any) return false;
    if (!wantsEvent || !this.#isTaking) this.#ring.askForNoEvent(this.#at[TAKEN]);
    this.#startWaiting();
    return true;
  }

  /** Carries out what another tapdisk took from the ring and did not answer. */
  resume(journal: RingJournal): void {
    const numbers = journal.unanswered();
    const others = this.#free.filter((number) => !numbers.includes(number));
    this.#free.set(others);
    this.#freeCount = others.length;
    this.#at[TAKEN] = journal.taken;
    this.#at[ANSWERED] = journal.answered;
    for (const number of numbers) {
      journal.load(number, this.#ring);
      this.#admit(number);
    }
    this.#checks.readTables();
    this.#startWaiting();
  }

  #take(count: number): void {
    for (let left = count; left > 0; left--) {
      const index = this.#at[TAKEN]++;
      this.#ring.take(index);
      const number = this.#free[--this.#freeCount];
      this.#journal?.noteTaken(number, index, this.#ring);
      this.#host.scheduler.noteRequest();
      this.#admit(number);
    }
    this.#checks.readTables();
  }

  #break(reason: string): void {
    this.#isTaking = false;
    this.#isBroken = true;
    this.#host.broken(reason);
  }

  /** Copies and checks the request that was taken last, and queues it. */
  #admit(number: number): void {
    this.#checks.admit(number);
    this.#host.meter.begin(number, this.#table.kind[number]);
    this.#waiting.push(number);
  }

  // ---- to the disk ------------------------------------------------------------------------

  /** Starts the queued requests as long as there are free slots. */
  #startWaiting(): void {
    this.#isDue = false;
    while (this.#waiting.size > 0 && this.#barrier === NONE && !this.#isGone) {
      const number = this.#waiting.first;
      // The disk may still write from the memory of slots that it gave up.
      if (this.#host.vbd.failed) this.#table.error[number] = Errno.EIO;
      if (this.#table.error[number] === 0 && !this.#startParts(number)) break;
      // A fault of an answer within that has ended the ring.
      if (this.#isGone) return;
      this.#waiting.shift();
      if (this.#table.isOrdered[number] === 1) this.#barrier = number;
      this.#partEnded(number);
    }
    this.#startStaged();
  }

  slotsFree(): void {
    if (!this.#isGone) this.#startWaiting();
  }

  giveUpSlots(): void {
    // No slot waits for the guest.
  }

  /** Starts all parts of a request that have not started; false when it has to wait. */
  #startParts(number: number): boolean {
    if (this.#table.isOrdered[number] === 1 && !this.#isFlushed(number)) return false;
    const kind = this.#table.kind[number];
    if (kind === RequestKind.Read || kind === RequestKind.Write) {
      while (this.#segments.hasNext(number)) {
        if (this.#isGone || !this.#startTransfer(number)) return false;
      }
      return true;
    }
    if (this.#table.isOrdered[number] === 1) return true;
    const count = kind === RequestKind.Discard ? this.#table.discardSectors[number] : 0;
    return this.#startWhole(number, kind, count);
  }

  /** Starts a request without data, or the flush before one with data. */
  #startWhole(number: number, kind: number, count: number): boolean {
    const { requests } = this.#host.vbd;
    const slot = this.#takeSlot(number);
    if (slot < 0) return false;
    const sector = kind === RequestKind.Discard ? this.#table.sector[number] : 0;
    requests.start(slot, kind as RequestKind, sector, count, false, this);
    return true;
  }

  /** Takes a slot for a part; -1 when there is none. */
  #takeSlot(number: number): number {
    if (this.#claim.mayTake(1) === 0) {
      this.#claim.wait();
      return NONE;
    }
    const slot = this.#claim.take();
    this.#numberOf[slot] = number;
    this.#table.partsLeft[number]++;
    return slot;
  }

  /** Whether the data of an ordered request may be written; starts the flush before it. */
  #isFlushed(number: number): boolean {
    if (this.#table.step[number] === OrderStep.Waits) {
      const underWay = this.unanswered - this.#waiting.size;
      if (underWay > 0) return false;
      this.#table.step[number] = OrderStep.Flushes;
      if (!this.#startWhole(number, RequestKind.Flush, 0)) {
        this.#table.step[number] = OrderStep.Waits;
      }
    }
    return this.#table.step[number] === OrderStep.Flushed;
  }

  /** Starts the next part of a request: the segments that a slot has room for. */
  #startTransfer(number: number): boolean {
    const slot = this.#takeSlot(number);
    if (slot < 0) return false;
    const transfers = this.#transfers;
    const { requests } = this.#host.vbd;
    const sector = this.#table.sector[number];
    const count = transfers.describe(slot, number, sector);
    this.#table.sector[number] = sector + count;
    if (this.#table.kind[number] === RequestKind.Read) {
      requests.start(slot, RequestKind.Read, sector, count, false, this);
      return true;
    }
    if (!transfers.stageWrite(slot)) {
      this.#startStaged();
      assert(transfers.stageWrite(slot), "A part has more segments than fit into a call");
    }
    return true;
  }

  /** Copies the data of the writes that were staged out of the guest's pages, and starts them. */
  #startStaged(): void {
    if (this.#isGone) return;
    const transfers = this.#transfers;
    const { requests } = this.#host.vbd;
    const count = transfers.copyStaged();
    for (let i = 0; i < count; i++) {
      const slot = transfers.staged[i];
      const number = this.#numberOf[slot];
      if (transfers.failed[slot] === 1) {
        this.requestDone(slot, Errno.EIO);
        continue;
      }
      const { sector, count: sectors } = transfers;
      const fua = this.#table.isOrdered[number] === 1;
      requests.start(slot, RequestKind.Write, sector[slot], sectors[slot], fua, this);
    }
  }

  // ---- back to the guest ------------------------------------------------------------------

  requestDone(slot: number, errno: number): void {
    const number = this.#numberOf[slot];
    const isRead = this.#table.kind[number] === RequestKind.Read;
    // The data goes to the guest with that of the other reads of the turn.
    if (isRead && errno === 0 && !this.#isGone) return this.#transfers.stageRead(slot);
    this.#claim.give(slot);
    if (errno !== 0 && this.#table.error[number] !== Errno.ESHUTDOWN) {
      this.#table.error[number] = errno;
    }
    if (this.#table.step[number] === OrderStep.Flushes) {
      this.#table.step[number] = OrderStep.Flushed;
      this.#isDue = true;
    }
    this.#partEnded(number);
  }

  #partEnded(number: number): void {
    if (--this.#table.partsLeft[number] > 0) return;
    const table = this.#table;
    if (this.#isHeld && !this.#isGone && table.error[number] === Errno.ESHUTDOWN) {
      // For the guest it is under way. Another tapdisk carries it out.
      this.#leftOver++;
      return;
    }
    const { meter } = this.#host;
    meter.end(number, table.kind[number], this.#segments.sectors[number], table.error[number]);
    if (!this.#isGone) this.#answer(number);
    this.#free[this.#freeCount++] = number;
    if (this.#barrier === number) this.#barrier = NONE;
    if (this.#waiting.size > 0) this.#isDue = true;
  }

  #answer(number: number): void {
    const { idLow, idHigh, operation, error } = this.#table;
    const index = this.#at[ANSWERED]++;
    const status = statusOf(error[number]);
    this.#ring.answer(index, idLow[number], idHigh[number], operation[number], status);
    this.#journal?.noteAnswered(number, index);
  }

  /** Copies what was read into the guest's pages. */
  #finishReads(): boolean {
    const transfers = this.#transfers;
    const count = transfers.copyReads();
    for (let i = 0; i < count; i++) {
      const slot = transfers.ended[i];
      const number = this.#numberOf[slot];
      if (transfers.failed[slot] === 1) this.#table.error[number] = Errno.EIO;
      this.#claim.give(slot);
      this.#partEnded(number);
    }
    return count > 0;
  }

  /** Does what is left of a turn; false when there was nothing. */
  finishTurn(): boolean {
    if (this.#isGone) return false;
    let any = this.#finishReads();
    if (this.#isDue) {
      any = true;
      this.#startWaiting();
    }
    return any;
  }

  /**
   * Shows the guest all responses of the turn.
   *
   * @returns Whether it has to be notified.
   */
  publish(): boolean {
    const before = this.#at[PUBLISHED];
    const index = this.#at[ANSWERED];
    if (before === index || this.#isGone) return false;
    this.#at[PUBLISHED] = index;
    return this.#ring.publish(before, index);
  }

  // ---- the end ----------------------------------------------------------------------------

  /**
   * Takes no more requests, or takes them again. Meanwhile, a request that the disk does not carry out
   * has no answer: an error would make a guest's filesystem read-only, or lose what it wrote.
   */
  hold(isHeld: boolean): void {
    this.#isHeld = isHeld;
    this.#isTaking = !isHeld && !this.#isGone && !this.#isBroken;
  }

  /**
   * The ring is to be unmapped: no memory of the guest is touched any more. Requests that have started
   * go on; the others are dropped.
   */
  leave(): void {
    this.#isTaking = false;
    this.#isGone = true;
    this.#claim.end();
    this.#dropTransfers();
    while (this.#waiting.size > 0) {
      const number = this.#waiting.first;
      this.#waiting.shift();
      this.#table.error[number] = Errno.ESHUTDOWN;
      this.#partEnded(number);
    }
    this.#transfers.release();
    this.#segments.release();
  }

  #dropTransfers(): void {
    const transfers = this.#transfers;
    const reads = transfers.dropReads();
    for (let i = 0; i < reads; i++) this.#dropPart(transfers.ended[i]);
    // There are some only after a fault.
    const writes = transfers.dropStaged();
    for (let i = 0; i < writes; i++) this.#dropPart(transfers.staged[i]);
  }

  #dropPart(slot: number): void {
    this.#claim.give(slot);
    this.#partEnded(this.#numberOf[slot]);
  }
}
