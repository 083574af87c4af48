/**
 * `src/testing`: everything simulated, for tests. Code of the product must not import it, and it must not
 * touch files of the machine.
 *
 * This file has a disk in memory, under everything that the product does with a disk. Its files are seen by
 * synchronous code (the disk is a `Storage`), by the disk queue of a process (`connect`) and by bulk work
 * (`bulkContext`), all at the same time, and every operation of each goes through one hook.
 *
 * ## What can go wrong, and how
 *
 * - **Order.** Queued operations end in any order, each within `latencyMs`; an operation takes
 *   effect when it ends. Synchronous calls take effect at once.
 * - **Delay.** `SimulatedConnection.hang` lets a file answer nothing for a while.
 * - **Errors.** `beforeOperation` returns an errno for an operation that is to fail. Such an
 *   operation changes nothing; a sync that fails makes nothing last.
 * - **Full disk.** With `capacityBytes` a write that needs more room ends short, or with ENOSPC
 *   where nothing of it has room. Room is counted in pages of 4 KiB that hold data; making a file
 *   longer takes none, freeing a range gives back its whole pages.
 * - **Locks.** Whoever opens a file for writing takes its lock, as on a real disk (EBUSY).
 * - **Processes die.** What `beforeOperation` throws goes through the code that asked, as if it
 *   ended there. `killProcesses`, also from within the hook, ends all of them: every handle and
 *   connection is dead, and whoever uses one gets a `DeadProcessError`; the locks are gone, and of
 *   the operations under way each is carried out or not. `SimulatedConnection.die` does it to one.
 * - **Power cut.** `cutPower`, at any moment, also from within the hook, that is, in the middle of
 *   synchronous code: all processes die, and whoever uses the disk before `powerOn` does. What a sync of the same file brought to stable storage is
 *   there. Changes since then, and the operations under way, outlast or not in any combination,
 *   sector by sector (see survival.ts); a sector is old or new, never a mix. The length of a
 *   file is the one after any of the changes since its sync; what it has gained and not kept reads as
 *   zeros. Names are those after any of the changes of names since the last sync of any file or
 *   folder: a journalling file system commits them in order, and with a file's own sync.
 *
 * Not simulated: links, folders, permissions, block devices, reads that return wrong data.
 *
 * Everything depends on the seed and on the order of calls only. Only pages that hold something take
 * memory, so files may be terabytes long; `copy` shares them. `close` gives the memory back.
 *
 * @module
 */
import type { BulkContextMaker } from "../bulk/bulk_context.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import { DiskState, type OperationHook, type SimulatedDiskOptions } from "./disk_state.ts";
import { type ConnectionOptions, SimulatedConnection } from "./simulated_connection.ts";
import { simulatedBulkContext } from "./simulated_bulk_context.ts";
import { SimulatedScheduler } from "./simulated_scheduler.ts";
import { SimulatedStorage } from "./simulated_storage.ts";

export {
  changesOnly,
  DeadProcessError,
  type DiskOperation,
  type OperationHook,
  type OperationKind,
  type SimulatedDiskOptions,
} from "./disk_state.ts";

/** How bulk work runs on a simulated disk. */
export interface SimulatedContextOptions {
  /** A loop that others run on as well; one of its own by default. */
  readonly scheduler?: SimulatedScheduler;
  /** Longest time that an operation takes, milliseconds; 4 by default. */
  readonly latencyMs?: number;
}

/** Operations of bulk work that are under way at once. */
const ENGINE_CAPACITY = 64;

/** The disk; see the head of this file for what it can do to those who use it. */
export class SimulatedDisk extends SimulatedStorage {
  readonly #state: DiskState;
  #connections: SimulatedConnection[] = [];

  constructor(options: SimulatedDiskOptions | DiskState = {}) {
    const state = options instanceof DiskState ? options : new DiskState(options);
    super(state);
    this.#state = state;
  }

  /** Called before every operation; null for nobody. */
  get beforeOperation(): OperationHook | null {
    return this.#state.beforeOperation;
  }

  set beforeOperation(hook: OperationHook | null) {
    this.#state.beforeOperation = hook;
  }

  /** Changes the room for data, as if others freed or took some. */
  set capacityBytes(capacityBytes: number) {
    this.#state.capacityBytes = capacityBytes;
  }

  /** Connects the disk queue of a process. */
  connect(scheduler: Scheduler, options: ConnectionOptions = {}): SimulatedConnection {
    const connection = new SimulatedConnection(this.#state, {
      storage: this,
      scheduler,
      options,
    });
    this.#connections = this.#connections.filter(({ isAlive }) => isAlive);
    this.#connections.push(connection);
    return connection;
  }

  /** Makes what bulk work on this disk runs in. */
  bulkContext({ scheduler, latencyMs = 4 }: SimulatedContextOptions = {}): BulkContextMaker {
    return (operations) => {
      const loop = scheduler ?? new SimulatedScheduler();
      const connection = this.connect(loop, { latencyMs, capacity: ENGINE_CAPACITY });
      return simulatedBulkContext(loop, { connection, operations });
    };
  }

  /** All processes die where they are; what they have changed is there, flushed or not. */
  killProcesses(): void {
    for (const connection of this.#connections.splice(0)) connection.die();
    this.#state.killProcesses();
  }

  /** The power fails. */
  cutPower(): void {
    for (const connection of this.#connections.splice(0)) connection.die();
    this.#state.cutPower();
  }

  /** The machine starts again: the files are as the power cut left them, and nothing is open. */
  powerOn(): void {
    this.#state.isOff = false;
  }

  /** Another disk with the same files, on which nothing is open, and without a hook. */
  copy(): SimulatedDisk {
    return new SimulatedDisk(this.#state.copy());
  }

  /** The paths of all files. */
  get paths(): readonly string[] {
    return this.#state.names;
  }

  /** Bytes of room that the files take. */
  get usedBytes(): number {
    return this.#state.usedBytes;
  }

  /** Gives the memory of all files back; nobody may use the disk any more. */
  close(): void {
    this.#state.release();
  }

  /** Closes it at the end of a block that began with `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}
