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
  /** Which sectors hold data; the answer is in the slot's memory, see `Vbd.extents`. */
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

/** The most clients that a device's frontends serve at once. */
export const MOST_CLIENTS = 512;
/** Memory that each client has, to receive into and to compose answers in. */
export const CLIENT_BYTES = 160 * 1024;

/** How it goes with a status request that an image was asked. */
export const StatusFlag = {
  /** The call that asks has not returned. */
  Asking: 1,
  /** The image has told the end. */
  Ended: 2,
  /** The image has told of an extent. */
  Told: 4,
  /** The answer has no room for another extent. */
  Full: 8,
} as const;

const NONE = -1;

/** A request, as the one who made it sees it. */
export interface RequestOwner {
  /** Whom it ends when `requestDone` throws; without it, the disk. */
  readonly faults?: FaultOwner;
  /**
   * The request in a slot ended. The slot and its memory stay the owner's until it releases them.
   *
   * @param errno 0, or a positive error number.
   */
  requestDone(slot: number, errno: number): void;
}

const nobody: RequestOwner = {
  requestDone(): void {
    throw new Error("A request without an owner ended");
  },
};

/** The requests of a device: a fixed number of slots, and the memory that each has. */
export class SlotTable {
  readonly kind = new Uint8Array(SLOTS);
  readonly sector = new Float64Array(SLOTS);
  readonly count = new Float64Array(SLOTS);
  /** Write to stable storage before the request ends. */
  readonly fua = new Uint8Array(SLOTS);
  /** The most extents that a status request wants. */
  readonly mostExtents = new Uint32Array(SLOTS);
  readonly owner = new Array<RequestOwner>(SLOTS).fill(nobody);
  /** How far a request that goes step by step has come, sectors. */
  readonly progress = new Float64Array(SLOTS);
  /** Sectors of the step under way that have not ended. */
  readonly pending = new Float64Array(SLOTS);
  readonly error = new Int32Array(SLOTS);
  /** Whether the slot has a request that has not ended. */
  readonly open = new Uint8Array(SLOTS);
  /** Room of the disk queue that the request holds. */
  readonly reserved = new Uint32Array(SLOTS);
  /** Failed tries, and how the last of them failed; 0 without one. */
  readonly attempts = new Uint32Array(SLOTS);
  readonly lastError = new Int32Array(SLOTS);
  readonly firstFailedMs = new Float64Array(SLOTS);
  /** Extents found by a status request. */
  readonly extents = new Uint32Array(SLOTS);
  /** A union of `StatusFlag` bits: how a status request that the image was asked goes. */
  readonly statusFlags = new Uint8Array(SLOTS);
  /** Where in I/O memory the data of the request lies: the slot's own memory unless told. */
  readonly dataSector = new Int32Array(SLOTS);
  /** Whether the flush that ends a forced write is what is under way. */
  readonly flushing = new Uint8Array(SLOTS);
  /** Memory of the slots, and behind it that of clients: copies between them stay within it. */
  readonly arena = new Arena(SLOTS * SLOT_BYTES + MOST_CLIENTS * CLIENT_BYTES);
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
    this.#free = this.#next[slot];
    this.#freeCount--;
    return slot;
  }

  /** Gives a slot back. */
  give(slot: number): void {
    this.owner[slot] = nobody;
    this.dataSector[slot] = this.memorySector(slot);
    this.#next[slot] = this.#free;
    this.#free = slot;
    this.#freeCount++;
    if (this.#destroyed) this.#unmapUnused();
  }

  /** Unmaps the memory as soon as all slots are free. */
  destroy(): void {
    this.#destroyed = true;
    this.#unmapUnused();
  }

  #unmapUnused(): void {
    if (this.#freeCount === SLOTS) this.arena.release();
  }

  /** Where the memory of client `client` begins in the arena, bytes. */
  clientOffset(client: number): number {
    return SLOTS * SLOT_BYTES + client * CLIENT_BYTES;
  }

  /** Sector of I/O memory at which a slot's memory begins. */
  memorySector(slot: number): number {
    return this.arena.sector + slot * (SLOT_BYTES / 512);
  }

  /** Address of a slot's memory. */
  address(slot: number): number {
    return this.arena.address + slot * SLOT_BYTES;
  }
}

/** A queue of slots, first in, first out; a slot is in one at most. */
export class SlotQueue {
  readonly #slots = new Int32Array(SLOTS);
  #head = 0;
  #size = 0;

  /** How many slots wait. */
  get size(): number {
    return this.#size;
  }

  /** Puts a slot at the end. */
  push(slot: number): void {
    this.#slots[(this.#head + this.#size++) % SLOTS] = slot;
  }

  /** Puts a slot back to where it was shifted from. */
  unshift(slot: number): void {
    this.#head = (this.#head + SLOTS - 1) % SLOTS;
    this.#slots[this.#head] = slot;
    this.#size++;
  }

  /** Takes all out. */
  clear(): void {
    this.#size = 0;
  }

  /** Takes the first slot out; there must be one. */
  shift(): number {
    const slot = this.#slots[this.#head];
    this.#head = (this.#head + 1) % SLOTS;
    this.#size--;
    return slot;
  }
}
