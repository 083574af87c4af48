import type { OwnSlots } from "../driver/local_cache.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { DiskRoom } from "./disk_room.ts";
import type { DrainGate } from "./drain_gate.ts";
import type { SlotShares } from "./slot_shares.ts";
import { SLOTS, type SlotTable } from "./slots.ts";

/** Slots for requests that an image makes itself. The device is not drained before they have ended. */
export class ImageSlots implements OwnSlots {
  readonly #slots: SlotTable;
  readonly #shares: SlotShares;
  readonly #gate: DrainGate;
  readonly #room: DiskRoom;
  readonly #device: FaultOwner;
  readonly #leave: (slot: number) => void;

  /** @param leave A request leaves the image. */
  constructor(
    { slots, shares, gate, room, device, leave }: {
      slots: SlotTable;
      shares: SlotShares;
      gate: DrainGate;
      room: DiskRoom;
      device: FaultOwner;
      leave: (slot: number) => void;
    },
  ) {
    this.#slots = slots;
    this.#shares = shares;
    this.#gate = gate;
    this.#room = room;
    this.#device = device;
    this.#leave = leave;
  }

  takeOwn(sectors: number): number {
    if (!this.#gate.isOpen || 2 * this.#slots.freeCount < SLOTS) return -1;
    const slot = this.#slots.take();
    if (!this.#room.take(slot, this.#gate.image.operationsFor(sectors))) {
      this.#slots.give(slot);
      return -1;
    }
    this.#gate.enter();
    return slot;
  }

  giveOwn(slot: number): void {
    if (!this.#device.failed) this.#leave(slot);
    this.#shares.release(slot);
  }

  slotSector(slot: number): number {
    return this.#slots.memorySector(slot);
  }
}
