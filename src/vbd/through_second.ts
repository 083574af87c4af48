import type { Done } from "../../ffi/errno.ts";
import {
  type ImageDriver,
  type ImageSpec,
  REQUEST_SLOTS,
  type RequestSink,
} from "../driver/driver.ts";
import { FilterImage } from "../driver/filter.ts";
import type { Second, SecondSink } from "./second.ts";
import { RequestKind } from "./slots.ts";

/**
 * A secondary image that is a layer of the device's chain, below the leaf: what the leaf lacks is read
 * from it, and what it lacks from the leaf's parent. This filter is between the leaf and it. It makes
 * the requests of the mirror, and passes on what the leaf reads.
 */
export class ThroughSecond extends FilterImage implements Second, RequestSink {
  override readonly sinkBelow = this;
  override readonly isShared = true;
  override readonly isUnlisted = true;
  readonly isNeeded = true;
  readonly images: readonly ImageDriver[] = [];
  /** Where the leaf has pieces of its reads told. */
  #above: RequestSink | null = null;
  #mirror: SecondSink | null = null;
  /** By slot: sectors of a request of the mirror that have not ended, and its first error. */
  readonly #left = new Float64Array(REQUEST_SLOTS);
  readonly #error = new Int32Array(REQUEST_SLOTS);

  /** @param spec The secondary image. */
  constructor(spec: ImageSpec) {
    super(spec, spec);
  }

  /** The mirror is made. */
  madeFor(mirror: SecondSink): this {
    this.#mirror = mirror;
    return this;
  }

  /** It gets its place below the leaf, which has pieces told to `above`. */
  placed(above: RequestSink): this {
    this.#above = above;
    return this;
  }

  get name(): string {
    return `${this.spec.type}:${this.spec.path}`;
  }

  start(
    slot: number,
    kind: RequestKind,
    sector: number,
    count: number,
    memorySector: number,
  ): void {
    this.#left[slot] = kind === RequestKind.Flush ? 1 : count;
    this.#error[slot] = 0;
    switch (kind) {
      case RequestKind.Read:
        return this.below.read(slot, sector, count, memorySector);
      case RequestKind.Write:
        return this.below.write(slot, sector, count, memorySector);
      case RequestKind.Zero:
        return this.below.zero(slot, sector, count);
      case RequestKind.Fill:
        return this.below.fill(slot, sector, count);
      case RequestKind.Discard:
        return this.below.discard(slot, sector, count);
      default:
        return this.below.flush(slot);
    }
  }

  pieceDone(slot: number, sectors: number, errno: number): void {
    if (this.#left[slot] === 0) return this.#above?.pieceDone(slot, sectors, errno);
    if (errno !== 0 && this.#error[slot] === 0) this.#error[slot] = errno;
    this.#left[slot] -= sectors;
    if (this.#left[slot] === 0) this.#mirror?.secondDone(slot, this.#error[slot]);
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    return this.#above?.extent(slot, sectors, isData) ?? false;
  }

  statusDone(slot: number, errno: number): void {
    this.#above?.statusDone(slot, errno);
  }

  has(slot: number): boolean {
    return this.#left[slot] > 0;
  }

  /** The disk waits for it: nothing is forgotten. */
  forget(): void {}

  /** The device hurries its images itself, of which this is one. */
  hurry(): void {}

  override close(done: Done): void {
    done(null);
  }
}
