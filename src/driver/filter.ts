import type { Done } from "../../ffi/errno.ts";
import type { ImageCounts, ImageDriver, ImageSpec, RequestSink } from "./driver.ts";

/**
 * An image that stands in front of another, whose name follows its own: it has no data, and hands
 * every request on. A filter is on top of a stack, so it gets one call for each step of a request,
 * and must make at most one of it: the pieces of a slot that end below are then those of the one
 * call that is under way.
 */
export class FilterImage implements ImageDriver {
  readonly spec: ImageSpec;
  readonly parent: ImageSpec;
  readonly counts: ImageCounts = { readSectors: 0, writtenSectors: 0 };
  /** Where the image below tells the ends of pieces; null: where this image does. */
  readonly sinkBelow: RequestSink | null = null;
  /** Whether statistics leave it out: it has no name, and only connects others. */
  readonly isUnlisted: boolean = false;
  /** Whether others than the image above it make requests of the image below it. */
  readonly isShared: boolean = false;
  #below: ImageDriver | null = null;

  /** @param below The image that this one stands in front of. */
  constructor(spec: ImageSpec, below: { type: string; path: string }) {
    this.spec = spec;
    this.parent = { ...spec, ...below };
  }

  putBelow(below: ImageDriver): void {
    this.#below = below;
  }

  /** The image below, open. */
  get below(): ImageDriver {
    if (this.#below === null) throw new Error(`Nothing is open below ${this.spec.type}`);
    return this.#below;
  }

  get sectors(): number {
    return this.below.sectors;
  }

  get encrypted(): boolean | undefined {
    return this.below.encrypted;
  }

  get zeroSectors(): number {
    return this.below.zeroSectors;
  }

  get fillSectors(): number {
    return this.below.fillSectors;
  }

  operationsFor(sectors: number): number {
    return this.below.operationsFor(sectors);
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.below.read(slot, sector, count, memorySector);
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.below.write(slot, sector, count, memorySector);
  }

  zero(slot: number, sector: number, count: number): void {
    this.below.zero(slot, sector, count);
  }

  fill(slot: number, sector: number, count: number): void {
    this.below.fill(slot, sector, count);
  }

  discard(slot: number, sector: number, count: number): void {
    this.below.discard(slot, sector, count);
  }

  flush(slot: number): void {
    this.below.flush(slot);
  }

  status(slot: number, sector: number, count: number): void {
    this.below.status(slot, sector, count);
  }

  close(done: Done): void {
    done(null);
  }

  abandon(): void {}
}
