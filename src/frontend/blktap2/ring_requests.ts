import {
  BLKTAP_OP_FLUSH,
  BLKTAP_OP_READ,
  BLKTAP_OP_TRIM,
  BLKTAP_OP_WRITE,
  BLKTAP_PAGE_SECTORS,
  BLKTAP_RING_SIZE,
  BLKTAP_RSP_EOPNOTSUPP,
  BLKTAP_RSP_ERROR,
  BLKTAP_RSP_OKAY,
  BLKTAP_SEGMENT_MAX,
} from "../../../ffi/blktap.ts";
import { assert } from "../../../ffi/assert.ts";
import { Errno } from "../../../ffi/errno.ts";
import { REQUEST_SECTORS } from "../../driver/driver.ts";
import type { FdHandler, TurnWork } from "../../scheduler/scheduler.ts";
import type { SlotWaiter } from "../../vbd/slot_shares.ts";
import { RequestKind, type RequestOwner, SLOTS } from "../../vbd/slots.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import type { Tap } from "./tap.ts";

/** Who is told of what is not a request. */
export interface RingOwner {
  /** The driver asks for something: BLKTAP_RING_MESSAGE_*. */
  message(message: number): void;
  /** What the ring says makes no sense; no more requests are taken from it. */
  broken(reason: string): void;
  /** All requests that were taken have their answer. */
  answered(): void;
}

const LAST_SECTOR = BLKTAP_PAGE_SECTORS - 1;

assert(
  BLKTAP_SEGMENT_MAX * BLKTAP_PAGE_SECTORS <= REQUEST_SECTORS,
  "A request of a blktap2 ring has more sectors than a driver takes",
);
// Arrays of bytes hold the numbers of requests and the sectors of a page.
assert(BLKTAP_RING_SIZE <= 256 && LAST_SECTOR < 256, "A number of a blktap2 ring is no byte");
assert((BLKTAP_RING_SIZE & (BLKTAP_RING_SIZE - 1)) === 0, "A blktap2 ring has no whole turns");

// Places in `#at`, and in the ring, count requests and answers since the beginning, modulo 2^32.
const TAKEN = 0;
const ANSWERED = 1;
const PUBLISHED = 2;

function statusOf(errno: number): number {
  if (errno === 0) return BLKTAP_RSP_OKAY;
  return errno === Errno.EOPNOTSUPP ? BLKTAP_RSP_EOPNOTSUPP : BLKTAP_RSP_ERROR;
}

/**
 * The requests of a ring, by their number: checked and copied before they start, and answered when
 * all of their parts have ended. Their data stays in the pages that the driver mapped. The segments
 * of a request that do not join in memory are parts of their own, each in a slot of the device.
 */
export class RingRequests implements FdHandler, TurnWork, RequestOwner, SlotWaiter {
  readonly #vbd: Vbd;
  readonly #tap: Tap;
  readonly #owner: RingOwner;
  readonly #at = new Int32Array(3);
  #refusing = false;
  #broken = false;
  readonly #busy = new Uint8Array(BLKTAP_RING_SIZE);
  readonly #operation = new Uint8Array(BLKTAP_RING_SIZE);
  readonly #segments = new Uint8Array(BLKTAP_RING_SIZE);
  readonly #nextSegment = new Uint8Array(BLKTAP_RING_SIZE);
  /** Parts that have not ended; one more until all have started. */
  readonly #partsLeft = new Int32Array(BLKTAP_RING_SIZE);
  readonly #error = new Int32Array(BLKTAP_RING_SIZE);
  /** First sector of the next part. */
  readonly #sector = new Float64Array(BLKTAP_RING_SIZE);
  readonly #trimSectors = new Float64Array(BLKTAP_RING_SIZE);
  readonly #first = new Uint8Array(BLKTAP_RING_SIZE * BLKTAP_SEGMENT_MAX);
  readonly #last = new Uint8Array(BLKTAP_RING_SIZE * BLKTAP_SEGMENT_MAX);
  /** Requests with parts that have not started, in the order in which they came. */
  readonly #waiting = new Uint8Array(BLKTAP_RING_SIZE);
  #firstWaiting = 0;
  #waitingCount = 0;
  /** By slot: the request that has a part in it. */
  readonly #requestOf = new Uint8Array(SLOTS);

  /** @param vbd Answers the requests. */
  constructor(vbd: Vbd, tap: Tap, owner: RingOwner) {
    this.#vbd = vbd;
    this.#tap = tap;
    this.#owner = owner;
  }

  /** How many requests were taken from the ring and have no answer. */
  get unanswered(): number {
    return this.#at[TAKEN] - this.#at[ANSWERED] | 0;
  }

  /** The ring has something new. */
  ready(_events: number): void {
    this.#tap.device.woken();
    this.takeRequests();
    if (this.#broken) return;
    const message = this.#tap.ring.message();
    if (message !== 0) this.#owner.message(message);
  }

  /** Takes what the driver has put in, and starts it. */
  takeRequests(): void {
    if (this.#broken) return;
    const { ring } = this.#tap;
    const count = ring.produced() - this.#at[TAKEN] | 0;
    if (count < 0 || count > BLKTAP_RING_SIZE - this.unanswered) {
      return this.#break(`${count} new requests, and ${this.unanswered} without an answer`);
    }
    for (let left = count; left > 0 && !this.#broken; left--) {
      ring.take(this.#at[TAKEN]++);
      this.#admit();
    }
    this.#startWaiting();
  }

  #break(reason: string): void {
    this.#broken = true;
    this.refuse();
    this.#owner.broken(reason);
  }

  /** From now on requests fail that have not started. */
  refuse(): void {
    this.#refusing = true;
    for (; this.#waitingCount > 0; this.#shiftWaiting()) {
      const id = this.#waiting[this.#firstWaiting];
      this.#error[id] = Errno.EIO;
      this.#partEnded(id);
    }
  }

  #shiftWaiting(): void {
    this.#firstWaiting = (this.#firstWaiting + 1) % BLKTAP_RING_SIZE;
    this.#waitingCount--;
  }

  /** Looks at the request that was taken last, and lets it wait for its slots. */
  #admit(): void {
    const { ring } = this.#tap;
    const id = ring.id();
    // An answer would end the request that has the number, in whose pages a disk may be at work.
    if (id >= 0 && this.#busy[id] === 1) {
      // The one too many gets no answer.
      this.#at[TAKEN]--;
      return this.#break(`a second request of number ${id}, which is under way`);
    }
    const errno = id < 0 ? Errno.EINVAL : this.#copy(id);
    if (errno !== 0) {
      return ring.answerTaken(this.#at[ANSWERED]++, statusOf(errno));
    }
    this.#busy[id] = 1;
    this.#nextSegment[id] = 0;
    this.#partsLeft[id] = 1;
    this.#error[id] = 0;
    this.#waiting[(this.#firstWaiting + this.#waitingCount++) % BLKTAP_RING_SIZE] = id;
  }

  /** Copies and checks a request; returns an error number for one that cannot be. */
  #copy(id: number): number {
    const { ring } = this.#tap;
    const operation = ring.operation();
    this.#operation[id] = operation;
    this.#segments[id] = 1;
    if (this.#refusing) return Errno.EIO;
    switch (operation) {
      case BLKTAP_OP_READ:
      case BLKTAP_OP_WRITE:
        return this.#copySegments(id);
      case BLKTAP_OP_TRIM:
        this.#trimSectors[id] = ring.trimSectors();
        return this.#checkRange(id, ring.sector(), this.#trimSectors[id]);
      default:
        return operation === BLKTAP_OP_FLUSH ? 0 : Errno.EOPNOTSUPP;
    }
  }

  #copySegments(id: number): number {
    const { ring } = this.#tap;
    const segments = ring.segments();
    if (segments < 1 || segments > BLKTAP_SEGMENT_MAX) return Errno.EINVAL;
    this.#segments[id] = segments;
    let sectors = 0;
    for (let i = 0; i < segments; i++) {
      const first = ring.firstSector(i);
      const last = ring.lastSector(i);
      if (first > last || last > LAST_SECTOR) return Errno.EINVAL;
      this.#first[id * BLKTAP_SEGMENT_MAX + i] = first;
      this.#last[id * BLKTAP_SEGMENT_MAX + i] = last;
      sectors += last - first + 1;
    }
    return this.#checkRange(id, ring.sector(), sectors);
  }

  /** What is done in parts is not to fail in the middle. */
  #checkRange(id: number, sector: number, count: number): number {
    this.#sector[id] = sector;
    return sector < 0 || count < 0 || sector + count > this.#vbd.sectors ? Errno.EINVAL : 0;
  }

  /** Starts what waits, as far as there are slots. */
  #startWaiting(): void {
    while (this.#waitingCount > 0) {
      const id = this.#waiting[this.#firstWaiting];
      while (this.#nextSegment[id] < this.#segments[id]) {
        if (!this.#startPart(id)) return this.#vbd.requests.waitForSlots(this);
      }
      this.#shiftWaiting();
      this.#partEnded(id);
    }
  }

  slotsFree(): void {
    this.#startWaiting();
  }

  /** Starts the next part of a request; false when there is no slot for it. */
  #startPart(id: number): boolean {
    const { requests } = this.#vbd;
    const slot = requests.takeSlot();
    if (slot < 0) return false;
    this.#requestOf[slot] = id;
    this.#partsLeft[id]++;
    const operation = this.#operation[id];
    if (operation === BLKTAP_OP_READ || operation === BLKTAP_OP_WRITE) {
      this.#startTransfer(slot, id);
    } else {
      this.#nextSegment[id] = 1;
      const kind = operation === BLKTAP_OP_TRIM ? RequestKind.Discard : RequestKind.Flush;
      const count = operation === BLKTAP_OP_TRIM ? this.#trimSectors[id] : 0;
      requests.start(slot, kind, this.#sector[id], count, false, this);
    }
    return true;
  }

  /** Segments join where one ends and the next begins with its page. */
  #startTransfer(slot: number, id: number): void {
    const { requests } = this.#vbd;
    const pages = id * BLKTAP_SEGMENT_MAX;
    let segment = this.#nextSegment[id];
    const first = this.#first[pages + segment];
    const memorySector = this.#tap.dataSector + (pages + segment) * BLKTAP_PAGE_SECTORS + first;
    let count = this.#last[pages + segment] - first + 1;
    while (
      ++segment < this.#segments[id] && this.#last[pages + segment - 1] === LAST_SECTOR &&
      this.#first[pages + segment] === 0
    ) count += this.#last[pages + segment] + 1;
    this.#nextSegment[id] = segment;
    const sector = this.#sector[id];
    this.#sector[id] = sector + count;
    const isRead = this.#operation[id] === BLKTAP_OP_READ;
    const kind = isRead ? RequestKind.Read : RequestKind.Write;
    requests.putDataAt(slot, memorySector);
    requests.start(slot, kind, sector, count, false, this);
  }

  requestDone(slot: number, errno: number): void {
    const id = this.#requestOf[slot];
    this.#vbd.requests.releaseSlot(slot);
    if (errno !== 0) this.#error[id] = errno;
    this.#partEnded(id);
  }

  #partEnded(id: number): void {
    if (--this.#partsLeft[id] > 0) return;
    this.#busy[id] = 0;
    const status = statusOf(this.#error[id]);
    this.#tap.ring.answer(this.#at[ANSWERED]++, id, this.#operation[id], status);
  }

  /** Shows the driver all answers of this turn at once. */
  endOfTurn(): boolean {
    if (this.#at[ANSWERED] === this.#at[PUBLISHED]) return false;
    this.#at[PUBLISHED] = this.#at[ANSWERED];
    this.#tap.ring.publish(this.#at[ANSWERED]);
    this.#tap.device.respond();
    if (this.unanswered === 0) this.#owner.answered();
    return true;
  }
}
