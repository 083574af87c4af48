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
} from "../../../ffi/blktap_ring.ts";
import { assert } from "../../../ffi/assert.ts";
import { Errno } from "../../../ffi/errno.ts";
import { REQUEST_SECTORS } from "../../driver/driver.ts";
import type { FdHandler, TurnWork } from "../../scheduler/scheduler.ts";
import type { SlotWaiter } from "../../vbd/slot_shares.ts";
import type { Meter } from "../../metrics/meter.ts";
import { RequestKind, type RequestOwner, SLOTS } from "../../vbd/slots.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import type { Tap } from "./tap.ts";

/** Receives the events of a ring that are not requests. */
export interface RingOwner {
  /** The driver sent a BLKTAP_RING_MESSAGE_*. */
  message(message: number): void;
  /** The ring makes no sense. No more requests are taken from it. */
  broken(reason: string): void;
  /** All requests that were taken have their responses. */
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

// Elements of `#at`: requests taken, responses written and responses published in all, modulo 2^32.
const TAKEN = 0;
const ANSWERED = 1;
const PUBLISHED = 2;

function statusOf(errno: number): number {
  if (errno === 0) return BLKTAP_RSP_OKAY;
  return errno === Errno.EOPNOTSUPP ? BLKTAP_RSP_EOPNOTSUPP : BLKTAP_RSP_ERROR;
}

/**
 * The requests of a ring, by number. A request is copied and checked, then started, and gets its
 * response when all of its parts have ended. Its data stays in the pages that the driver mapped.
 * Adjacent segments that are contiguous in memory form one part. Each part takes a slot.
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
  /** Parts that have not ended, plus one until all have started. */
  readonly #partsLeft = new Int32Array(BLKTAP_RING_SIZE);
  readonly #error = new Int32Array(BLKTAP_RING_SIZE);
  /** First sector of the next part, on the disk. */
  readonly #sector = new Float64Array(BLKTAP_RING_SIZE);
  /** Sectors of the data, for the meter. */
  readonly #sectors = new Uint32Array(BLKTAP_RING_SIZE);
  readonly #meter: Meter;
  readonly #trimSectors = new Float64Array(BLKTAP_RING_SIZE);
  readonly #first = new Uint8Array(BLKTAP_RING_SIZE * BLKTAP_SEGMENT_MAX);
  readonly #last = new Uint8Array(BLKTAP_RING_SIZE * BLKTAP_SEGMENT_MAX);
  /** Requests with parts that have not started, in order of arrival. */
  readonly #waiting = new Uint8Array(BLKTAP_RING_SIZE);
  #firstWaiting = 0;
  #waitingCount = 0;
  /** By slot: the request of the part in it. */
  readonly #requestOf = new Uint8Array(SLOTS);

  /** @param vbd The device that serves the requests. */
  constructor(vbd: Vbd, tap: Tap, owner: RingOwner) {
    this.#vbd = vbd;
    this.#tap = tap;
    this.#owner = owner;
    this.#meter = vbd.meters.open({ of: "blktap", minor: vbd.minor }, BLKTAP_RING_SIZE);
  }

  /** Ends the counting for monitoring programs. */
  close(): void {
    this.#meter.hide();
  }

  /** How many requests were taken from the ring and have no response. */
  get unanswered(): number {
    return this.#at[TAKEN] - this.#at[ANSWERED] | 0;
  }

  /** The ring device is readable. */
  ready(_events: number): void {
    this.#tap.device.woken();
    this.takeRequests();
    if (this.#broken) return;
    const message = this.#tap.ring.message();
    if (message !== 0) this.#owner.message(message);
  }

  /** Takes new requests from the ring and starts them. */
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

  /** Fails the requests that have not started, and all later ones. */
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

  /** Checks the request that was taken last, and queues it. */
  #admit(): void {
    const { ring } = this.#tap;
    const id = ring.id();
    // A response would end the first request of the number, whose pages a disk operation may use.
    if (id >= 0 && this.#busy[id] === 1) {
      // The second request gets no response.
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
    this.#meter.begin(id, this.#operation[id]);
    this.#waiting[(this.#firstWaiting + this.#waitingCount++) % BLKTAP_RING_SIZE] = id;
  }

  /** Copies and checks a request; returns 0 or the errno with which it fails. */
  #copy(id: number): number {
    const { ring } = this.#tap;
    const operation = ring.operation();
    this.#operation[id] = operation;
    this.#segments[id] = 1;
    this.#sectors[id] = 0;
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
    this.#sectors[id] = sectors;
    return this.#checkRange(id, ring.sector(), sectors);
  }

  /** Checks the range of the whole request, so that no part of it fails after another was done. */
  #checkRange(id: number, sector: number, count: number): number {
    this.#sector[id] = sector;
    return sector < 0 || count < 0 || sector + count > this.#vbd.sectors ? Errno.EINVAL : 0;
  }

  /** Starts the queued requests as long as there are free slots. */
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

  /** Starts the next part of a request; false when there is no free slot. */
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

  /**
   * Starts a part: the segments up to the first gap. There is no gap from one page's end to the
   * next.
   */
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
    this.#meter.end(id, this.#operation[id], this.#sectors[id], this.#error[id]);
    const status = statusOf(this.#error[id]);
    this.#tap.ring.answer(this.#at[ANSWERED]++, id, this.#operation[id], status);
  }

  /** Publishes all responses of the turn with one call. */
  endOfTurn(): boolean {
    if (this.#at[ANSWERED] === this.#at[PUBLISHED]) return false;
    this.#at[PUBLISHED] = this.#at[ANSWERED];
    this.#tap.ring.publish(this.#at[ANSWERED]);
    this.#tap.device.respond();
    if (this.unanswered === 0) this.#owner.answered();
    return true;
  }
}
