import type { RbdSession } from "../../../ffi/rbd_session.ts";
import { type ImageContext, REQUEST_SLOTS, type RequestSink, SECTOR_BYTES } from "../driver.ts";

/** What of an open image extents are found by. */
type MappedImage = Pick<
  RbdSession,
  "objectBytes" | "overlapBytes" | "hasObjectMap" | "loadObjectMap"
>;

/**
 * Status requests of an image. The image's map of objects answers them: an object that does not exist
 * is a hole, unless what is there comes from the image that this is a clone of. The map is asked for
 * anew by each round of requests: one that ended before a request came is in what that is told.
 */
export class ExtentQuestions {
  readonly #image: MappedImage;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #sector = new Float64Array(REQUEST_SLOTS);
  readonly #count = new Float64Array(REQUEST_SLOTS);
  /** Slots of requests that the next map answers, and of those that the map under way does. */
  #next: number[] = [];
  #current: number[] = [];

  constructor(image: MappedImage, context: ImageContext, sink: RequestSink) {
    this.#image = image;
    this.#context = context;
    this.#sink = sink;
  }

  /** How many questions the cluster has not answered. */
  get asked(): number {
    return this.#current.length > 0 ? 1 : 0;
  }

  /** Answers a status request, now or later. */
  ask(slot: number, sector: number, count: number): void {
    if (this.#context.faults.failed) return;
    if (!this.#image.hasObjectMap) {
      this.#sink.extent(slot, count, true);
      return this.#sink.statusDone(slot, 0);
    }
    this.#sector[slot] = sector;
    this.#count[slot] = count;
    this.#next.push(slot);
    if (this.#current.length === 0) this.#load();
  }

  #load(): void {
    this.#current = this.#next;
    this.#next = [];
    this.#context.scheduler.settle(
      this.#image.loadObjectMap().catch(() => null),
      (map) => this.#loaded(map),
    );
  }

  #loaded(map: Uint8Array | null): void {
    const slots = this.#current;
    this.#current = [];
    if (this.#context.faults.failed) return;
    for (const slot of slots) this.#answer(slot, map);
    if (this.#current.length === 0 && this.#next.length > 0) this.#load();
  }

  #answer(slot: number, map: Uint8Array | null): void {
    const end = this.#sector[slot] + this.#count[slot];
    for (let at = this.#sector[slot]; at < end;) {
      const isData = map === null || this.#isData(map, at);
      let until = this.#endOfObject(at);
      while (until < end && (map === null || this.#isData(map, until)) === isData) {
        until = this.#endOfObject(until);
      }
      until = Math.min(until, end);
      if (!this.#sink.extent(slot, until - at, isData)) break;
      at = until;
    }
    this.#sink.statusDone(slot, 0);
  }

  #endOfObject(sector: number): number {
    const sectors = this.#image.objectBytes / SECTOR_BYTES;
    return (Math.floor(sector / sectors) + 1) * sectors;
  }

  #isData(map: Uint8Array, sector: number): boolean {
    const { objectBytes, overlapBytes } = this.#image;
    const object = Math.floor(sector * SECTOR_BYTES / objectBytes);
    // What is beyond the map exists, as far as is known.
    if (object >= map.length * 4) return true;
    const state = (map[object >> 2] >> (6 - 2 * (object & 3))) & 3;
    return state !== 0 || object * objectBytes < overlapBytes;
  }
}
