import { assert } from "../../ffi/assert.ts";
import type { Done } from "../../ffi/errno.ts";
import { copySectors } from "../../ffi/memory.ts";
import type { ImageDriver } from "../driver/driver.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { Requests } from "./requests.ts";
import type { Second, SecondSink } from "./second.ts";
import { RequestKind, type RequestOwner, SLOTS } from "./slots.ts";

const NONE = -1;

/** A second disk, open. */
export interface SecondDisk {
  readonly requests: Requests;
  readonly sectors: number;
  readonly name: string;
  /** Its images, the top one first. */
  readonly images: readonly ImageDriver[];
  close(done: Done): void;
  /** Ends at once what waits for others, such as servers. */
  giveUp(): void;
  destroy(): void;
}

/**
 * A secondary image that is a disk of its own, beside the device. Requests run in slots of that disk,
 * on copies of the data: the device can end its own request while the second disk still has the copy.
 */
export class BesideSecond implements Second, RequestOwner {
  readonly isNeeded = false;
  readonly zeroSectors = Infinity;
  readonly fillSectors = Infinity;
  /** The device: what throws at the end of a request is above the second disk. */
  readonly faults: FaultOwner;
  readonly #disk: SecondDisk;
  readonly #sink: SecondSink;
  /** By slot of the second disk: the device's slot, and where its data is read to. */
  readonly #slotOf = new Int32Array(SLOTS).fill(NONE);
  readonly #memory = new Int32Array(SLOTS);
  /** Sectors to copy when a read has ended; 0 for other requests. */
  readonly #readSectors = new Int32Array(SLOTS);
  /** By slot of the device: the slot of the second disk. */
  readonly #ownSlot = new Int32Array(SLOTS).fill(NONE);

  constructor(disk: SecondDisk, device: FaultOwner, sink: SecondSink) {
    this.#disk = disk;
    this.faults = device;
    this.#sink = sink;
  }

  get name(): string {
    return this.#disk.name;
  }

  get sectors(): number {
    return this.#disk.sectors;
  }

  get images(): readonly ImageDriver[] {
    return this.#disk.images;
  }

  /** The second disk reserves room itself. */
  operationsFor(): number {
    return 0;
  }

  start(
    slot: number,
    kind: RequestKind,
    sector: number,
    count: number,
    memorySector: number,
  ): void {
    const { requests } = this.#disk;
    assert(this.#ownSlot[slot] === NONE, "A request goes to the secondary image once");
    const own = requests.takeSlot();
    assert(own !== NONE, "The second disk has a slot for each of the device");
    this.#ownSlot[slot] = own;
    this.#slotOf[own] = slot;
    this.#memory[own] = memorySector;
    this.#readSectors[own] = kind === RequestKind.Read ? count : 0;
    if (kind === RequestKind.Write) copySectors(requests.slotSector(own), memorySector, count);
    requests.start(own, kind, sector, count, false, this);
  }

  requestDone(own: number, errno: number): void {
    const { requests } = this.#disk;
    const slot = this.#slotOf[own];
    const count = this.#readSectors[own];
    // Once the device has failed, the memory of its requests belongs to others.
    if (slot !== NONE && errno === 0 && count > 0 && !this.faults.failed) {
      copySectors(this.#memory[own], requests.slotSector(own), count);
    }
    this.#slotOf[own] = NONE;
    requests.releaseSlot(own);
    if (slot === NONE) return;
    this.#ownSlot[slot] = NONE;
    if (!this.faults.failed) this.#sink.secondDone(slot, errno);
  }

  has(slot: number): boolean {
    return this.#ownSlot[slot] !== NONE;
  }

  forget(slot: number): void {
    const own = this.#ownSlot[slot];
    if (own === NONE) return;
    this.#ownSlot[slot] = NONE;
    this.#slotOf[own] = NONE;
  }

  hurry(): void {
    this.#disk.giveUp();
  }

  close(done: Done): void {
    const disk = this.#disk;
    disk.close((error) => {
      disk.destroy();
      done(error);
    });
  }
}
