/**
 * A virtual block device: its chain of images, and its requests from the first byte to the answer.
 * It neither knows how requests come in (frontends do) nor where on a disk they go (drivers do).
 *
 * This file makes what all devices of a process share.
 *
 * @module
 */
import { Arena } from "../../ffi/memory.ts";
import { Deferral } from "../driver/deferral.ts";
import { type DriverContext, SECTOR_BYTES } from "../driver/driver.ts";
import { PieceTable } from "../driver/pieces.ts";
import type { DiskBackend } from "../queue/backend.ts";
import type { DiskFiles } from "../queue/disk_files.ts";
import { DiskQueue } from "../queue/disk_queue.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { Scheduler, TurnWork } from "../scheduler/scheduler.ts";

const QUEUE_CAPACITY = 32768;
const ZERO_BYTES = 1 << 20;

/** A device whose requests wait for room in the disk queue. */
export interface AdmissionClient {
  /** Whom a fault of it ends. */
  readonly faults: FaultOwner;
  /** Starts what it can; false when it could start nothing. */
  admit(): boolean;
  /** Whether requests still wait. */
  readonly wantsAdmission: boolean;
}

/** Lets devices start their waiting requests as the disk queue gets room, each in its turn. */
export class Admission implements TurnWork {
  #clients: AdmissionClient[] = [];
  readonly #scheduler: Pick<Scheduler, "contain">;

  /** @param scheduler Told of faults. */
  constructor(scheduler: Pick<Scheduler, "contain">) {
    this.#scheduler = scheduler;
  }

  /** Puts a device behind the others that wait. */
  add(client: AdmissionClient): void {
    if (!this.#clients.includes(client)) this.#clients.push(client);
  }

  endOfTurn(): boolean {
    if (this.#clients.length === 0) return false;
    let any = false;
    const clients = this.#clients;
    this.#clients = [];
    for (const client of clients) {
      try {
        if (client.admit()) any = true;
        if (client.wantsAdmission) this.add(client);
      } catch (error) {
        this.#scheduler.contain(error, client.faults);
      }
    }
    return any;
  }
}

/** What all devices of a process share. */
export interface VbdContext extends DriverContext {
  readonly admission: Admission;
}

/** Nobody writes there, so one serves all. */
let zeros: Arena | null = null;

/** Makes the shared parts of a process. */
export function createVbdContext(
  { scheduler, backend, files, log }: {
    scheduler: Scheduler;
    backend: DiskBackend;
    files: DiskFiles;
    log: (message: string) => void;
  },
): VbdContext {
  const queue = new DiskQueue(scheduler, backend, QUEUE_CAPACITY);
  const deferral = new Deferral(scheduler);
  const admission = new Admission(scheduler);
  zeros ??= new Arena(ZERO_BYTES);
  scheduler.addTurnWork(deferral);
  scheduler.addTurnWork(admission);
  return {
    scheduler,
    queue,
    files,
    pieces: new PieceTable(QUEUE_CAPACITY),
    deferral,
    admission,
    zeros: { at: zeros.sector, sectors: ZERO_BYTES / SECTOR_BYTES },
    log,
  };
}
