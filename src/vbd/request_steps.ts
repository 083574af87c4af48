import { assert } from "../../ffi/assert.ts";
import { type ImageDriver, REQUEST_SECTORS } from "../driver/driver.ts";
import type { DrainGate } from "./drain_gate.ts";
import type { ExtentSearch } from "./extents.ts";
import { RequestKind, type SlotTable } from "./slots.ts";
import type { VbdContext } from "./vbd_context.ts";

/** Longest step of a request to discard, sectors: others get their turn in between. */
const DISCARD_STEP_SECTORS = 1 << 20;
/** By kind: whether a request may be longer than what is done at once. */
const GOES_IN_STEPS: readonly boolean[] = [true, true, false, true, true, false, true];
/** A step takes no more than this part of the disk queue, so that each is admitted in the end. */
const STEP_SHARE = 16;

/** Goes on with requests at the end of their steps. */
export interface StepSink {
  /** A step ended, and another follows. */
  stepDone(slot: number): void;
  /** The last step of a request ended. */
  stepsDone(slot: number): void;
  /** A step failed; what was done of it counts for nothing. */
  stepFailed(slot: number, errno: number): void;
}

/**
 * Hands requests to the image, a step at a time, and adds up the pieces that the image does of each
 * step. A forced write has one more step: a flush.
 */
export class RequestSteps {
  readonly #slots: SlotTable;
  readonly #extents: ExtentSearch;
  readonly #gate: DrainGate;
  readonly #context: VbdContext;
  readonly #sink: StepSink;
  /** The most sectors of a step, by kind of request. */
  readonly #mostSectors = new Int32Array(GOES_IN_STEPS.length);
  /** What `operationsFor` says of so many sectors, + 1; 0: not asked yet. A deep chain is long to ask. */
  readonly #operationsFor = new Int32Array(REQUEST_SECTORS + 1);

  constructor(
    { slots, extents, gate, context, sink }: {
      slots: SlotTable;
      extents: ExtentSearch;
      gate: DrainGate;
      context: VbdContext;
      sink: StepSink;
    },
  ) {
    this.#slots = slots;
    this.#extents = extents;
    this.#gate = gate;
    this.#context = context;
    this.#sink = sink;
  }

  /** The most disk operations that the next step of a request can make at once. */
  operations(slot: number): number {
    const sectors = this.sectors(slot);
    if (sectors > REQUEST_SECTORS) return this.#gate.image.operationsFor(sectors);
    if (this.#operationsFor[sectors] === 0) {
      this.#operationsFor[sectors] = this.#gate.image.operationsFor(sectors) + 1;
    }
    return this.#operationsFor[sectors] - 1;
  }

  /**
   * Finds how many sectors a step of each kind may have. An image makes more operations for the same
   * sectors where its blocks are small or its chain is deep: a step that needed more than the queue
   * has would wait for ever.
   */
  fit(image: ImageDriver): void {
    this.#operationsFor.fill(0);
    const { queue } = this.#context;
    const most = queue.capacity / STEP_SHARE;
    const fitting = (sectors: number): number => {
      while (sectors > 1 && image.operationsFor(sectors) > most) sectors = Math.floor(sectors / 2);
      return sectors;
    };
    const data = fitting(REQUEST_SECTORS);
    this.#mostSectors[RequestKind.Read] = data;
    this.#mostSectors[RequestKind.Write] = data;
    this.#mostSectors[RequestKind.Zero] = fitting(image.zeroSectors);
    this.#mostSectors[RequestKind.Fill] = fitting(image.fillSectors);
    this.#mostSectors[RequestKind.Discard] = fitting(DISCARD_STEP_SECTORS);
    assert(image.operationsFor(1) <= queue.capacity / 2, "A sector takes more than the disk queue");
  }

  /** Sectors of the next step of a request; 1 for those that move no data. */
  sectors(slot: number): number {
    const slots = this.#slots;
    const kind = slots.kind[slot];
    if (kind === RequestKind.Flush || kind === RequestKind.Status) return 1;
    return Math.min(slots.count[slot] - slots.progress[slot], this.#mostSectors[kind]);
  }

  /** Starts the next step of a request. It may end before this returns. */
  run(slot: number): void {
    const slots = this.#slots;
    slots.error[slot] = 0;
    if (slots.flushing[slot] === 1) return this.#flush(slot);
    const image = this.#gate.image;
    const sector = slots.sector[slot] + slots.progress[slot];
    const count = this.sectors(slot);
    slots.pending[slot] = count;
    switch (slots.kind[slot]) {
      case RequestKind.Read:
        return image.read(slot, sector, count, this.#memorySector(slot));
      case RequestKind.Write:
        return image.write(slot, sector, count, this.#memorySector(slot));
      case RequestKind.Discard:
        return image.discard(slot, sector, count);
      case RequestKind.Fill:
        return image.fill(slot, sector, count);
      case RequestKind.Zero:
        return image.zero(slot, sector, count);
      case RequestKind.Status:
        return this.#findExtents(slot);
      default:
        return this.#flush(slot);
    }
  }

  /** Where in I/O memory the data of the next step lies. */
  #memorySector(slot: number): number {
    return (this.#slots.dataSector[slot] + this.#slots.progress[slot]) | 0;
  }

  #flush(slot: number): void {
    this.#slots.pending[slot] = 1;
    if (this.#gate.target?.readOnly === true) this.pieceDone(slot, 1, 0);
    else this.#gate.image.flush(slot);
  }

  /** A piece of a step ended. */
  pieceDone(slot: number, sectors: number, errno: number): void {
    const slots = this.#slots;
    const pending = slots.pending[slot];
    assert(sectors > 0 && sectors <= pending, "The pieces of a step add up to the step");
    if (errno !== 0 && slots.error[slot] === 0) slots.error[slot] = errno;
    slots.pending[slot] = pending - sectors;
    if (sectors === pending) this.#stepDone(slot);
  }

  #findExtents(slot: number): void {
    // An image ends a status request by `statusDone`, and not by pieces.
    this.#slots.pending[slot] = 0;
    if (this.#extents.run(slot, this.#gate.image)) this.#extentsDone(slot);
  }

  /** The image has ended a status request. */
  statusDone(slot: number, errno: number): void {
    if (this.#extents.end(slot, errno)) this.#extentsDone(slot);
  }

  #extentsDone(slot: number): void {
    if (this.#extents.wantsMore(slot)) this.#sink.stepDone(slot);
    else this.#stepDone(slot);
  }

  #stepDone(slot: number): void {
    const slots = this.#slots;
    const errno = slots.error[slot];
    if (errno !== 0) return this.#sink.stepFailed(slot, errno);
    if (GOES_IN_STEPS[slots.kind[slot]]) {
      if (slots.flushing[slot] === 0) slots.progress[slot] += this.sectors(slot);
      if (slots.progress[slot] < slots.count[slot]) return this.#sink.stepDone(slot);
    }
    if (slots.fua[slot] === 1 && slots.flushing[slot] === 0) {
      slots.flushing[slot] = 1;
      return this.#flush(slot);
    }
    this.#sink.stepsDone(slot);
  }
}
