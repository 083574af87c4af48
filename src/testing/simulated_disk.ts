/**
 * `src/testing`: the simulated parts, for tests. Product code must not import this folder, and this
 * folder must not touch files of the machine.
 *
 * This file implements a disk in memory, below all disk access of the product. Synchronous code
 * (the disk is a `Storage`), the disk queue of a process (`connect`) and bulk work (`bulkContext`)
 * can use its files at the same time. Every operation of each passes through one hook.
 *
 * ## Fault model
 *
 * - **Order.** Queued operations end in any order, each within `latencyMs`. An operation takes
 *   effect when it ends. Synchronous calls take effect at once.
 * - **Delay.** `SimulatedConnection.hang` holds back all completions of a file for some time, `delayOf`
 *   those of single operations.
 * - **Errors.** `beforeOperation` returns an errno for an operation that is to fail. Such an
 *   operation changes nothing; a sync that fails makes nothing durable.
 * - **Short transfers.** With the verdict "shorten" of the hook, a read or write moves only a part. A
 *   queue sees a short transfer, synchronous code makes a second one.
 * - **Late errors.** With the verdict "fail late" of the hook, a queued write is executed, and is reported
 *   as failed: a path to the disk broke, or a time-out passed.
 * - **Full disk.** With `capacityBytes`, a write that needs more room ends short, or fails with
 *   ENOSPC when there is room for none of it. Room is counted in pages of 4 KiB that hold data.
 *   Extending a file takes no room; freeing a range releases its whole pages.
 * - **Locks.** Opening a file for writing takes its lock, as on a real disk (EBUSY). With
 *   `besideTapdisk` a locked file is opened without the lock.
 * - **Process death.** An exception from `beforeOperation` goes through the calling code, as if
 *   that code ended there. `killProcesses`, also from within the hook, kills all processes: every
 *   handle and connection is dead, and its use throws a `DeadProcessError`. The locks are released,
 *   and each operation in flight is executed or not. `SimulatedConnection.die` does the same to one
 *   process.
 * - **Power cut.** `cutPower` may be called at any moment, also from within the hook and so in the
 *   middle of synchronous code. All processes die, and so does any process that uses the disk
 *   before `powerOn`. Data that a sync of the same file made durable survives. Later changes and
 *   the operations in flight survive or not in any combination, sector by sector (see survival.ts);
 *   a sector is old or new, never a mix. The length of a file is its length after any of the
 *   changes since its sync; a range that was added and did not survive reads as zeros. The names
 *   are those after any of the changes of names since the last sync of any file or folder: a
 *   journalling file system commits them in order, and with the sync of a file.
 * - **Cached files.** What a process writes to a file that it opened by `openCached` takes effect at
 *   once, as a call of synchronous code.
 * - **Photographs.** `photograph` gives another disk: this one as a power cut at this moment would
 *   leave it. `undecided` lists what the cut decides, and `photographWith` takes any choice of it.
 *   The run goes on as if no photograph had been taken.
 *
 * - **Bad disk**, a mode of its own: by verdicts of the hook, a write or sync is reported as done and
 *   nothing happens ("lose"), a write lands elsewhere in the same file ("misdirect"), a bit flips in
 *   the sectors of an operation ("rot"). `rot` flips a bit at any time. After these the promises about
 *   flushed data are void; what has a checksum must be found to be wrong, and no fault may spread.
 * - **Block devices.** `addBlockDevice` adds one: its size is fixed, truncating it fails with EINVAL,
 *   a write that starts at its end fails with ENOSPC and one that goes beyond ends short, and its old
 *   contents are garbage. Freeing a range zeroes it.
 * - **Traces.** `trace` is called for each operation with its verdict, and with the file, line and
 *   function of the product code that asked for it.
 *
 * Not simulated: links, folders, permissions.
 *
 * All behaviour depends only on the seed and the order of calls. Only pages that hold data take
 * memory, so files may be terabytes long; `copy` shares the pages. `close` frees the memory.
 *
 * @module
 */
import type { BulkContextMaker } from "../bulk/bulk_context.ts";
import { normalizePath } from "../files/paths.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import type { OperationHook, OperationTrace } from "./disk_operation.ts";
import { DiskState, type SimulatedDiskOptions } from "./disk_state.ts";
import { type ConnectionOptions, SimulatedConnection } from "./simulated_connection.ts";
import {
  type OperationInFlight,
  photographAtRandom,
  photographOf,
  type PhotographOptions,
  type UndecidedChange,
  undecidedOf,
} from "./photograph.ts";
import type { Random } from "./random.ts";
import { simulatedBulkContext } from "./simulated_bulk_context.ts";
import { SimulatedScheduler } from "./simulated_scheduler.ts";
import { SimulatedStorage } from "./simulated_storage.ts";
import type { Kept } from "./unflushed.ts";

export {
  changesOnly,
  describeOperation,
  type DiskOperation,
  type Misdeed,
  type OperationHook,
  type OperationKind,
  type OperationTrace,
  type Verdict,
} from "./disk_operation.ts";
export { DeadProcessError, type SimulatedDiskOptions } from "./disk_state.ts";
export type { PhotographOptions, UndecidedChange } from "./photograph.ts";
export type { Kept } from "./unflushed.ts";

/** Options of bulk work on a simulated disk. */
export interface SimulatedContextOptions {
  /** A loop that other work uses too; by default a new one. */
  readonly scheduler?: SimulatedScheduler;
  /** Longest duration of an operation in milliseconds; 4 by default. */
  readonly latencyMs?: number;
}

const SECTOR_BITS = 512 * 8;
/** The limit of operations of bulk work in flight. */
const ENGINE_CAPACITY = 64;

/** The simulated disk; the head of this file has its fault model. */
export class SimulatedDisk extends SimulatedStorage {
  readonly #state: DiskState;
  #connections: SimulatedConnection[] = [];

  constructor(options: SimulatedDiskOptions | DiskState = {}) {
    const state = options instanceof DiskState ? options : new DiskState(options);
    super(state);
    this.#state = state;
  }

  /** Called before every operation; null for no hook. */
  get beforeOperation(): OperationHook | null {
    return this.#state.beforeOperation;
  }

  set beforeOperation(hook: OperationHook | null) {
    this.#state.beforeOperation = hook;
  }

  /**
   * Called with each operation after the hook; null for no trace. While there is one, operations
   * carry where they come from. Queues must be known to their connection (`traceQueue`).
   */
  get trace(): OperationTrace | null {
    return this.#state.trace;
  }

  set trace(trace: OperationTrace | null) {
    this.#state.trace = trace;
  }

  /**
   * Adds a block device. It has a fixed size, and old contents that `garbage` chooses (by default
   * 1; null: zeros).
   */
  addBlockDevice(
    path: string,
    { sizeBytes, garbage = 1 }: { sizeBytes: number; garbage?: number | null },
  ): void {
    this.#state.addBlockDevice(normalizePath(this, path), { sizeBytes, garbage });
  }

  /** Flips a bit of a sector at rest. */
  rot(path: string, { sector, bit = 0 }: { sector: number; bit?: number }): void {
    this.#state.named(normalizePath(this, path)).rot(sector * SECTOR_BITS + bit);
  }

  /** Changes the room for data, as if other files freed or took some. */
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

  /** Creates the context of bulk work on this disk. */
  bulkContext({ scheduler, latencyMs = 4 }: SimulatedContextOptions = {}): BulkContextMaker {
    return (operations) => {
      const loop = scheduler ?? new SimulatedScheduler();
      const connection = this.connect(loop, { latencyMs, capacity: ENGINE_CAPACITY });
      return simulatedBulkContext(loop, { connection, operations });
    };
  }

  /** Kills all processes where they are. Their changes stay, flushed or not. */
  killProcesses(): void {
    for (const connection of this.#connections.splice(0)) connection.die();
    this.#state.killProcesses();
  }

  /** Cuts the power; see the fault model. */
  cutPower(): void {
    for (const connection of this.#connections.splice(0)) connection.die();
    this.#state.cutPower();
  }

  /** Restarts the machine: the files are as the power cut left them, and none is open. */
  powerOn(): void {
    this.#state.isOff = false;
  }

  /** Another disk with the same files, no open file and no hook. */
  copy(): SimulatedDisk {
    return new SimulatedDisk(this.#state.copy());
  }

  /**
   * Another disk: this one as a power cut at this moment would leave it, with the power on again. It
   * may be taken at any moment, also within the hook. Nothing changes here, and `random` alone
   * decides what survives. The new disk must be closed.
   */
  photograph(random: Random, { powerCuts = false }: PhotographOptions = {}): SimulatedDisk {
    const inFlight = this.#operationsInFlight();
    return new SimulatedDisk(
      photographAtRandom(this.#state, { random, inFlight, powerCuts }),
    );
  }

  /** All that a power cut at this moment decides. */
  undecided(): readonly UndecidedChange[] {
    return undecidedOf(this.#state, this.#operationsInFlight()).list;
  }

  /**
   * A photograph for which `keep` decides what survives of each undecided change. A change whose
   * `needs` is lost is lost as well. Names and lengths survive as a whole.
   */
  photographWith(
    keep: (index: number) => Kept,
    { powerCuts = false }: PhotographOptions = {},
  ): SimulatedDisk {
    const undecided = undecidedOf(this.#state, this.#operationsInFlight());
    return new SimulatedDisk(photographOf(this.#state, { undecided, keep, powerCuts }));
  }

  #operationsInFlight(): OperationInFlight[] {
    return this.#connections.flatMap((each) => each.isAlive ? each.operationsInFlight : []);
  }

  /** The paths of all files. */
  get paths(): readonly string[] {
    return this.#state.names;
  }

  /** Number of files that are open, each as often as it is open. */
  get openFiles(): number {
    return this.#state.openFiles;
  }

  /** Bytes of room that the files use. */
  get usedBytes(): number {
    return this.#state.usedBytes;
  }

  /** Frees the memory of all files. The disk must not be used afterwards. */
  close(): void {
    this.#state.release();
  }

  /** Closes the disk at the end of a block that began with `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}
