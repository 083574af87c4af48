import { MOST_COUNT, MOST_LAYERS, RecordType } from "./records.ts";
import type { SlotFinder } from "./file_traces.ts";
import type { TraceRing } from "./trace_ring.ts";

/** An image, as a trace names it. */
export interface TracedImage {
  readonly spec: { readonly type: string; readonly path: string };
  /** Its file's number at the disk queue. */
  readonly file?: number;
}

/** What of a disk queue is traced. */
export interface TracedQueue {
  /** Records operations on a file from now on. */
  trace(file: number, ring: TraceRing, finder: SlotFinder, layer: number): void;
  /** Records nothing more in a ring. */
  untrace(ring: TraceRing): void;
}

/** Whether a disk is traced, and which images it has. Drivers that use no disk queue record here. */
export class Tracing {
  /** Where records go; null while the disk is not traced. */
  ring: TraceRing | null = null;
  /** Called when the disk is closed, while it is traced. */
  whenClosed: (() => void) | null = null;
  readonly #queue: TracedQueue;
  #finder: SlotFinder | null = null;
  #images: readonly TracedImage[] = [];
  readonly #layers = new Map<TracedImage, number>();
  #lastLayer = 0;
  #newNames: [layer: number, name: string][] = [];

  constructor(queue: TracedQueue) {
    this.#queue = queue;
  }

  /** The images of the disk have been opened. */
  opened(images: readonly TracedImage[]): void {
    this.#images = images;
    if (this.ring !== null) this.#number();
  }

  /** The disk is closed, and not only paused. */
  closed(): void {
    this.#images = [];
    this.whenClosed?.();
  }

  /** Records from now on. */
  begin(ring: TraceRing, finder: SlotFinder): void {
    this.ring = ring;
    this.#finder = finder;
    this.#newNames = [];
    this.#number();
  }

  /** Records no more. Names that were not taken still are, for the records that there are. */
  end(): void {
    if (this.ring !== null) this.#queue.untrace(this.ring);
    this.ring = null;
    this.#finder = null;
    this.whenClosed = null;
    this.#layers.clear();
    this.#lastLayer = 0;
  }

  /** Gives each open image a number that none has had in this trace. */
  #number(): void {
    this.#layers.clear();
    for (const image of this.#images) {
      // Past the limit, images share the last number, and have no more names.
      const isNumbered = this.#lastLayer < MOST_LAYERS;
      const layer = isNumbered ? ++this.#lastLayer : MOST_LAYERS;
      this.#layers.set(image, layer);
      if (isNumbered) this.#newNames.push([layer, `${image.spec.type}:${image.spec.path}`]);
      if (image.file === undefined || this.ring === null || this.#finder === null) continue;
      this.#queue.trace(image.file, this.ring, this.#finder, layer);
    }
  }

  /** The numbers and names that were given since the last call. */
  takeNames(): [layer: number, name: string][] {
    const names = this.#newNames;
    if (names.length > 0) this.#newNames = [];
    return names;
  }

  /**
   * An operation that an image carried out past the disk queue has ended.
   *
   * @param kind As of the disk queue's operations.
   * @param startMs When it was handed over, at `startAt`.
   */
  operation(
    image: TracedImage,
    kind: number,
    slot: number,
    count: number,
    errno: number,
    startMs: Float64Array,
    startAt: number,
    sectors: Float64Array,
    sectorAt: number,
  ): void {
    this.ring?.put(
      RecordType.Operation,
      kind,
      slot,
      this.#layers.get(image) ?? 0,
      count > MOST_COUNT ? MOST_COUNT : count,
      errno,
      startMs,
      startAt,
      startMs,
      startAt,
      sectors,
      sectorAt,
    );
  }
}
