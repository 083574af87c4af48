/**
 * `src/driver`: live image drivers and filters, all behind the interface in this file. A driver
 * serves one image of one type: it finds where each request's data is, and starts the operations for
 * it. It must not know clients, retries or other devices, and must not print.
 *
 * A driver is a file that exports a `DriverType`, and a line in `registry.ts`. CONTRIBUTING.md has
 * one as an example.
 *
 * **Requests** are slots of a device, named by number. An image gets one call for each step of a
 * request. It may split that into pieces, and end them in any order and at any time, also before the
 * call returns: `RequestSink.pieceDone` tells the end of so many sectors, and all add up to the
 * step. A status request tells `RequestSink.extent` and ends with `statusDone`. A request's memory is
 * the driver's until the request ends.
 *
 * **Room.** Before a request reaches an image, the device reserves what `operationsFor` says: that
 * many places in the disk queue, and as many records in `DriverContext.pieces`. A driver that takes no more
 * than that never finds them full.
 *
 * **Drivers that do not use the disk queue.** A driver may move bytes by a socket, or by a library
 * that has a completion queue of its own and an eventfd:
 *
 * - It watches the descriptor with `scheduler.watch`. In `ready` it takes the completions and ends
 *   the pieces. It must not wait for the library anywhere else than in `open` and `abandon`.
 * - It collects what a turn starts, and hands it over once, when `deferral` calls it.
 * - It has a limit of its own. What is beyond what the library takes waits: in lists of `pieces`,
 *   which `operationsFor` then counts; or by slot, where the driver has nothing in front of it that
 *   splits requests. It then has at most `REQUEST_SLOTS` calls under way, and `operationsFor` is 0.
 * - `pending` counts what the library has not ended. After a fault the device waits for 0 before it
 *   calls `abandon` and gives the memory of requests away; `ready` is called until then.
 * - `close` and `abandon` stop watching the descriptor before they close it.
 *
 * @module
 */
import type { Done, DoneWith } from "../../ffi/errno.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import type { DiskFiles } from "../queue/disk_files.ts";
import type { DiskQueue } from "../queue/disk_queue.ts";
import type { Tracing } from "../trace/tracing.ts";
import type { LogFields } from "../log/log.ts";
import type { ImageCondition } from "./condition.ts";
import type { Deferral } from "./deferral.ts";
import type { Named } from "./image_name.ts";
import type { FoundParent } from "../vhd/image/parent.ts";
import type { DiskKey } from "../vhd/key.ts";
import type { Storage } from "../files/storage.ts";
import type { RetainedState } from "./retained_state.ts";
import type { PieceTable } from "./pieces.ts";

/** Bytes of a sector, the unit of every request, are those of a sector of I/O memory. */
export { SECTOR_BYTES } from "../../ffi/memory.ts";
/** A request's slot is a number below this. */
export const REQUEST_SLOTS = 128;
/** The most sectors of one `read` or `write`. */
export const REQUEST_SECTORS = 512;

/** Where an image tells the ends of requests. */
export interface RequestSink {
  /**
   * Part of a request ended.
   *
   * @param sectors How many sectors of it; 1 for a flush.
   * @param errno 0, or a positive error number.
   */
  pieceDone(slot: number, sectors: number, errno: number): void;
  /**
   * The next sectors of a status request are alike. The first call is about those at the start of
   * the request, each further call about those that follow.
   *
   * @param sectors More than 0, and no more than are left of the request.
   * @param isData Whether they hold data; false for a hole through the whole chain.
   * @returns False when no more extents are wanted.
   */
  extent(slot: number, sectors: number, isData: boolean): boolean;
  /**
   * A status request ended. Without an error, `extent` was called at least once. The device asks
   * again for the sectors that it was not told about.
   *
   * @param errno 0, or a positive error number.
   */
  statusDone(slot: number, errno: number): void;
}

/** A part of I/O memory that holds zeros. */
export interface ZeroMemory {
  /** Sector of I/O memory at which it begins. */
  readonly at: number;
  readonly sectors: number;
}

/** What images may do with the disk queue. */
export type ImageQueue = Pick<
  DiskQueue,
  "register" | "reserve" | "release" | "read" | "write" | "sync"
>;

/** What all drivers of a process share. */
export interface DriverContext {
  readonly scheduler: Scheduler;
  readonly queue: ImageQueue;
  readonly files: DiskFiles;
  /** Records of pieces of requests that wait for something. */
  readonly pieces: PieceTable;
  /** Work put off to the end of the turn, so that one operation serves many requests. */
  readonly deferral: Deferral;
  /** Zeros to write from. Nobody writes there. */
  readonly zeros: ZeroMemory;
  /** Writes a line to the log. The context of a device says which device it is. */
  log(message: string, fields?: LogFields): void;
}

/** What a driver opens an image with. */
export interface ImageContext extends DriverContext {
  /** Handlers, timers and work that are registered here are the disk's, which their faults end. */
  readonly scheduler: Scheduler;
  /**
   * The disk: what a driver throws from a handler or the like ends it. Files are registered at the
   * queue with it. Once it has failed, its images do nothing any more but `abandon`.
   */
  readonly faults: FaultOwner;
  /** Takes what was got ready for the image that is being opened; null when nothing was. */
  takePrepared(): Prepared | null;
  /**
   * An image that is open has become larger. False when it keeps the size that it has until it is opened
   * anew: what stands in front of it has a place for each of its sectors.
   */
  readonly grow?: (sectors: number) => boolean;
  /** Records operations that a driver makes past the disk queue, while the device is traced. */
  readonly tracing?: Tracing;
  /** What the images of this device keep in memory over a pause. */
  readonly retained: RetainedState;
  /**
   * Whether `status` looks for holes of the file in what an image holds, too: for copies of a disk that
   * is not written. Which image of the chain holds such zeros is not told then.
   */
  readonly findsHoles?: boolean;
}

/** Which image, and how. */
export interface ImageSpec {
  /** A driver's name, such as `vhd` or `aio`. */
  readonly type: string;
  readonly path: string;
  readonly readOnly: boolean;
  /** Past the page cache, where possible. */
  readonly direct: boolean;
  /** The key of those images of the chain that are encrypted. */
  readonly key?: DiskKey;
  /** Of a parent: the file and image that its child led to, and no other (ESTALE, EINVAL). */
  readonly asParent?: FoundParent;
}

/** What an image itself served, not counting the images below it. */
export interface ImageCounts {
  readSectors: number;
  writtenSectors: number;
  /** Of a cache, which reads what it has: what was read below instead. */
  missedSectors?: number;
}

/** One open image. */
export interface ImageDriver {
  readonly spec: ImageSpec;
  readonly counts: ImageCounts;
  /** What the image depends on besides the disks of this machine, and how that is now. */
  condition?(nowMs: number): ImageCondition | null;
  /** Size, sectors. It grows where `ImageContext.grow` says so. */
  readonly sectors: number;
  /** Its file's number at the disk queue; an image without a file has none. */
  readonly file?: number;
  /**
   * Of a driver that moves bytes past the disk queue: operations that have not ended, so that
   * somebody else may still read or write the memory of requests.
   */
  readonly pending?: number;
  /** Whether its data is encrypted, with the key of its `spec`. */
  readonly encrypted?: boolean;
  /** The type's number in statistics, where the registry does not have the type. */
  readonly typeNumber?: number;
  /** The image that shows through where this one has no data; null when zeros do. */
  readonly parent: ImageSpec | null;
  /** Where the image below tells the ends of pieces; without it, where this image does. */
  readonly sinkBelow?: RequestSink | null;
  /** The most sectors of one `zero`. */
  readonly zeroSectors: number;
  /** The most sectors of one `fill`. */
  readonly fillSectors: number;
  /** Puts the open parent, which has its own below it, below this image, if this one has a parent. */
  putBelow?(below: ImageDriver): void;
  /**
   * The most operations at the disk queue, or records of `pieces`, that a step of so many sectors
   * can need at once, here and below. It does not change once the image below has been put there.
   */
  operationsFor(sectors: number): number;
  /** Reads sectors into I/O memory. */
  read(slot: number, sector: number, count: number, memorySector: number): void;
  /** Writes sectors from I/O memory. */
  write(slot: number, sector: number, count: number, memorySector: number): void;
  /**
   * Makes sectors read as zeros, at most `zeroSectors` at a time, in the cheapest way: they may
   * become holes, and what is zero already need not be written. A later write may lack room.
   */
  zero(slot: number, sector: number, count: number): void;
  /**
   * Writes zeros, at most `fillSectors` at a time, as `write` writes data: afterwards the sectors
   * have room of their own in the image, so that a later write of them does not lack room.
   */
  fill(slot: number, sector: number, count: number): void;
  /** Frees the room of sectors, where that can be done; what they hold then is undefined. */
  discard(slot: number, sector: number, count: number): void;
  /** Brings all writes that ended to stable storage. */
  flush(slot: number): void;
  /**
   * Finds out which sectors hold data. Tells the sink of extents in order, from `sector` on, as many
   * as it likes to find at once, and then of the end of the request (`statusDone`).
   */
  status(slot: number, sector: number, count: number): void;
  /**
   * The device is to be paused or closed: what waits only because others share the disk goes on now.
   * It may still be told to run on afterwards.
   */
  drain?(): void;
  /**
   * The device is being closed, and the time for that is over: requests that wait for another
   * program, such as a server, end with an error at once. An image that only waits for the disks of
   * this machine leaves it out.
   */
  giveUp?(): void;
  /**
   * Makes a snapshot within the image, of what the writes that ended have written. Requests go on.
   * Images without that leave it out.
   */
  makeSnapshot?(name: string, done: Done): void;
  /**
   * Puts the image in order and closes it; no request may be under way. What was written
   * to files of this machine is durable when that ends without an error. The image is closed also
   * when it ends with one.
   */
  close(done: Done): void;
  /**
   * Releases the file, connection and memory, and does nothing else: the driver threw, and what it
   * knows may be wrong. Nothing of the image is at the disk queue, and `pending` is 0. May follow a
   * `close` that did not end.
   */
  abandon(): void;
}

/** What a driver got ready for an image that is to be opened, such as a connection. */
export interface Prepared {
  /** Lets go of it: the image is not opened. */
  discard(): void;
}

/** Clones of images that are not open: each holds what its image held, and takes writes. */
export interface ImageClones {
  /**
   * How a clone is named behind its type.
   *
   * @param path What stands behind the type in the image's name.
   * @param name The clone's name.
   */
  nameOf(path: string, name: string): string;
  /** Makes a clone, or nothing with an error. */
  make(path: string, name: string, scheduler: Scheduler, done: Done): void;
  /** Removes a clone that was made. */
  remove(path: string, name: string, scheduler: Scheduler, done: Done): void;
}

/** A type of image: how its images are named, what is known of them, and how they are opened. */
export interface DriverType {
  /** What images' names begin with: lower-case letters, digits and `+`. */
  readonly type: string;
  /** What follows the type and its colon, for help: `FILE`. */
  readonly where: string;
  /** What its images are, in one line without a full stop. */
  readonly summary: string;
  /** The type's number in statistics, where the reference has one (tapdisk-disktype.h). */
  readonly number?: number;
  /** How the names of its files mostly end, with the dot. */
  readonly suffix?: string;
  /** Whether its images may be encrypted. A filter does not say: the image below decides. */
  readonly takesKey?: boolean;
  /** As what another image can have an image of this type as its parent, if it can. */
  readonly parentAs?: "vhd" | "raw" | "qcow2";
  /** Of a type whose images can have clones. */
  readonly clones?: ImageClones;
  /** What the text behind the type and its colon names. */
  named(rest: string): Named;
  /**
   * Does the part of opening an image that takes time, while the loop serves other disks; `open`
   * finds what it got ready in its context.
   *
   * @param done Called in a later turn, or at once where nothing takes time.
   * @returns Gives it up; `done` is not called then.
   * @param storage Where its files are.
   * @throws {SystemError} For what is refused at once.
   */
  prepare?(
    spec: ImageSpec,
    scheduler: Scheduler,
    done: DoneWith<Prepared>,
    storage: Storage,
  ): () => void;
  /** Opens an image. Throws an error that names the file and the reason and has an `errno`. */
  open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver;
}
