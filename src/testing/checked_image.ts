/**
 * A filter that checks the contract of `src/driver/driver.ts` on both sides: the image and its
 * user. It stands between a device and its image, and between each two images of a chain. A
 * violation is thrown as a `ContractViolation` at the place where it happens:
 *
 * - the pieces of a request exceed the request, or one arrives after its end; a request that never
 *   ends is found when the image is closed;
 * - extents without a status request, beyond the request, or after the last wanted one; a status
 *   request that succeeds without an extent;
 * - more disk operations in flight, in this image and the images below, than `operationsFor`
 *   returned for the requests in flight (plus the room that the image reserved);
 * - a request beyond the end of the image, a request larger than the image's limit, memory that is
 *   not allocated, or a slot that is in flight;
 * - a write, zeroing, fill or discard of an image that is open for reading only, and any change of
 *   its file;
 * - a call or a disk operation after `close`; a `close` with requests in flight; a `close` that
 *   completes twice, or with operations in flight, an open file or reserved room of the queue.
 *
 * @module
 */
import type { Done } from "../../ffi/errno.ts";
import { isMemory } from "../../ffi/memory.ts";
import {
  type DriverType,
  type ImageContext,
  type ImageCounts,
  type ImageDriver,
  type ImageSpec,
  REQUEST_SECTORS,
  type RequestSink,
} from "../driver/driver.ts";
import { FilterImage } from "../driver/filter.ts";
import { CheckedFiles, CheckedQueue, type DiskWatch } from "./checked_queue.ts";
import { CheckedRequests, SlotUse } from "./checked_requests.ts";
import { ContractViolation } from "./contract.ts";

/** A driver whose images are checked against the contract. */
export function checkedDriver(type: DriverType): DriverType {
  return {
    ...type,
    open: (spec, context, sink): ImageDriver => new CheckedImage(type, { spec, context, sink }),
  };
}

/** An image that is checked against the contract. */
class CheckedImage implements ImageDriver, DiskWatch {
  readonly #title: string;
  readonly #image: ImageDriver;
  readonly #requests: CheckedRequests;
  readonly #queue: CheckedQueue;
  readonly #files: CheckedFiles;
  readonly #readOnly: boolean;
  #above: CheckedImage | null = null;
  #below: CheckedImage | null = null;
  /** Operations of this image at the queue. */
  #operations = 0;
  #state: "open" | "closing" | "closed" = "open";

  constructor(
    type: DriverType,
    { spec, context, sink }: { spec: ImageSpec; context: ImageContext; sink: RequestSink },
  ) {
    this.#title = `${spec.type}:${spec.path}`;
    this.#readOnly = spec.readOnly;
    this.#requests = new CheckedRequests(this.#title, sink);
    this.#queue = new CheckedQueue(context.queue, this);
    this.#files = new CheckedFiles(context.files, this);
    const own = { ...context, queue: this.#queue, files: this.#files };
    this.#image = type.open(spec, own, this.#requests);
  }

  #require(condition: boolean, what: string): void {
    if (!condition) throw new ContractViolation(`${this.#title}: ${what}`);
  }

  // ---- disk operations ----------------------------------------------------------------------

  onAccess(what: string, changes: boolean): void {
    this.#require(this.#state !== "closed", `${what} after it was closed`);
    this.#require(!changes || !this.#readOnly, `${what} although it is open for reading`);
  }

  onOperation(isStart: boolean): void {
    this.#operations += isStart ? 1 : -1;
    if (isStart) this.#requireBudget();
  }

  #requireBudget(): void {
    this.#require(
      this.#underWay <= this.#requests.budget + this.#held,
      "more disk operations than it said that its requests can make",
    );
    if (this.#above !== null) this.#above.#requireBudget();
  }

  /** Operations in flight, of this image and the images below. */
  get #underWay(): number {
    return this.#operations + (this.#below === null ? 0 : this.#below.#underWay);
  }

  /** Operations that this image and the images below have reserved at the queue. */
  get #held(): number {
    return this.#queue.held + (this.#below === null ? 0 : this.#below.#held);
  }

  // ---- checks -------------------------------------------------------------------------------

  get spec(): ImageSpec {
    return this.#image.spec;
  }

  get counts(): ImageCounts {
    return this.#image.counts;
  }

  get sectors(): number {
    return this.#image.sectors;
  }

  get file(): number | undefined {
    return this.#image.file;
  }

  get pending(): number | undefined {
    return this.#image.pending;
  }

  get encrypted(): boolean | undefined {
    return this.#image.encrypted;
  }

  get parent(): ImageSpec | null {
    return this.#image.parent;
  }

  /**
   * The sink of the image below: this filter, unless the image sets its own sink in front of it.
   */
  get sinkBelow(): RequestSink {
    return this.#image.sinkBelow ?? this.#requests;
  }

  get zeroSectors(): number {
    return this.#image.zeroSectors;
  }

  get fillSectors(): number {
    return this.#image.fillSectors;
  }

  putBelow(below: ImageDriver): void {
    const hasParent = this.#image.parent !== null && this.#image.putBelow !== undefined;
    this.#require(this.#below === null && hasParent, "a parent it has not");
    // What passes requests on to the image below is not seen.
    let next = below;
    let isShared = false;
    while (next instanceof FilterImage) {
      isShared ||= next.isShared;
      next = next.below;
    }
    if (next instanceof CheckedImage) {
      // Of an image that others use too, not all operations are those of this image's requests.
      if (!isShared) this.#below = next;
      next.#above = this;
    }
    this.#image.putBelow?.(below);
  }

  operationsFor(sectors: number): number {
    return this.#image.operationsFor(sectors);
  }

  // ---- requests ------------------------------------------------------------------------------

  /** Begins a request; checks that its sectors are within the image. */
  #begin(slot: number, use: SlotUse, sector: number, count: number, most: number): void {
    this.#require(this.#state === "open", "a request after it was closed");
    this.#require(Number.isInteger(sector) && sector >= 0, "a request before its start");
    this.#require(Number.isInteger(count) && count > 0, "a request without sectors");
    this.#require(sector + count <= this.sectors, "a request beyond its end");
    this.#require(count <= most, "a request longer than it takes at once");
    this.#note(slot, use, count, use === SlotUse.Status ? 1 : count);
  }

  #note(slot: number, use: SlotUse, sectors: number, operationsOf: number): void {
    const operations = this.operationsFor(operationsOf);
    this.#requests.begin(slot, use, { sectors, operations, several: this.#above !== null });
  }

  #change(slot: number, sector: number, count: number, most: number): void {
    this.#require(!this.#readOnly, "a change although it is open for reading");
    this.#begin(slot, SlotUse.Change, sector, count, most);
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.#require(isMemory(memorySector, count), "a read to memory that is not given out");
    this.#begin(slot, SlotUse.Read, sector, count, REQUEST_SECTORS);
    this.#image.read(slot, sector, count, memorySector);
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.#require(isMemory(memorySector, count), "a write from memory that is not given out");
    this.#change(slot, sector, count, REQUEST_SECTORS);
    this.#image.write(slot, sector, count, memorySector);
  }

  zero(slot: number, sector: number, count: number): void {
    this.#change(slot, sector, count, this.zeroSectors);
    this.#image.zero(slot, sector, count);
  }

  fill(slot: number, sector: number, count: number): void {
    this.#change(slot, sector, count, this.fillSectors);
    this.#image.fill(slot, sector, count);
  }

  discard(slot: number, sector: number, count: number): void {
    this.#change(slot, sector, count, Infinity);
    this.#image.discard(slot, sector, count);
  }

  flush(slot: number): void {
    this.#require(this.#state === "open", "a flush after it was closed");
    this.#note(slot, SlotUse.Change, 1, 1);
    this.#image.flush(slot);
  }

  status(slot: number, sector: number, count: number): void {
    this.#begin(slot, SlotUse.Status, sector, count, Infinity);
    this.#image.status(slot, sector, count);
  }

  // ---- close --------------------------------------------------------------------------------

  giveUp(): void {
    this.#image.giveUp?.();
  }

  close(done: Done): void {
    this.#require(this.#state === "open", "closed twice");
    this.#require(this.#requests.inFlight === 0, "closed with requests in flight");
    this.#state = "closing";
    this.#image.close((error) => {
      this.#require(this.#state === "closing", "its close ends twice");
      const pending = this.#operations + (this.pending ?? 0);
      this.#require(pending === 0, "its close ends with operations under way");
      this.#require(this.#files.openFiles === 0, "its close leaves a file open");
      this.#require(this.#queue.held === 0, "its close keeps room of the disk queue");
      this.#state = "closed";
      done(error);
    });
  }

  abandon(): void {
    this.#state = "closed";
    this.#image.abandon();
  }
}
