import { assert } from "../../../ffi/assert.ts";
import { Errno, errnoName } from "../../../ffi/errno.ts";
import { Arena } from "../../../ffi/memory.ts";
import {
  encodedIoCommand,
  putIoCommand,
  RequestDescriptors,
  UBLK_IO_COMMIT_AND_FETCH_REQ,
  UBLK_IO_F_FUA,
  UBLK_IO_F_NOUNMAP,
  UBLK_IO_FETCH_REQ,
  UBLK_IO_OP_DISCARD,
  UBLK_IO_OP_FLUSH,
  UBLK_IO_OP_READ,
  UBLK_IO_OP_WRITE,
  UBLK_IO_OP_WRITE_ZEROES,
  UBLK_IO_RES_ABORT,
  UBLK_IO_RES_OK,
} from "../../../ffi/ublk.ts";
import { SECTOR_BYTES } from "../../driver/driver.ts";
import type { Log } from "../../log/log.ts";
import type { Meter } from "../../metrics/meter.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { UringLoop, UringUser } from "../../queue/uring_loop.ts";
import type { Requests } from "../../vbd/requests.ts";
import { RequestKind, type RequestOwner, SLOTS } from "../../vbd/slots.ts";
import { MOST_BYTES, MOST_SECTORS } from "./limits.ts";

/** The state of a tag. */
const Place = {
  /** The kernel has the tag's command, and waits for a request. */
  Kernel: 0,
  /** A request arrived and is not answered. */
  Here: 1,
  /** The device was stopped: no more requests arrive. */
  Gone: 2,
  /** A request arrived while the queue is held, and is not begun. */
  Waiting: 3,
  /** A request ended while the queue is held, and its answer is kept. */
  Ended: 4,
} as const;

const UNKNOWN_KIND = -1;
const SECTOR_SHIFT = Math.log2(SECTOR_BYTES);
const OPERATION_MASK = 0xff;

/**
 * The kind of a request from its operation and flags; -1 for an operation that is not supported.
 */
export function kindOf(operationAndFlags: number): RequestKind | -1 {
  switch (operationAndFlags & OPERATION_MASK) {
    case UBLK_IO_OP_READ:
      return RequestKind.Read;
    case UBLK_IO_OP_WRITE:
      return RequestKind.Write;
    case UBLK_IO_OP_FLUSH:
      return RequestKind.Flush;
    case UBLK_IO_OP_DISCARD:
      return RequestKind.Discard;
    case UBLK_IO_OP_WRITE_ZEROES:
      return (operationAndFlags & UBLK_IO_F_NOUNMAP) === 0 ? RequestKind.Zero : RequestKind.Fill;
    default:
      return UNKNOWN_KIND;
  }
}

/** The result for an errno: EIO, except for the numbers that mean something to users of a disk. */
function resultOf(errno: number): number {
  const isKept = errno === Errno.ENOSPC || errno === Errno.EOPNOTSUPP || errno === Errno.ETIMEDOUT;
  return isKept ? -errno : -Errno.EIO;
}

let nowhere: Arena | null = null;

/** Memory to which the kernel may copy data of requests that are refused. */
function nowhereSector(): number {
  nowhere ??= new Arena(MOST_BYTES);
  return nowhere.sector;
}

/** The methods of `UringLoop` that a queue uses. */
export type CommandRing = Pick<UringLoop, "add" | "remove" | "prepareCommand" | "commands">;

/** The environment of a queue. */
export interface QueueHost {
  readonly requests: Requests;
  readonly uring: CommandRing;
  readonly log: Log;
  /** Counts requests for monitoring programs, by slot. */
  readonly meter: Meter;
  /** The device's own file, /dev/ublkcN. */
  readonly fd: number;
  /** Whether the kernel takes encoded numbers of commands. */
  readonly encoded: boolean;
  /** Called when the last command of the queue has completed: no more requests arrive. */
  queueGone(): void;
}

/**
 * One queue of a device. Each request of the kernel has a tag.
 *
 * Each tag holds a slot of the VBD for the lifetime of the queue. The kernel copies the data of the
 * tag's requests to and from the memory of the slot. A tag's command waits in the kernel until a
 * request arrives. The next command carries the result, and waits for the next request. All
 * commands of a turn are submitted in one call.
 */
export class UblkQueue implements RequestOwner, UringUser {
  readonly #host: QueueHost;
  readonly #index: number;
  readonly #depth: number;
  readonly #descriptors: RequestDescriptors;
  readonly #ringTag: number;
  readonly #commitCommand: number;
  /** By tag. */
  readonly #slots: Int32Array;
  readonly #memorySectors: Int32Array;
  /**
   * By tag: whether the kernel has other memory for the data of the next request, as the disk failed and
   * may still use the slot's. That request has an error.
   */
  readonly #isAside: Uint8Array;
  readonly #places: Uint8Array;
  /** By tag: a `RequestKind`. */
  readonly #kinds: Uint8Array;
  /** By tag: the result without an error, which is the bytes of a read or write. */
  readonly #bytes: Int32Array;
  /** By tag: the answer that is kept. */
  readonly #kept: Int32Array;
  /** By tag: whether the VBD has a request in the slot. */
  readonly #atVbd: Uint8Array;
  /** By slot: the tag. */
  readonly #tags = new Int32Array(SLOTS);
  #tagsLeft: number;
  #abandoned = false;
  #held = false;

  /** Throws `SystemError` when the descriptors cannot be mapped. */
  constructor(host: QueueHost, index: number, depth: number) {
    this.#host = host;
    this.#index = index;
    this.#depth = depth;
    this.#tagsLeft = depth;
    this.#commitCommand = commandNumber(UBLK_IO_COMMIT_AND_FETCH_REQ, host.encoded);
    this.#slots = new Int32Array(depth);
    this.#memorySectors = new Int32Array(depth);
    this.#isAside = new Uint8Array(depth);
    this.#places = new Uint8Array(depth);
    this.#kinds = new Uint8Array(depth);
    this.#bytes = new Int32Array(depth);
    this.#kept = new Int32Array(depth);
    this.#atVbd = new Uint8Array(depth);
    this.#descriptors = new RequestDescriptors(host.fd, index, depth);
    this.#ringTag = host.uring.add(this);
  }

  /**
   * Takes a slot for every tag and sends the tag's first command. The kernel requires this before
   * it starts the device. There must be enough free slots, see `whyNotServed`.
   */
  fetch(): void {
    const { requests, encoded } = this.#host;
    const command = commandNumber(UBLK_IO_FETCH_REQ, encoded);
    for (let tag = 0; tag < this.#depth; tag++) {
      const slot = requests.takeSlot();
      assert(slot >= 0, "A queue of ublk has more tags than there are free slots");
      this.#slots[tag] = slot;
      this.#tags[slot] = tag;
      this.#memorySectors[tag] = requests.slotSector(slot);
      this.#send(command, tag, 0);
    }
  }

  #send(command: number, tag: number, result: number): void {
    const { uring, fd } = this.#host;
    const at = uring.prepareCommand(fd, command, tag, this.#ringTag);
    this.#places[tag] = Place.Kernel;
    const memory = this.#isAside[tag] === 1 ? nowhereSector() : this.#memorySectors[tag];
    putIoCommand(uring.commands, at, this.#index, tag, result, memory);
  }

  get faults(): FaultOwner {
    return this.#host.requests.faults;
  }

  uringDone(tag: number, result: number): void {
    if (result !== UBLK_IO_RES_OK) this.#tagGone(tag, result);
    else if (this.#abandoned) this.#send(this.#commitCommand, tag, -Errno.EIO);
    else if (this.#isAside[tag] === 1) this.#refuse(tag);
    else if (this.#held && !this.#mayBegin) this.#places[tag] = Place.Waiting;
    else this.#begin(tag);
  }

  /**
   * Whether a request that arrives is begun all the same. One answer of a queue is needed at the end, to give
   * its command back to the kernel: see `letGo`.
   */
  get #mayBegin(): boolean {
    return this.#count(Place.Here) + this.#count(Place.Ended) === 0 &&
      this.#host.requests.isRunning;
  }

  #count(place: number): number {
    let count = 0;
    for (let tag = 0; tag < this.#depth; tag++) if (this.#places[tag] === place) count++;
    return count;
  }

  /** Begins no more requests, and keeps the answers of those that end; or goes on with both. */
  hold(isHeld: boolean): void {
    this.#held = isHeld;
    if (isHeld) return;
    this.#giveAnswers();
    for (let tag = 0; tag < this.#depth; tag++) {
      if (this.#places[tag] === Place.Waiting) this.#begin(tag);
    }
  }

  #giveAnswers(): void {
    for (let tag = 0; tag < this.#depth; tag++) {
      if (this.#places[tag] === Place.Ended) {
        this.#send(this.#commitCommand, tag, this.#kept[tag]);
      }
    }
  }

  /** Whether it is held, and none of its requests is under way. */
  get isQuiet(): boolean {
    return this.#held && this.#count(Place.Here) === 0;
  }

  /**
   * Whether `letGo` leaves a command with the kernel, which notices by it that the process has ended. Without
   * one, kernels from 6.7 notice it when a request has lasted 30 s.
   */
  get canLetGo(): boolean {
    return this.#count(Place.Kernel) + this.#count(Place.Ended) > 0;
  }

  /** Gives the answers that are kept. Requests that wait are sent again by the kernel to the next process. */
  letGo(): void {
    this.#giveAnswers();
  }

  #begin(tag: number): void {
    const descriptors = this.#descriptors;
    const flags = descriptors.operationAndFlags(tag);
    const count = descriptors.count(tag);
    const kind = kindOf(flags);
    const carriesData = kind === RequestKind.Read || kind === RequestKind.Write;
    this.#places[tag] = Place.Here;
    if (kind === UNKNOWN_KIND || (carriesData && count > MOST_SECTORS)) {
      return this.#send(this.#commitCommand, tag, -Errno.EOPNOTSUPP);
    }
    this.#bytes[tag] = carriesData ? count * SECTOR_BYTES : 0;
    this.#atVbd[tag] = 1;
    const fua = (flags & UBLK_IO_F_FUA) !== 0;
    const slot = this.#slots[tag];
    this.#host.meter.begin(slot, kind);
    this.#kinds[tag] = kind;
    this.#host.requests.start(slot, kind, descriptors.sector(tag), count, fua, this);
  }

  /** Answers a request whose data is not in its slot. */
  #refuse(tag: number): void {
    this.#noteAside(tag);
    this.#send(this.#commitCommand, tag, -Errno.EIO);
  }

  #noteAside(tag: number): void {
    this.#isAside[tag] = this.#host.requests.isDetained(this.#slots[tag]) ? 1 : 0;
  }

  requestDone(slot: number, errno: number): void {
    const tag = this.#tags[slot];
    this.#atVbd[tag] = 0;
    if (errno !== 0) this.#noteAside(tag);
    this.#host.meter.end(slot, this.#kinds[tag], this.#bytes[tag] >>> SECTOR_SHIFT, errno);
    if (this.#places[tag] === Place.Here) {
      this.#answer(tag, errno === 0 ? this.#bytes[tag] : resultOf(errno));
    } else if (this.#places[tag] === Place.Gone) this.#host.requests.releaseSlot(slot);
  }

  #answer(tag: number, result: number): void {
    if (!this.#held) return this.#send(this.#commitCommand, tag, result);
    this.#kept[tag] = result;
    this.#places[tag] = Place.Ended;
  }

  #tagGone(tag: number, result: number): void {
    if (result !== UBLK_IO_RES_ABORT) {
      const why = errnoName(-result);
      this.#host.log.error(
        `ublk: the command of tag ${tag}, queue ${this.#index}, failed (${why})`,
      );
    }
    this.#places[tag] = Place.Gone;
    if (this.#atVbd[tag] === 0) this.#host.requests.releaseSlot(this.#slots[tag]);
    if (--this.#tagsLeft === 0) this.#host.queueGone();
  }

  /**
   * Fails all requests at once, those in flight and all later ones. The VBD may still use the slots
   * of those in flight. Data of later requests goes to other memory.
   */
  abandon(): void {
    this.#abandoned = true;
    this.#memorySectors.fill(nowhereSector());
    for (let tag = 0; tag < this.#depth; tag++) {
      const place = this.#places[tag];
      if (place === Place.Kernel || place === Place.Gone) continue;
      this.#send(this.#commitCommand, tag, -Errno.EIO);
    }
  }

  /** Whether all tags are gone. */
  get isGone(): boolean {
    return this.#tagsLeft === 0;
  }

  /** Unmaps the descriptors and leaves the io_uring. */
  close(): void {
    this.#descriptors.close();
    this.#host.uring.remove(this.#ringTag);
  }
}

function commandNumber(number: number, encoded: boolean): number {
  return encoded ? encodedIoCommand(number) : number;
}
