/**
 * The kernel's side of a blktap2 ring, in the process of the tapdisk's side and on a simulated disk.
 *
 * @module
 */
import type { BlktapDriver, BlktapRingDevice } from "../../../../ffi/blktap.ts";
import type { Arena } from "../../../../ffi/memory.ts";
import type { BlockDevice, DeviceHost } from "../../../../src/frontend/block_device.ts";
import { blktap2MakerOn } from "../../../../src/frontend/blktap2/blktap2_device.ts";
import { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { createVbdContext } from "../../../../src/vbd/vbd_context.ts";
import { Vbd } from "../../../../src/vbd/vbd.ts";
import { createDynamic } from "../../../../src/vhd/create.ts";
import { checkedDrivers } from "../../../support/checked_drivers.ts";
import { SocketScheduler } from "./socket_scheduler.ts";

const PAGE = 4096;
export const RING_ENTRIES = 32;
export const MOST_SEGMENTS = 11;
const ENTRIES_AT = 64;
const ENTRY_BYTES = 112;
const RING_FD = 1_000_000;
const EPOLLIN = 1;
const ALLOC_TAP = 200;
const DISK_BYTES = 4 << 20;

/** A response in the ring. */
export interface RingResponse {
  readonly id: bigint;
  readonly operation: number;
  readonly status: number;
}

/** A tapdisk with one disk, and the driver that its device belongs to. */
export class RingKernel {
  readonly scheduler = new SocketScheduler();
  readonly log: string[] = [];
  readonly vbd: Vbd;
  readonly sectors = DISK_BYTES / 512;
  /** The ring and its pages; null before the device is made. */
  #arena: Arena | null = null;
  #device: BlockDevice | null = null;
  #produced = 0;
  #taken = 0;
  readonly #host: DeviceHost;

  constructor(seed: number, latencyMs: number) {
    const disk = new SimulatedDisk({ seed });
    createDynamic("/disk.vhd", { storage: disk, sizeBytes: DISK_BYTES });
    const connection = disk.connect(this.scheduler, { latencyMs });
    const write = (message: string): void => void this.log.push(message);
    const context = createVbdContext({
      scheduler: this.scheduler,
      backend: connection,
      files: connection,
      driverOf: checkedDrivers,
      log: write,
    });
    this.vbd = new Vbd(context, 0);
    this.vbd.open("vhd:/disk.vhd");
    const log = { info: write, warn: write, error: write };
    this.#host = { scheduler: this.scheduler, vbd: this.vbd, log };
  }

  /** The device, which is made when there is none. */
  get device(): BlockDevice {
    if (this.#device !== null && !this.#device.gone) return this.#device;
    this.#produced = 0;
    this.#taken = 0;
    blktap2MakerOn(this.#driver()).attach(this.#host, null, (error, device) => {
      if (error !== null) throw error;
      this.#device = device;
    });
    if (this.#device === null) throw new Error("No device was made");
    return this.#device;
  }

  get isGone(): boolean {
    return this.#device?.gone ?? true;
  }

  get arena(): Arena {
    if (this.#arena === null) throw new Error("There is no ring");
    return this.#arena;
  }

  #driver(): BlktapDriver {
    const ring: BlktapRingDevice = {
      fd: RING_FD,
      map: (arena) => {
        this.#arena = arena;
        arena.bytes.fill(0);
      },
      call: () => 0,
      respond() {},
      woken() {},
      close: () => Promise.resolve(),
    };
    return {
      missing: () => null,
      control(request, argument): number {
        if (request === ALLOC_TAP && typeof argument !== "number") {
          new Uint32Array(argument.buffer).set([240, 253, 7]);
        }
        return 0;
      },
      openRing: () => ring,
      makeNode: () => "/dev/xen/blktap-2/tapdev7",
      removeNodes() {},
      clearUp() {},
    };
  }

  /** Offset of the next request in `arena`; `publish` shows it to the tapdisk. */
  nextEntry(): number {
    const index = this.#produced++ & (RING_ENTRIES - 1);
    return ENTRIES_AT + index * ENTRY_BYTES;
  }

  /** Offset of a page of a request's data. */
  pageAt(id: number, segment: number): number {
    return PAGE * (1 + id * MOST_SEGMENTS + segment);
  }

  /** Shows the requests to the tapdisk, or more than there are. */
  publish(jump = 0): void {
    this.#produced += jump;
    this.arena.view.setInt32(0, this.#produced, true);
    this.wake();
  }

  /** Sends a message of the driver. */
  message(message: number): void {
    this.arena.view.setUint8(16, message);
    this.wake();
  }

  wake(): void {
    this.scheduler.wake(RING_FD, EPOLLIN);
  }

  /** Takes the responses that are there. */
  responses(): RingResponse[] {
    const { view } = this.arena;
    const found: RingResponse[] = [];
    const ready = view.getInt32(8, true);
    for (; this.#taken !== ready; this.#taken++) {
      if (found.length > RING_ENTRIES) throw new Error("More responses than entries");
      const at = ENTRIES_AT + (this.#taken & (RING_ENTRIES - 1)) * ENTRY_BYTES;
      found.push({
        id: view.getBigUint64(at, true),
        operation: view.getUint8(at + 8),
        status: view.getInt16(at + 10, true),
      });
    }
    return found;
  }

  /** Runs the loop until it has nothing left to do; throws for a fault of the program. */
  settle(): void {
    for (let turns = 0; this.scheduler.turn(); turns++) {
      if (turns > 100_000) throw new Error("The ring never comes to rest");
    }
    const fault = this.log.find((line) => line.includes("fault"));
    if (fault !== undefined) throw new Error(fault);
  }
}
