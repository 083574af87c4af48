/**
 * A world: one simulated disk, the images on it with their models, devices that serve some of them,
 * and the faults of the moment. Every operation on the disk passes through `World`, which takes
 * photographs of it, each as a power cut at that moment would leave the disk.
 *
 * @module
 */
import { errnoName, SystemError } from "../../../ffi/errno.ts";
import { changeCbtLog, createCbtLog } from "../../../src/cbt/log_file.ts";
import { Random } from "../../../src/testing/random.ts";
import type { SimulatedConnection } from "../../../src/testing/simulated_connection.ts";
import {
  describeOperation,
  type DiskOperation,
  type Verdict,
} from "../../../src/testing/disk_operation.ts";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { SimulatedScheduler } from "../../../src/testing/simulated_scheduler.ts";
import { createVbdContext, type VbdContext } from "../../../src/vbd/vbd_context.ts";
import { Vbd } from "../../../src/vbd/vbd.ts";
import { checkedDrivers } from "../../support/checked_drivers.ts";
import type { Camera } from "./camera.ts";
import { LogModel } from "./changed_blocks.ts";
import { Client, type ClientWorld, endsByClose } from "./client.ts";
import { Faults } from "./faults.ts";
import type { LookOptions } from "./formats/format.ts";
import { driversByLibrary } from "./formats/by_library.ts";
import { diskKey } from "./formats/keys.ts";
import { formatNamed } from "./formats/registry.ts";
import { qcow2DeviceBytes } from "./formats/qcow2.ts";
import { deviceBytes } from "./formats/vhd.ts";
import { type ImageModel, Ticks, WrongSectorError } from "./model.ts";
import { type Region, within } from "./regions.ts";
import { SECTOR_BYTES } from "./stamps.ts";
import { Touches } from "./touches.ts";

/** A piece of work that is under way, as far as a power cut can show a part of it. */
export interface Operation {
  readonly what: string;
  /** Files that may be there, and need not be whole. */
  readonly mayBe: readonly string[];
  /** A journal that may be there, and its image. */
  readonly journal?: { readonly path: string; readonly image: string };
  /** Names that are being taken away. */
  readonly vanishing?: readonly string[];
  /** Errors with which it may be refused, because of what the image is. */
  readonly refusals?: readonly number[];
  /** The sizes that images may have beside those of their models, in sectors. */
  readonly sizes?: ReadonlyMap<string, number>;
}

/** A device and its client. */
export interface Device {
  readonly client: Client;
  /** Drivers in front of the image, such as `bc:64:`. */
  readonly filter: string;
}

/** What is used up from world to world. */
export interface Used {
  /** The last stamp. */
  stamp: number;
  /** The last number of a file. */
  file: number;
  /** Whether a device has less room than its image may need. */
  smallDevice: boolean;
  /** The sizes of block devices that worlds added, in bytes. */
  readonly devices: Map<string, number>;
}

/** What a world is made of. */
export interface WorldParts {
  readonly random: Random;
  readonly disk: SimulatedDisk;
  readonly images: Map<string, ImageModel>;
  readonly regions: readonly Region[];
  readonly leftovers: Set<string>;
  readonly latencyMs: number;
  /** Whether a driver with a completion queue of its own serves the raw images. */
  readonly byLibrary: boolean;
  /** What is said of images of others from the start: it is no fault. */
  readonly known: ReadonlySet<string>;
  readonly used: Used;
  readonly camera: Camera;
  readonly name: string;
  readonly trace: ((line: string) => void) | null;
  readonly note: (what: string) => void;
}

/** The part of the devices that have a log of changed blocks. */
const WITH_LOG = 0.35;
/** The largest disk for which a log is made. */
const MOST_LOGGED_BYTES = 2 ** 36;

/** How the names of block devices end. */
export const DEVICE = ".lv";

/** A world. */
export class World implements ClientWorld {
  readonly ticks = new Ticks();
  readonly random: Random;
  readonly disk: SimulatedDisk;
  readonly scheduler = new SimulatedScheduler();
  readonly connection: SimulatedConnection;
  readonly context: VbdContext;
  readonly faults: Faults;
  readonly devices: Device[] = [];
  /** The logs of changed blocks, also those that a disk had before. */
  readonly logs: LogModel[] = [];
  readonly log: string[] = [];
  /** The work that is under way. */
  operation: Operation | null = null;
  /** Whether the disk is full, and whether it ever was. */
  isFull = false;
  wasFull = false;
  failure: unknown = null;
  /** What the world does just now. */
  step = "";
  closing = false;
  readonly #touches = new Touches();

  constructor(readonly parts: WorldParts) {
    this.random = parts.random;
    this.disk = parts.disk;
    this.disk.capacityBytes = Infinity;
    this.faults = new Faults(new Random(this.random.bits()));
    const { scheduler } = this;
    this.connection = this.disk.connect(scheduler, { latencyMs: parts.latencyMs });
    this.context = createVbdContext({
      scheduler,
      backend: this.connection,
      files: this.connection,
      driverOf: parts.byLibrary
        ? driversByLibrary({ ...parts, random: new Random(this.random.bits()), scheduler })
        : checkedDrivers,
      log: (message) => this.#logged(message),
    });
    this.disk.beforeOperation = (operation) => this.#before(operation);
    if (parts.trace === null) return;
    this.disk.trace = (operation, verdict) => this.#traceOperation(operation, verdict);
    this.connection.traceQueue(this.context.queue);
  }

  get images(): Map<string, ImageModel> {
    return this.parts.images;
  }

  get leftovers(): Set<string> {
    return this.parts.leftovers;
  }

  trace(line: () => string): void {
    this.parts.trace?.(`${this.parts.name} ${line()}`);
  }

  count(what: string): void {
    this.parts.note(what);
  }

  #logged(message: string): void {
    this.log.push(message);
    this.trace(() => `  log: ${message}`);
    if (message.includes(": a fault: ")) this.fail(new Error(message));
  }

  fail(error: unknown): void {
    if (this.failure !== null) return;
    this.failure = error;
    this.trace(() => `  failed: ${error}`);
    if (this.parts.trace === null || !(error instanceof WrongSectorError)) return;
    const image = this.images.get(error.path);
    if (image === undefined) return;
    for (const line of this.#touches.explain(this.disk, image, error.sector)) {
      this.trace(() => `  ${line}`);
    }
  }

  /** Throws what went wrong, if anything did. */
  assertWell(): void {
    if (this.failure !== null) throw this.failure;
  }

  #before(operation: DiskOperation): Verdict {
    if (this.failure !== null) return 0;
    this.parts.camera.see(this, operation);
    return this.faults.verdict(operation);
  }

  #traceOperation(operation: DiskOperation, verdict: Verdict): void {
    if (this.failure !== null) return;
    this.#touches.add(operation, verdict);
    this.trace(() => `    ${describeOperation(operation, verdict)}`);
  }

  // ---- what clients need ----------------------------------------------------------------

  *hotSectors(sector: number, count: number): Generator<number> {
    for (const part of within(this.parts.regions, { sector, count })) {
      for (let i = 0; i < part.count; i++) yield part.sector + i;
    }
  }

  nextStamp(): number {
    return ++this.parts.used.stamp;
  }

  requestFailed(what: string, errno: number): void {
    if (this.faults.hits > 0 || this.wasFull || this.parts.used.smallDevice) return;
    if (endsByClose(errno) && this.closing) return;
    throw new Error(`A request failed without a fault of the disk: ${errnoName(errno)}: ${what}`);
  }

  // ---- images and devices ---------------------------------------------------------------

  /** A path that was never used, in the folder of another. */
  newPath(suffix = ".vhd", beside = "/"): string {
    const folder = beside.slice(0, beside.lastIndexOf("/"));
    return `${folder}/${++this.parts.used.file}${suffix}`;
  }

  /**
   * A block device for an image of this size: one that was used before, with what it held, or a new
   * one with garbage.
   */
  newDevice(sectors: number, type: "vhd" | "qcow2"): string {
    const bytesFor = type === "vhd" ? deviceBytes : qcow2DeviceBytes;
    const wantedBytes = bytesFor(sectors);
    const unused = [...this.leftovers].filter((path) =>
      path.endsWith(DEVICE) && !this.images.has(path)
    );
    const known = unused.find((path) => (this.parts.used.devices.get(path) ?? 0) >= wantedBytes);
    if (known !== undefined && this.random.chance(0.7)) return known;
    const isSmall = sectors > 4096 && this.random.chance(0.1);
    if (isSmall) this.parts.used.smallDevice = true;
    const path = this.newPath(DEVICE);
    const sizeBytes = isSmall ? deviceBytes(sectors / 2, 0) : wantedBytes;
    this.disk.addBlockDevice(path, { sizeBytes, garbage: this.random.bits() });
    this.parts.used.devices.set(path, sizeBytes);
    // It is there, whether an image comes to it or not.
    this.leftovers.add(path);
    return path;
  }

  /** The images that no other image has below it. */
  leaves(): ImageModel[] {
    const all = [...this.images.values()];
    return all.filter((image) => !all.some(({ parent }) => parent === image));
  }

  /** Opens an image as a device. */
  open(leaf: ImageModel, filter = ""): Device {
    const vbd = new Vbd(this.context, this.devices.length);
    const device: Device = { client: new Client(this, vbd, leaf), filter };
    this.devices.push(device);
    const isLogged = leaf.sectors * SECTOR_BYTES <= MOST_LOGGED_BYTES;
    if (isLogged && this.random.chance(WITH_LOG)) device.client.log = this.newLog(leaf);
    this.reopen(device);
    return device;
  }

  /** A log of changed blocks of a disk, in a file or on a block device. Throws `SystemError`. */
  newLog({ sectors }: ImageModel): LogModel {
    const log = new LogModel(this.newPath(".cbtlog"), sectors * SECTOR_BYTES);
    // It is no image, and may be there in part while it is made.
    this.leftovers.add(log.path);
    const { sizeBytes } = log;
    if (this.random.chance(0.2)) {
      const deviceBytes = 2 ** 22;
      this.disk.addBlockDevice(log.path, { sizeBytes: deviceBytes, garbage: this.random.bits() });
    }
    createCbtLog(log.path, { storage: this.disk, sizeBytes });
    this.logs.push(log);
    this.count("logs of changed blocks");
    return log;
  }

  /** What the caller of a tapdisk does before it opens a disk with a log. Throws `SystemError`. */
  prepareLog({ client: { leaf, log } }: Device): void {
    if (log === null) return;
    const sizeBytes = leaf.sectors * SECTOR_BYTES;
    const grown = sizeBytes === log.sizeBytes ? {} : { sizeBytes };
    changeCbtLog(log.path, { storage: this.disk, consistent: 0, ...grown });
    log.sizeBytes = sizeBytes;
  }

  /** Opens the image of a closed device again. Throws `SystemError`. */
  reopen(device: Device): void {
    const { client, filter } = device;
    this.prepareLog(device);
    client.vbd.open(`${filter}${this.nameOf(client.leaf)}`, {
      retry: { attempts: 20 },
      key: formatNamed(client.leaf.format).encrypted ? diskKey() : undefined,
      changedBlocks: client.log?.path,
    });
  }

  /** What is wrong with an image and was not so from the start. */
  faultsOf(disk: SimulatedDisk, image: ImageModel, options: LookOptions): string[] {
    const found = formatNamed(image.format).faults(disk, image.path, options);
    return found.filter((message) => !this.parts.known.has(knownAs(message)));
  }

  nameOf(image: ImageModel): string {
    return formatNamed(image.format).nameOf(image.path);
  }

  /** Runs the loop until `done`. */
  runUntil(done: () => boolean, what: string): void {
    if (!this.scheduler.runUntil(() => done() || this.failure !== null)) {
      this.fail(new Error(`${what} never ended`));
    }
    this.assertWell();
  }

  /** Waits for all requests of the devices that run. */
  settle(): void {
    this.runUntil(
      () => this.devices.every(({ client }) => !isRunning(client) || client.outstanding === 0),
      "A request",
    );
    if (this.devices.some(({ client }) => client.outstanding > 0)) return;
    for (const image of this.images.values()) image.tidy();
  }

  /** Whether an error at work that began when so many operations had failed may be a fault's. */
  mayFail(error: unknown, hitsBefore: number): boolean {
    return error instanceof SystemError &&
      (this.faults.hits > hitsBefore || this.isFull || this.parts.used.smallDevice);
  }

  /** Whether data may lie where no bitmap shows it. */
  get mayHaveData(): boolean {
    return this.faults.hits > 0 || this.wasFull || this.parts.used.smallDevice ||
      this.parts.name !== "w";
  }

  /** Ends all faults of the disk. */
  heal(): void {
    this.faults.end();
    this.isFull = false;
    this.disk.capacityBytes = Infinity;
  }

  /** Frees the memory. All devices must be closed. */
  close(): void {
    this.disk.beforeOperation = null;
    for (const { client } of this.devices) client.vbd.destroy();
    this.context.queue.close();
    this.disk.close();
  }

  /** Frees the memory of a world that failed, in which anything may be under way. */
  abandon(): void {
    this.disk.beforeOperation = null;
    this.connection.die();
    for (const { client } of this.devices) client.vbd.requests.memory.release();
    this.context.queue.close();
    this.disk.close();
  }
}

/** Whether a device's requests come to an end. */
function isRunning({ vbd }: Client): boolean {
  return vbd.phase !== "paused" && vbd.phase !== "closed";
}

/** What a finding is known as: a wrong name of a parent stays wrong when the parent changes. */
export function knownAs(message: string): string {
  return message.replace(/(does not match header name).*/, "$1");
}
