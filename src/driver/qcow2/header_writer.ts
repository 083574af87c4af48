import { Arena } from "../../../ffi/memory.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { Autoclear, HeaderField, Incompatible } from "../../qcow2/format/header.ts";
import { type MarkedDirectory, markedDirectory } from "../../qcow2/image/bitmap_directory.ts";
import type { Qcow2Image } from "../../qcow2/image/image.ts";
import { type ImageQueue, SECTOR_BYTES } from "../driver.ts";

/** Operations that it can have under way. */
export const HEADER_OPERATIONS = 1;
/** Writers that can wait for the header at once. */
const MOST_WAITING = 4;

/** Called when the header has been written, or could not be. */
export type HeaderDone = (errno: number) => void;

/**
 * Writes the first sector of the header, with all changes that have been made. A second write waits
 * for the first one to end.
 */
export class HeaderWriter implements IoOwner {
  readonly #arena: Arena;
  /** The directory of bitmaps, with marks; it is behind the two sectors of the header in memory. */
  readonly #directory: MarkedDirectory | null;
  #isMarked: boolean;
  readonly #file: number;
  readonly #queue: ImageQueue;
  readonly #version: number;
  readonly #waiting: HeaderDone[] = [];
  #writing: HeaderDone[] = [];
  #isBusy = false;
  #isMarking = false;

  constructor(image: Qcow2Image, file: number, queue: ImageQueue) {
    this.#file = file;
    this.#queue = queue;
    this.#version = image.header.version;
    this.#directory = markedDirectory(image);
    this.#isMarked = this.#directory?.isInFile ?? true;
    this.#arena = new Arena(2 * SECTOR_BYTES + (this.#directory?.bytes.length ?? 0));
    if (this.#directory !== null) this.#arena.bytes.set(this.#directory.bytes, 2 * SECTOR_BYTES);
    image.file.readAt(this.#arena.bytes.subarray(0, SECTOR_BYTES), 0);
  }

  /** Whether writes may be refused by others until `clearAutoclear` has ended. */
  needsClearing(keepRawDataFile: boolean): boolean {
    if (this.#version < 3) return false;
    return !this.#isMarked || this.#autoclear() !== this.#kept(keepRawDataFile);
  }

  /** Whether the bitmaps of the image are kept, marked as in use. */
  get keepsBitmaps(): boolean {
    return this.#directory !== null;
  }

  #autoclear(): number {
    const { view } = this.#arena;
    const at = HeaderField.AutoclearFeatures;
    return view.getUint32(at, false) * 2 ** 32 + view.getUint32(at + 4, false);
  }

  #kept(keepRawDataFile: boolean): number {
    const bitmaps = this.#directory === null ? 0 : Autoclear.Bitmaps;
    return this.#autoclear() % 4 & (bitmaps | (keepRawDataFile ? Autoclear.RawDataFile : 0));
  }

  /**
   * Clears the features of programs that must see every write: nothing else than a raw data file is
   * kept true here. The bitmaps of an image are marked as in use: they count as inconsistent from then
   * on. Where that cannot be written, their feature is cleared, which says the same.
   */
  clearAutoclear(keepRawDataFile: boolean, done: HeaderDone): void {
    const directory = this.#directory;
    if (this.#isMarked || directory === null) return this.#clear(keepRawDataFile, done);
    this.#isMarking = true;
    const owner: IoOwner = {
      ioDone: (_token, _sectors, errno) => {
        this.#isMarking = false;
        this.#isMarked = errno === 0;
        if (errno !== 0) done(errno);
        else this.#clear(keepRawDataFile, done);
      },
    };
    const sectors = directory.bytes.length / SECTOR_BYTES;
    const sector = directory.offsetBytes / SECTOR_BYTES;
    this.#queue.write(this.#file, sector, sectors, this.#arena.sector + 2, owner, 0);
  }

  #clear(keepRawDataFile: boolean, done: HeaderDone): void {
    const kept = this.#kept(keepRawDataFile);
    this.#arena.view.setUint32(HeaderField.AutoclearFeatures, 0, false);
    this.#arena.view.setUint32(HeaderField.AutoclearFeatures + 4, kept, false);
    this.#write(done);
  }

  /** Marks the image as corrupt; version 2 has no mark. */
  markCorrupt(done: HeaderDone): void {
    if (this.#version < 3) return;
    const at = HeaderField.IncompatibleFeatures + 4;
    const { view } = this.#arena;
    view.setUint32(at, (view.getUint32(at, false) | Incompatible.Corrupt) >>> 0, false);
    this.#write(done);
  }

  /** The refcount table is elsewhere. */
  setRefcountTable(high: number, low: number, clusters: number, done: HeaderDone): void {
    const { view } = this.#arena;
    view.setUint32(HeaderField.RefcountTableOffset, high, false);
    view.setUint32(HeaderField.RefcountTableOffset + 4, low, false);
    view.setUint32(HeaderField.RefcountTableClusters, clusters, false);
    this.#write(done);
  }

  #write(done: HeaderDone): void {
    if (this.#waiting.length < MOST_WAITING) this.#waiting.push(done);
    if (!this.#isBusy) this.#start();
  }

  #start(): void {
    this.#isBusy = true;
    this.#writing = this.#waiting.splice(0);
    const { bytes, sector } = this.#arena;
    bytes.copyWithin(SECTOR_BYTES, 0, SECTOR_BYTES);
    this.#queue.write(this.#file, 0, 1, sector + 1, this, 0);
  }

  ioDone(_token: number, _sectors: number, errno: number): void {
    const ended = this.#writing;
    this.#writing = [];
    this.#isBusy = false;
    if (this.#waiting.length > 0) this.#start();
    for (const done of ended) done(errno);
  }

  /** Whether nothing is being written. */
  get isIdle(): boolean {
    return !this.#isBusy && !this.#isMarking;
  }

  /** Unmaps its memory; it must be idle. */
  release(): void {
    this.#arena.release();
  }
}
