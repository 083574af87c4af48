/**
 * Guests with their rings at simulated disks of one process.
 *
 * @module
 */
import type { SimulatedScheduler } from "../../../src/testing/simulated_scheduler.ts";
import { GuestRings } from "../../../src/frontend/xenblkif/guest_rings.ts";
import type { ProcessorTimes } from "../../../src/frontend/xenblkif/polling.ts";
import { createDynamic } from "../../../src/vhd/create.ts";
import { Vbd } from "../../../src/vbd/vbd.ts";
import { SeenPages } from "../metrics.ts";
import { SECTOR_BYTES, SimulatedDevice, Simulation, type SimulationOptions } from "../sim.ts";
import { type GuestOptions, type GuestResponse, PlayedGuest } from "./played_guest.ts";
import { type Events, PlayedXen } from "./played_xen.ts";

/** Events of a simulated loop. */
function eventsOf(scheduler: SimulatedScheduler): Events {
  return {
    openEvent: () => scheduler.openEvent(),
    signal: (fd) => scheduler.signal(fd),
    taken() {},
    closeEvent: (fd) => scheduler.closeEvent(fd),
    dropEvent: (fd) => scheduler.closeEvent(fd),
    adoptEvent: () => scheduler.openEvent(),
  };
}

/** A disk, and the rings that it serves. */
export interface ServedDisk {
  readonly device: SimulatedDevice;
  readonly rings: GuestRings;
}

/** A process with Xen, and any number of disks and guests. */
export class XenRig {
  readonly metrics = new SeenPages();
  readonly simulation: Simulation;
  readonly xen: PlayedXen;
  readonly log: string[] = [];
  readonly guests: PlayedGuest[] = [];
  readonly disks: ServedDisk[] = [];
  /** The folder of the rings' journals; null: they have none. */
  journals: string | null = null;
  times: ProcessorTimes = { idle: 0, all: 0 };

  readonly #options: Partial<SimulationOptions>;

  constructor(options: Partial<SimulationOptions> = {}) {
    this.#options = options;
    this.simulation = new Simulation({ seed: 1, metrics: this.metrics, ...options });
    this.xen = new PlayedXen(eventsOf(this.simulation.scheduler));
  }

  /** Kills the process. The next one has the same disk and guests, and serves nothing yet. */
  kill(): XenRig {
    this.simulation.connection.die();
    // Requests that never end would keep their memory.
    for (const { device } of this.disks) device.vbd.requests.memory.release();
    const next = new XenRig({ ...this.#options, disk: this.simulation.disk });
    next.journals = this.journals;
    next.times = this.times;
    for (const guest of this.guests) guest.moveTo(next.xen);
    next.xen.knowOf(this.xen);
    next.guests.push(...this.guests);
    return next;
  }

  /** Another process on this machine, with disks of its own, which is to serve the guests of this one. */
  neighbour(): XenRig {
    const next = new XenRig(this.#options);
    next.journals = this.journals;
    next.times = this.times;
    next.xen.knowOf(this.xen);
    for (const { ring, memory } of this.guests) next.xen.memories.set(ring.domain, memory);
    return next;
  }

  /** A disk that is served. */
  disk(sectors: number, options: { readOnly?: boolean; exists?: boolean } = {}): ServedDisk {
    const path = `/disk${this.disks.length}.vhd`;
    const storage = this.simulation.disk;
    if (!options.exists) createDynamic(path, { storage, sizeBytes: sectors * SECTOR_BYTES });
    const vbd = new Vbd(this.simulation.context, this.disks.length);
    vbd.open(`vhd:${path}`, options);
    const device = new SimulatedDevice(this.simulation, vbd);
    const write = (message: string): void => void this.log.push(message);
    const rings = new GuestRings({
      scheduler: this.simulation.scheduler,
      log: { info: write, warn: write, error: write },
      vbd: device.vbd,
      xen: this.xen,
      processors: () => this.times,
    }, ({ domain }) => this.journals === null ? null : `${this.journals}/${domain}`);
    const disk = { device, rings };
    this.disks.push(disk);
    return disk;
  }

  /** A guest whose ring is connected to a disk. */
  guest({ rings }: ServedDisk, options: GuestOptions = {}): PlayedGuest {
    const guest = new PlayedGuest(this.xen, { domain: this.guests.length + 1, ...options });
    this.guests.push(guest);
    rings.connect(guest.ring);
    return guest;
  }

  /** Runs turns until a guest has so many responses; returns all that there are. */
  responses(guest: PlayedGuest, count: number): GuestResponse[] {
    const { scheduler } = this.simulation;
    for (let turns = 0; guest.waiting < count && turns < 10_000; turns++) {
      if (!scheduler.turn()) break;
    }
    scheduler.turn();
    return guest.take();
  }

  /** Ends all rings and disks. */
  close(): void {
    for (const { rings, device } of this.disks) {
      rings.close();
      device.close();
    }
    for (const guest of this.guests) guest.close();
    this.simulation.close();
  }
}
