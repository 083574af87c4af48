import { Arena, PAGE_BYTES } from "../../ffi/memory.ts";
import { setBits } from "../vhd/format/bitmap.ts";
import {
  type DriverType,
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  REQUEST_SLOTS,
  type RequestSink,
} from "./driver.ts";
import { FilterImage } from "./filter.ts";
import { NAMES_IMAGE, parseImageName } from "./image_name.ts";
import type { Retained, RetainedState } from "./retained_state.ts";
import { sectorBits } from "./sector_bits.ts";

/** Sectors whose bits are in one page of a log. */
export const LOG_PAGE_SECTORS = PAGE_BYTES * 8;
/** Bytes of a page of a log in an answer: its number, little-endian, and its bits. */
export const LOG_PAGE_RECORD_BYTES = 4 + PAGE_BYTES;

/**
 * Notes which sectors change. `log:TYPE:PATH` stands in front of any image; the log starts empty
 * when the device opens, outlasts pauses and changes of the image, and goes when it closes.
 */
export const logDriver: DriverType = {
  type: "log",
  where: "IMAGE",
  summary: "A record of which sectors change, in front of another image",
  number: 9,
  named: () => NAMES_IMAGE,
  open: (spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver =>
    new LogImage(spec, context.retained, sink),
};

/**
 * Which sectors of a device were written, zeroed or discarded: a bit each, the most significant of
 * a byte first. Pages of it without a bit take no room.
 */
export class WriteLog implements Retained, RequestSink {
  #sectors = 0;
  #bits = new Arena(PAGE_BYTES);
  /** Which pages have bits, a byte each. */
  #touched = new Uint8Array(1);
  /** By slot: what is being changed, and how many sectors of that have not ended. */
  readonly #sector = new Float64Array(REQUEST_SLOTS);
  readonly #count = new Float64Array(REQUEST_SLOTS);
  readonly #left = new Float64Array(REQUEST_SLOTS);
  #sink: RequestSink | null = null;

  /** Size of the device, sectors. */
  get sectors(): number {
    return this.#sectors;
  }

  /**
   * Sets where ends of pieces are told from now on, and how large the device is.
   *
   * @throws {SystemError} EFBIG, ENOMEM for a disk that is too large.
   */
  attach(sink: RequestSink, sectors: number): void {
    this.#sink = sink;
    if (sectors === this.#sectors) return;
    const [bits, touched] = [this.#bits, this.#touched];
    // A log that cannot be made leaves the old one as it is.
    this.#bits = sectorBits(sectors, "a log of the changes of a disk");
    this.#touched = new Uint8Array(Math.ceil(sectors / LOG_PAGE_SECTORS));
    this.#sectors = sectors;
    for (let page = 0; page < Math.min(touched.length, this.#touched.length); page++) {
      if (touched[page] === 0) continue;
      const at = page * PAGE_BYTES;
      this.#touched[page] = 1;
      this.#bits.bytes.set(bits.bytes.subarray(at, at + PAGE_BYTES), at);
    }
    bits.release();
  }

  /** A request begins to change sectors. */
  begin(slot: number, sector: number, count: number): void {
    this.#sector[slot] = sector;
    this.#count[slot] = count;
    this.#left[slot] = count;
    this.#mark(sector, count);
  }

  #mark(sector: number, count: number): void {
    setBits(this.#bits.bytes, sector, count);
    const last = Math.floor((sector + count - 1) / LOG_PAGE_SECTORS);
    for (let page = Math.floor(sector / LOG_PAGE_SECTORS); page <= last; page++) {
      this.#touched[page] = 1;
    }
  }

  pieceDone(slot: number, sectors: number, errno: number): void {
    if (this.#left[slot] > 0) this.#left[slot] -= sectors;
    this.#sink?.pieceDone(slot, sectors, errno);
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    return this.#sink?.extent(slot, sectors, isData) ?? false;
  }

  statusDone(slot: number, errno: number): void {
    this.#sink?.statusDone(slot, errno);
  }

  /** The pages that have bits, each a record: its number (u32, little-endian), then its bits. */
  pages(): Uint8Array<ArrayBuffer> {
    let count = 0;
    for (const touched of this.#touched) count += touched;
    const records = new Uint8Array(count * LOG_PAGE_RECORD_BYTES);
    const view = new DataView(records.buffer);
    let at = 0;
    for (let page = 0; page < this.#touched.length; page++) {
      if (this.#touched[page] === 0) continue;
      const start = page * PAGE_BYTES;
      view.setUint32(at, page, true);
      records.set(this.#bits.bytes.subarray(start, start + PAGE_BYTES), at + 4);
      at += LOG_PAGE_RECORD_BYTES;
    }
    return records;
  }

  /**
   * Empties the log. Changes in flight stay in it: a program that copies the sectors of the old log
   * now may not read them yet.
   */
  clear(): void {
    for (let page = 0; page < this.#touched.length; page++) {
      if (this.#touched[page] === 1) this.#bits.discard(page * PAGE_BYTES, PAGE_BYTES);
    }
    this.#touched.fill(0);
    for (let slot = 0; slot < REQUEST_SLOTS; slot++) {
      if (this.#left[slot] > 0) this.#mark(this.#sector[slot], this.#count[slot]);
    }
  }

  release(): void {
    this.#bits.release();
  }
}

/** A filter that notes writes. */
class LogImage extends FilterImage {
  override readonly sinkBelow: WriteLog;
  readonly #sink: RequestSink;

  constructor(spec: ImageSpec, retained: RetainedState, sink: RequestSink) {
    super(spec, parseImageName(spec.path));
    this.#sink = sink;
    this.sinkBelow = retained.take("log", { kind: WriteLog, make: () => new WriteLog() });
  }

  override putBelow(below: ImageDriver): void {
    super.putBelow(below);
    this.sinkBelow.attach(this.#sink, below.sectors);
  }

  override write(slot: number, sector: number, count: number, memorySector: number): void {
    this.sinkBelow.begin(slot, sector, count);
    this.below.write(slot, sector, count, memorySector);
  }

  override zero(slot: number, sector: number, count: number): void {
    this.sinkBelow.begin(slot, sector, count);
    this.below.zero(slot, sector, count);
  }

  override fill(slot: number, sector: number, count: number): void {
    this.sinkBelow.begin(slot, sector, count);
    this.below.fill(slot, sector, count);
  }

  override discard(slot: number, sector: number, count: number): void {
    this.sinkBelow.begin(slot, sector, count);
    this.below.discard(slot, sector, count);
  }
}
