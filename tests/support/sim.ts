/**
 * A device on a simulated disk: the code of the engine with a simulated clock and disk.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Done } from "../../ffi/errno.ts";
import type { MetricsPages } from "../../src/metrics/metrics.ts";
import type { SimulatedConnection } from "../../src/testing/simulated_connection.ts";
import {
  type OperationKind,
  type OperationTrace,
  SimulatedDisk,
  type SimulatedDiskOptions,
} from "../../src/testing/simulated_disk.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";
import { createVbdContext, type DriverLookup, type VbdContext } from "../../src/vbd/vbd_context.ts";
import { RequestKind, type RequestOwner } from "../../src/vbd/slots.ts";
import { type OpenOptions, Vbd } from "../../src/vbd/vbd.ts";
import { checkedDrivers } from "./checked_drivers.ts";

export const SECTOR_BYTES = 512;

/** The result of a request; null while it is in flight. */
export interface Outcome {
  errno: number | null;
  /** The data of a read. */
  data: Uint8Array | null;
  /** The extents of a status request. */
  extents?: number[];
}

export interface SimulationOptions extends SimulatedDiskOptions {
  /** The drivers; by default each is checked against its contract. */
  readonly driverOf?: DriverLookup;
  /**
   * Longest duration of an operation in milliseconds; 0: every operation ends in the turn it starts
   * in.
   */
  readonly latencyMs?: number;
  /** A disk that exists, with its hook; by default a new one. */
  readonly disk?: SimulatedDisk;
  /** Where requests are counted; by default in private memory. */
  readonly metrics?: MetricsPages;
  /** Called with each operation of the disk, which then says where it comes from. */
  readonly trace?: OperationTrace;
}

/** Decides the result of a queued operation: 0 or an errno. */
export type QueueFault = (kind: OperationKind) => number;

/** The process: one disk, one scheduler, any number of devices. */
export class Simulation {
  readonly scheduler: SimulatedScheduler;
  readonly disk: SimulatedDisk;
  readonly connection: SimulatedConnection;
  readonly context: VbdContext;
  readonly log: string[] = [];
  /** Whether the test injects program faults; otherwise a fault fails the test. */
  expectsFaults = false;
  #fault: QueueFault | null = null;
  #lengthFault = 0;

  /** @param before A simulation whose power is cut; the new one starts with its disk. */
  constructor(
    { latencyMs, driverOf = checkedDrivers, trace, disk, metrics, ...options }: SimulationOptions,
    before?: Simulation,
  ) {
    this.scheduler = new SimulatedScheduler();
    this.disk = before?.disk ?? disk ?? new SimulatedDisk(options);
    if (before !== undefined) {
      this.disk.cutPower();
      this.disk.powerOn();
    }
    if (disk === undefined) this.#hook();
    if (trace !== undefined) this.disk.trace = trace;
    this.connection = this.disk.connect(this.scheduler, { latencyMs });
    this.context = createVbdContext({
      scheduler: this.scheduler,
      backend: this.connection,
      files: this.connection,
      driverOf,
      metrics,
      log: (message) => this.log.push(message),
    });
    this.connection.traceQueue(this.context.queue);
  }

  /** Opens an image as a device. */
  open(name: string, options: OpenOptions = {}): SimulatedDevice {
    const device = new SimulatedDevice(this, new Vbd(this.context, 0));
    try {
      device.vbd.open(name, options);
    } catch (error) {
      device.vbd.destroy();
      throw error;
    }
    return device;
  }

  /** Sets the result of queued reads, writes and syncs; null: they succeed. */
  set fault(fault: QueueFault | null) {
    this.#fault = fault;
    this.#hook();
  }

  /** Errno of every change of a file's length by a driver; 0: the changes succeed. */
  set lengthFault(errno: number) {
    this.#lengthFault = errno;
    this.#hook();
  }

  /** Without faults there is no hook, because a hook costs an allocation for each operation. */
  #hook(): void {
    const fault = this.#fault ?? ((): number => 0);
    const none = this.#fault === null && this.#lengthFault === 0;
    this.disk.beforeOperation = none ? null : ({ kind, queued }): number => {
      if (!queued) return 0;
      if (kind === "truncate") return this.#lengthFault;
      return kind === "read" || kind === "write" || kind === "sync" ? fault(kind) : 0;
    };
  }

  /** Holds back all completions of a file for `forMs`. */
  hang(path: string, forMs: number): void {
    this.connection.hang(path, forMs);
  }

  /** Frees the memory. Requests in flight never end. */
  close(): void {
    this.connection.die();
    this.context.queue.close();
    this.disk.close();
  }

  /** Runs the loop until `done`; throws when no event is left before that. */
  runUntil(done: () => boolean, what: string): void {
    if (!this.scheduler.runUntil(done)) throw new Error(`${what} never ended`);
    // A fault ends its disk, and the loop goes on. A test must not take it for a disk error.
    const fault = this.expectsFaults
      ? undefined
      : this.log.find((line) => line.includes(": a fault: "));
    if (fault !== undefined) throw new Error(fault);
  }
}

/** A device and its only client. */
export class SimulatedDevice implements RequestOwner {
  readonly #outcomes = new Map<number, { outcome: Outcome; readBytes: number }>();

  constructor(readonly simulation: Simulation, readonly vbd: Vbd) {}

  #start(kind: RequestKind, sector: number, count: number, fua = false): Outcome {
    const slot = this.#takeSlot();
    const outcome: Outcome = { errno: null, data: null };
    const readBytes = kind === RequestKind.Read ? count * SECTOR_BYTES : 0;
    this.#outcomes.set(slot, { outcome, readBytes });
    this.vbd.requests.start(slot, kind, sector, count, fua, this);
    return outcome;
  }

  #takeSlot(): number {
    let slot = this.vbd.requests.takeSlot();
    while (slot < 0) {
      if (!this.simulation.scheduler.turn()) throw new Error("No slot becomes free");
      slot = this.vbd.requests.takeSlot();
    }
    return slot;
  }

  requestDone(slot: number, errno: number): void {
    const entry = this.#outcomes.get(slot);
    if (entry === undefined) throw new Error(`Slot ${slot} ended twice`);
    this.#outcomes.delete(slot);
    entry.outcome.errno = errno;
    if (entry.readBytes > 0 && errno === 0) {
      const start = this.vbd.requests.slotOffset(slot);
      entry.outcome.data = this.vbd.requests.memory.bytes.slice(start, start + entry.readBytes);
    }
    entry.outcome.extents?.push(...this.#extents(slot));
    this.vbd.requests.releaseSlot(slot);
  }

  #extents(slot: number): number[] {
    const { requests } = this.vbd;
    const { view } = requests.memory;
    return Array.from({ length: requests.extents(slot) }, (_, i) => {
      const at = requests.slotOffset(slot) + 8 * i;
      const sectors = view.getUint32(at, true);
      return view.getUint32(at + 4, true) === 1 ? sectors : -sectors;
    });
  }

  /** Starts a write; each sector of `data` is written to its place. */
  write(sector: number, data: Uint8Array, fua = false): Outcome {
    const slot = this.#takeSlot();
    this.vbd.requests.memory.bytes.set(data, this.vbd.requests.slotOffset(slot));
    const outcome: Outcome = { errno: null, data: null };
    this.#outcomes.set(slot, { outcome, readBytes: 0 });
    const count = data.length / SECTOR_BYTES;
    this.vbd.requests.start(slot, RequestKind.Write, sector, count, fua, this);
    return outcome;
  }

  read(sector: number, count: number): Outcome {
    return this.#start(RequestKind.Read, sector, count);
  }

  zero(sector: number, count: number): Outcome {
    return this.#start(RequestKind.Zero, sector, count);
  }

  fill(sector: number, count: number): Outcome {
    return this.#start(RequestKind.Fill, sector, count);
  }

  discard(sector: number, count: number): Outcome {
    return this.#start(RequestKind.Discard, sector, count);
  }

  /** Starts a status request; `extents` of the outcome has sectors, negative for holes. */
  status(sector: number, count: number, most = 8192): Outcome {
    const slot = this.#takeSlot();
    const outcome: Outcome = { errno: null, data: null, extents: [] };
    this.#outcomes.set(slot, { outcome, readBytes: 0 });
    this.vbd.requests.startStatus(slot, sector, count, most, this);
    return outcome;
  }

  flush(): Outcome {
    return this.#start(RequestKind.Flush, 0, 0);
  }

  /** Runs until no started request is in flight. */
  settle(): void {
    this.simulation.runUntil(() => this.#outcomes.size === 0, "A request");
  }

  /** Pauses; throws on an error. */
  pause(): void {
    this.#whole("Pausing", (done) => this.vbd.pause(done));
  }

  /** Resumes with the same or another image; throws on an error. */
  resume(name: string | null = null): void {
    this.#whole("Resuming", (done) => this.vbd.resume(name, done));
  }

  /** Closes; throws on an error. */
  close(): void {
    this.#whole("Closing", (done) => this.vbd.close(done));
    this.vbd.destroy();
  }

  #whole(what: string, start: (done: Done) => void): void {
    let result: number | null = null;
    start((error) => result = error?.errno ?? 0);
    this.simulation.runUntil(() => result !== null, what);
    if (result !== 0) throw new Error(`${what} ended with error ${result}`);
  }
}

/** Sectors that contain their own number and the stamp of their write. */
export function stampedSectors(sector: number, count: number, stamp: number): Uint8Array {
  const words = new Uint32Array(count * SECTOR_BYTES / 4);
  for (let i = 0; i < count; i++) {
    words.fill(stamp, i * 128, (i + 1) * 128);
    words[i * 128] = sector + i;
  }
  return new Uint8Array(words.buffer);
}

/** The stamp of a sector; 0 for a zeroed sector; throws for a torn or misplaced sector. */
export function stampOf(data: Uint8Array, index: number, sector: number): number {
  const words = new Uint32Array(data.buffer, data.byteOffset + index * SECTOR_BYTES, 128);
  const stamp = words[127];
  const place = stamp === 0 ? 0 : sector;
  if (words[0] !== place || words.subarray(1).some((word) => word !== stamp)) {
    throw new Error(`Sector ${sector} is torn or holds sector ${words[0]} (stamps ${stamp})`);
  }
  return stamp;
}

/** Reads sectors and checks that each has this stamp; 0: is zero. */
export function assertHolds(
  device: SimulatedDevice,
  sector: number,
  count: number,
  stamp: number,
): void {
  const outcome = device.read(sector, count);
  device.settle();
  const { data, errno } = outcome;
  assert.equal(errno, 0);
  assert.ok(data);
  for (let i = 0; i < count; i++) assert.equal(stampOf(data, i, sector + i), stamp);
}
