import { SECTOR_BYTES } from "../../../ffi/memory.ts";
import { GrantCopies, type Grants } from "../../../ffi/xen.ts";
import { REQUEST_SECTORS } from "../../driver/driver.ts";
import type { Requests } from "../../vbd/requests.ts";
import { SLOTS } from "../../vbd/slots.ts";
import type { SegmentTable } from "./segment_table.ts";

/**
 * Moves the data of parts between the guest's pages and the memory of their slots. The copies of all
 * parts of a turn are made by one call of the hypervisor, which checks the grants.
 */
export class Transfers {
  /** By slot: first sector of the part on the disk, and how many there are. */
  readonly sector = new Float64Array(SLOTS);
  readonly count = new Uint16Array(SLOTS);
  /** By slot: whether the last copy of its data failed. */
  readonly failed = new Uint8Array(SLOTS);
  /** Slots of writes whose data is to be copied from the guest, or was. */
  readonly staged = new Uint16Array(SLOTS);
  /** Slots of reads whose data is to be copied to the guest, or was. */
  readonly ended = new Uint16Array(SLOTS);
  readonly #requests: Requests;
  readonly #segments: SegmentTable;
  readonly #grants: Grants;
  readonly #copies: GrantCopies;
  /** By slot: the request, and its segments. */
  readonly #number = new Uint16Array(SLOTS);
  readonly #first = new Uint16Array(SLOTS);
  readonly #length = new Uint16Array(SLOTS);
  #stagedCount = 0;
  #endedCount = 0;

  constructor(requests: Requests, segments: SegmentTable, grants: Grants, domain: number) {
    this.#requests = requests;
    this.#segments = segments;
    this.#grants = grants;
    this.#copies = new GrantCopies(domain);
  }

  /** The next part of a request begins in a slot; returns its sectors. */
  describe(slot: number, number: number, sector: number): number {
    const segments = this.#segments;
    const first = segments.next(number);
    const length = segments.takePart(number, REQUEST_SECTORS);
    let count = 0;
    for (let i = 0; i < length; i++) count += segments.lengthSectors(number, first + i);
    this.#number[slot] = number;
    this.#first[slot] = first;
    this.#length[slot] = length;
    this.sector[slot] = sector;
    this.count[slot] = count;
    this.failed[slot] = 0;
    return count;
  }

  /** Adds a write; false when those before it have to be copied first. */
  stageWrite(slot: number): boolean {
    if (this.#copies.room < this.#length[slot]) return false;
    this.staged[this.#stagedCount++] = slot;
    const number = this.#number[slot];
    let to = this.#requests.slotSector(slot);
    const end = this.#first[slot] + this.#length[slot];
    for (let i = this.#first[slot]; i < end; i++) {
      const reference = this.#segments.reference(number, i);
      const offset = this.#segments.firstSector(number, i) * SECTOR_BYTES;
      const count = this.#segments.lengthSectors(number, i);
      this.#copies.addFromGuest(reference, offset, to, count * SECTOR_BYTES);
      to += count;
    }
    return true;
  }

  /** Copies the data of the writes that were added from the guest; returns how many writes. */
  copyStaged(): number {
    const count = this.#stagedCount;
    if (count === 0) return 0;
    this.#stagedCount = 0;
    this.#copy(this.staged, 0, count);
    return count;
  }

  /** Adds a read that has ended. */
  stageRead(slot: number): void {
    this.ended[this.#endedCount++] = slot;
  }

  /** Copies the data of the reads that have ended to the guest; returns how many reads. */
  copyReads(): number {
    const count = this.#endedCount;
    let from = 0;
    for (let i = 0; i < count; i++) {
      const slot = this.ended[i];
      if (this.#copies.room < this.#length[slot]) {
        this.#copy(this.ended, from, i);
        from = i;
      }
      this.#addRead(slot);
    }
    if (count > 0) this.#copy(this.ended, from, count);
    this.#endedCount = 0;
    return count;
  }

  #addRead(slot: number): void {
    const number = this.#number[slot];
    let from = this.#requests.slotSector(slot);
    const end = this.#first[slot] + this.#length[slot];
    for (let i = this.#first[slot]; i < end; i++) {
      const reference = this.#segments.reference(number, i);
      const offset = this.#segments.firstSector(number, i) * SECTOR_BYTES;
      const count = this.#segments.lengthSectors(number, i);
      this.#copies.addToGuest(reference, offset, from, count * SECTOR_BYTES);
      from += count;
    }
  }

  /** Makes the copies of some slots, and notes which failed. */
  #copy(slots: Uint16Array, from: number, to: number): void {
    const errno = this.#grants.copy(this.#copies);
    let index = 0;
    for (let i = from; i < to; i++) {
      const slot = slots[i];
      let isBad = errno !== 0;
      for (let left = this.#length[slot]; left > 0; left--) {
        if (this.#copies.status(index++) !== 0) isBad = true;
      }
      this.failed[slot] = isBad ? 1 : 0;
    }
    this.#copies.clear();
  }

  /** Forgets the reads that have ended; returns how many there are in `ended`. */
  dropReads(): number {
    const count = this.#endedCount;
    this.#endedCount = 0;
    return count;
  }

  /** Forgets the writes that were added; returns how many there are in `staged`. */
  dropStaged(): number {
    const count = this.#stagedCount;
    this.#stagedCount = 0;
    return count;
  }

  /** Releases the memory. */
  release(): void {
    this.#copies.release();
  }
}
