import { assert, AssertionError } from "../../ffi/assert.ts";
import { Arena } from "../../ffi/memory.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import { REQUEST_SECTORS, REQUEST_SLOTS, SECTOR_BYTES } from "../driver/driver.ts";

/** What a request asks for. */
export const RequestKind = {
  Read: 0,
  Write: 1,
  Flush: 2,
  Discard: 3,
  Zero: 4,
  /** Which sectors hold data; the answer is in the slot's memory, see `ExtentSearch`. */
  Status: 5,
  /** Zeroes that take room on disk. */
  Fill: 6,
} as const;
/** One of `RequestKind`. */
export type RequestKind = (typeof RequestKind)[keyof typeof RequestKind];

/** Bytes of memory of each slot: the most that one request reads or writes. */
export const SLOT_BYTES = REQUEST_SECTORS * SECTOR_BYTES;
/** Slots of a device: the requests that it holds at once. */
export const SLOTS = REQUEST_SLOTS;

/** Memory behind that of the slots, which frontends divide among their clients. */
export const FRONTEND_BYTES = 80 * 1024 * 1024;

const NONE = -1;

/** What made a request. */
export interface RequestOwner {
  /** What a fault of `requestDone` ends; without it, the disk. */
  readonly faults?: FaultOwner;
  /** Whether it has gone without an answer to its requests: what has not begun of them is given up. */
  readonly hasAbandoned?: boolean;
  /** Whether it makes no more requests: it has said so, or has gone. */
  readonly hasEnded?: boolean;
  /**
   * The request in a slot ended. The slot and its memory stay the owner's until it releases them.
   *
   * @param errno 0, or a positive error number.
   */
  requestDone(slot: number, errno: number): void;
}

/** Records what becomes of slots. */
export interface SlotTrace {
  /** A client has taken a slot for its next request. */
  taken(slot: number): void;
  /** A slot was given back. */
  given(slot: number): void;
  /** Whether anyone waits for slots now. */
  wanted(isWanted: boolean): void;
}

const nobody: RequestOwner = {
  requestDone(): void {
    throw new AssertionError("A request without an owner ended");
  },
};

/** Where a slot is in its life. */
const SlotLife = {
  /** Nobody has it. */
  Free: 0,
  /** A frontend has it, and may write to its memory. */
  Taken: 1,
  /** It has a request that has not ended: its memory is the device's. */
  Open: 2,
} as const;

/**
 * The slots of a device: a fixed number of requests, what is known of each, and the memory that each
 * has. Two requests in one slot would overwrite each other's data, so each step of a slot's life is
 * checked.
 */
export class SlotTable {
  /** Records what becomes of slots; null while the disk is not traced. */
  trace: SlotTrace | null = null;
  readonly kind = new Uint8Array(SLOTS);
  readonly sector = new Float64Array(SLOTS);
  readonly count = new Float64Array(SLOTS);
  /** Whether the request ends only when its data is on stable storage. */
  readonly fua = new Uint8Array(SLOTS);
  readonly owner = new Array<RequestOwner>(SLOTS).fill(nobody);
  /** Sectors of the request that have ended, a step at a time. */
  readonly progress = new Float64Array(SLOTS);
  /** Sectors of the step under way that have not ended. */
  readonly pending = new Float64Array(SLOTS);
  /** The first error of the step under way; 0 without one. */
  readonly error = new Int32Array(SLOTS);
  /** Where in I/O memory the data of the request lies: in the slot's own memory by default. */
  readonly dataSector = new Int32Array(SLOTS);
  /** Whether the step under way is the flush that ends a forced write. */
  readonly flushing = new Uint8Array(SLOTS);
  /** Memory of the slots, and behind it that of frontends: copies between them stay within it. */
  readonly arena = new Arena(SLOTS * SLOT_BYTES + FRONTEND_BYTES);
  readonly #life = new Uint8Array(SLOTS);
  /** Whether slots that were given back stay taken, as the disk may still use its memory. */
  readonly #isDetained = new Uint8Array(SLOTS);
  readonly #next = new Int32Array(SLOTS);
  #free = 0;
  #freeCount = SLOTS;
  #destroyed = false;

  constructor() {
    for (let i = 0; i < SLOTS; i++) {
      this.#next[i] = i + 1 < SLOTS ? i + 1 : NONE;
      this.dataSector[i] = this.memorySector(i);
    }
  }

  /** How many slots are free. */
  get freeCount(): number {
    return this.#freeCount;
  }

  /** Takes the slot that was given back last, whose memory is warm; -1: none is free. */
  take(): number {
    const slot = this.#free;
    if (slot === NONE) return NONE;
    assert(this.#life[slot] === SlotLife.Free, "A free slot is free");
    this.#life[slot] = SlotLife.Taken;
    this.#free = this.#next[slot];
    this.#freeCount--;
    return slot;
  }

  /** Gives a slot back whose request has ended, or was never started. */
  give(slot: number): void {
    assert(this.#life[slot] === SlotLife.Taken, "A slot is given back once, after its request");
    this.#life[slot] = SlotLife.Free;
    this.owner[slot] = nobody;
    if (this.trace !== null) this.trace.given(slot);
    this.dataSector[slot] = this.memorySector(slot);
    if (this.#isDetained[slot] === 0) this.#makeFree(slot);
  }

  #makeFree(slot: number): void {
    this.#next[slot] = this.#free;
    this.#free = slot;
    this.#freeCount++;
    if (this.#destroyed) this.#unmapUnused();
  }

  /**
   * Keeps a slot from others, also when it is given back, until `releaseDetained`: the disk may still
   * write from its memory, or read into it, after its request has ended.
   */
  detain(slot: number): void {
    this.#isDetained[slot] = 1;
  }

  /** Whether the disk may still use a slot's memory, although its request has ended. */
  isDetained(slot: number): boolean {
    return this.#isDetained[slot] === 1;
  }

  /** The disk uses the memory of no slot any more whose request has ended. */
  releaseDetained(): void {
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.#isDetained[slot] === 0) continue;
      this.#isDetained[slot] = 0;
      if (this.#life[slot] === SlotLife.Free) this.#makeFree(slot);
    }
  }

  /** Describes a request, before it is refused or opened. */
  describe(
    slot: number,
    kind: RequestKind,
    sector: number,
    count: number,
    fua: boolean,
    owner: RequestOwner,
  ): void {
    assert(this.#life[slot] === SlotLife.Taken, "A slot that was taken has one request at a time");
    this.kind[slot] = kind;
    this.sector[slot] = sector;
    this.count[slot] = count;
    this.fua[slot] = fua ? 1 : 0;
    this.owner[slot] = owner;
    this.progress[slot] = 0;
    this.pending[slot] = 0;
    this.error[slot] = 0;
    this.flushing[slot] = 0;
  }

  /** A request begins. */
  open(slot: number): void {
    assert(this.#life[slot] === SlotLife.Taken, "A request begins in a slot that was taken");
    this.#life[slot] = SlotLife.Open;
  }

  /** A request ends: its slot is the owner's again. */
  close(slot: number): void {
    assert(this.#life[slot] === SlotLife.Open, "A request ends once");
    this.#life[slot] = SlotLife.Taken;
  }

  /** Whether a slot has a request that has not ended. */
  isOpen(slot: number): boolean {
    return this.#life[slot] === SlotLife.Open;
  }

  /** Unmaps the memory as soon as all slots are free. */
  destroy(): void {
    this.#destroyed = true;
    this.#unmapUnused();
  }

  #unmapUnused(): void {
    if (this.#freeCount === SLOTS) this.arena.release();
  }

  /** Sector of I/O memory at which a slot's memory begins. */
  memorySector(slot: number): number {
    return this.arena.sector + slot * REQUEST_SECTORS;
  }

  /** Address of a slot's memory. */
  address(slot: number): number {
    return this.arena.address + slot * SLOT_BYTES;
  }
}
