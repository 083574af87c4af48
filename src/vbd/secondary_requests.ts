import { assert } from "../../ffi/assert.ts";
import { copySectors } from "../../ffi/memory.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { Requests } from "./requests.ts";
import { RequestKind, type RequestOwner, SLOTS } from "./slots.ts";

const NONE = -1;

/** Is told of the ends of requests to the secondary disk. */
export interface SecondarySink {
  /** @param slot The slot of the device, not of the secondary disk. */
  secondaryDone(slot: number, errno: number): void;
}

/**
 * Requests of a device to its secondary disk. They run in slots of that disk, on copies of the data:
 * the device can end its own request while the secondary disk still has the copy.
 */
export class SecondaryRequests implements RequestOwner {
  readonly #requests: Requests;
  readonly #sink: SecondarySink;
  /** The device. Once it has failed, the memory of its requests belongs to others. */
  readonly #device: FaultOwner;
  /** By slot of the secondary disk: the device's slot, and where its data is read to. */
  readonly #slotOf = new Int32Array(SLOTS).fill(NONE);
  readonly #memory = new Int32Array(SLOTS);
  /** Sectors to copy when a read has ended; 0 for other requests. */
  readonly #readSectors = new Int32Array(SLOTS);
  /** By slot of the device: the slot of the secondary disk. */
  readonly #ownSlot = new Int32Array(SLOTS).fill(NONE);

  constructor(requests: Requests, device: FaultOwner, sink: SecondarySink) {
    this.#requests = requests;
    this.#device = device;
    this.#sink = sink;
  }

  /** Starts a request. Each slot of the device has at most one. It may end before this returns. */
  start(
    slot: number,
    kind: RequestKind,
    sector: number,
    count: number,
    memorySector: number,
  ): void {
    assert(this.#ownSlot[slot] === NONE, "A request goes to the secondary disk once");
    const own = this.#requests.takeSlot();
    assert(own !== NONE, "The secondary disk has a slot for each of the device");
    this.#ownSlot[slot] = own;
    this.#slotOf[own] = slot;
    this.#memory[own] = memorySector;
    this.#readSectors[own] = kind === RequestKind.Read ? count : 0;
    if (kind === RequestKind.Write) {
      copySectors(this.#requests.slotSector(own), memorySector, count);
    }
    this.#requests.start(own, kind, sector, count, false, this);
  }

  requestDone(own: number, errno: number): void {
    const slot = this.#slotOf[own];
    const count = this.#readSectors[own];
    if (slot !== NONE && errno === 0 && count > 0 && !this.#device.failed) {
      copySectors(this.#memory[own], this.#requests.slotSector(own), count);
    }
    this.#slotOf[own] = NONE;
    this.#requests.releaseSlot(own);
    if (slot === NONE) return;
    this.#ownSlot[slot] = NONE;
    if (!this.#device.failed) this.#sink.secondaryDone(slot, errno);
  }

  /** Whether a request of the device is at the secondary disk. */
  has(slot: number): boolean {
    return this.#ownSlot[slot] !== NONE;
  }

  /** Nobody waits for what is under way any more. */
  forget(slot: number): void {
    const own = this.#ownSlot[slot];
    if (own === NONE) return;
    this.#ownSlot[slot] = NONE;
    this.#slotOf[own] = NONE;
  }
}
