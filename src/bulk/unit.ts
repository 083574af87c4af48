import { assert } from "../../ffi/assert.ts";
import { errnoOf } from "../../ffi/errno.ts";
import { Arena, equalMemory, memorySectorOf, zeroMemory } from "../../ffi/memory.ts";
import type { DiskQueue, IoOwner } from "../queue/disk_queue.ts";
import { runEnd, setBits, testBit } from "../vhd/format/bitmap.ts";
import { bitmapOffset, dataOffset, isAllocated } from "../vhd/image/block.ts";
import type { VhdImage } from "../vhd/image/image.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import type { HiddenStretch, Layer } from "./layers.ts";

/** How far a stretch of memory is looked at byte by byte before all of it is compared. */
const PROBE_BYTES = 64;

/** How large the units are, and what they are made of. */
export interface UnitShape {
  readonly layers: readonly Layer[];
  /** Sectors of a unit: a block of the target. */
  readonly sectors: number;
  /** Bytes of a bitmap of the target; 0 for a flat one. */
  readonly bitmapBytes: number;
  /** Sectors that are zeros where no layer holds them. */
  readonly hidden?: HiddenStretch;
}

/**
 * One stretch of the disk on its way: its buffer, what of it was found, and the operations that are
 * under way for it. A unit is as long as a block of the target, and is used again and again.
 *
 * In memory, the target's bitmap lies directly in front of the data, as it does in the file.
 */
export class Unit implements IoOwner {
  /** First sector and the one behind the last, on the virtual disk. */
  sector = 0;
  end = 0;
  /** Which of its sectors were found in a layer, one bit each, from the unit's first sector on. */
  readonly covered: Uint8Array<ArrayBuffer>;
  /** Address of the data. */
  readonly address: number;
  /** The target's bitmap, in front of the data. */
  readonly bitmap: Uint8Array<ArrayBuffer>;
  readonly bitmapAddress: number;
  readonly #arena: Arena;
  readonly #queue: DiskQueue;
  readonly #layers: readonly Layer[];
  readonly #hidden: HiddenStretch;
  /** Where each layer's bitmaps for this unit are in the arena. */
  readonly #bitmapsAt: readonly number[];
  #pending = 0;
  #errno = 0;
  #next: (errno: number) => void = () => {};

  constructor(queue: DiskQueue, { layers, sectors, bitmapBytes, hidden }: UnitShape) {
    this.#queue = queue;
    this.#hidden = hidden ?? { sector: 0, end: 0 };
    this.#layers = layers;
    this.covered = new Uint8Array(Math.ceil(sectors / 8));
    const dataAt = Math.ceil(bitmapBytes / 4096) * 4096;
    let bytes = dataAt + sectors * VHD_SECTOR_SIZE;
    this.#bitmapsAt = layers.map(({ image }) => {
      const at = bytes;
      if (image !== null) {
        const blocks = Math.ceil(sectors / image.sectorsPerBlock);
        bytes += blocks * image.bitmapSectors * VHD_SECTOR_SIZE;
      }
      return at;
    });
    this.#arena = new Arena(bytes);
    this.address = this.#arena.address + dataAt;
    this.bitmapAddress = this.address - bitmapBytes;
    this.bitmap = this.#arena.bytes.subarray(dataAt - bitmapBytes, dataAt);
  }

  /** Takes the unit for another stretch. */
  assign(sector: number, end: number): void {
    this.sector = sector;
    this.end = end;
    this.covered.fill(0);
  }

  /**
   * Runs operations: `start` begins them by the methods below, `then` is called once all of them
   * have ended, with the first error.
   */
  phase(start: () => void, then: (errno: number) => void): void {
    this.#pending = 1;
    this.#errno = 0;
    this.#next = then;
    let errno = 0;
    try {
      start();
    } catch (error) {
      // What did start must end before anything else is done with the memory.
      errno = errnoOf(error);
    }
    this.ioDone(0, 0, errno);
  }

  ioDone(_token: number, _sectors: number, errno: number): void {
    if (errno !== 0 && this.#errno === 0) this.#errno = errno;
    if (--this.#pending === 0) this.#next(this.#errno);
  }

  /** Asserts that memory is this unit's own, and whole sectors. */
  #requireInside(address: number, lengthBytes: number): void {
    const at = address - this.#arena.address;
    const inside = at >= 0 && lengthBytes >= 0 && at + lengthBytes <= this.#arena.sizeBytes;
    assert(inside, "A unit reaches beyond its own memory");
    assert(
      at % VHD_SECTOR_SIZE === 0 && lengthBytes % VHD_SECTOR_SIZE === 0,
      "A unit moves something other than whole sectors",
    );
  }

  /** Makes memory of this unit zero. */
  #zero(address: number, lengthBytes: number): void {
    this.#requireInside(address, lengthBytes);
    zeroMemory(address, lengthBytes);
  }

  /** Reads into memory of this unit, as a part of a phase. */
  read(file: number, offsetBytes: number, lengthBytes: number, address: number): void {
    this.#requireInside(address, lengthBytes);
    this.#pending++;
    this.#queue.read(
      file,
      offsetBytes / VHD_SECTOR_SIZE,
      lengthBytes / VHD_SECTOR_SIZE,
      memorySectorOf(address),
      this,
      0,
    );
  }

  /** Writes from memory of this unit, as a part of a phase. */
  write(file: number, offsetBytes: number, lengthBytes: number, address: number): void {
    this.#requireInside(address, lengthBytes);
    this.#pending++;
    this.#queue.write(
      file,
      offsetBytes / VHD_SECTOR_SIZE,
      lengthBytes / VHD_SECTOR_SIZE,
      memorySectorOf(address),
      this,
      0,
    );
  }

  /** Starts to read those bitmaps of the layers that say which sectors of this unit are where. */
  readBitmaps(): void {
    for (const [index, { image, disk, sizeSectors }] of this.#layers.entries()) {
      if (image === null) return;
      const bytes = image.bitmapSectors * VHD_SECTOR_SIZE;
      const first = Math.floor(this.sector / image.sectorsPerBlock);
      const end = Math.min(this.end, sizeSectors);
      for (let block = first; block * image.sectorsPerBlock < end; block++) {
        if (isAllocated(image, block)) {
          const at = this.#bitmapsAt[index] + (block - first) * bytes;
          this.read(disk.file, bitmapOffset(image, block), bytes, this.#arena.address + at);
        }
      }
    }
  }

  /** Starts to read the data of each sector from the first layer that holds it. */
  readData(): void {
    for (const [index, layer] of this.#layers.entries()) {
      const end = Math.min(this.end, layer.sizeSectors);
      if (layer.image === null) this.#readFlat(layer, end);
      else this.#readBlocks(layer, layer.image, { index, end });
      if (this.allCovered) return;
    }
    this.#coverHidden();
  }

  /** Makes those sectors zero that no layer holds and that hide what lies below the layers. */
  #coverHidden(): void {
    const last = Math.min(this.end, this.#hidden.end) - this.sector;
    for (let at = Math.max(0, this.#hidden.sector - this.sector); at < last;) {
      const runTo = runEnd(this.covered, at, last);
      if (!testBit(this.covered, at)) {
        this.#zero(this.address + at * VHD_SECTOR_SIZE, (runTo - at) * VHD_SECTOR_SIZE);
        setBits(this.covered, at, runTo - at);
      }
      at = runTo;
    }
  }

  /** Whether every sector of the unit was found. */
  get allCovered(): boolean {
    return testBit(this.covered, 0) && this.runEnd(0) === this.end - this.sector;
  }

  /** The end of a run of sectors that were found, or were not, counted from the unit's first. */
  runEnd(from: number): number {
    return runEnd(this.covered, from, this.end - this.sector);
  }

  /** Calls back for each run of sectors that were found, counted from the unit's first. */
  eachRun(call: (from: number, end: number) => void): void {
    const last = this.end - this.sector;
    for (let at = 0; at < last;) {
      const end = this.runEnd(at);
      if (testBit(this.covered, at)) call(at, end);
      at = end;
    }
  }

  #readFlat(layer: Layer, end: number): void {
    const { disk } = layer;
    for (let at = this.sector; at < end;) {
      const run = disk.allocatedRun(at * VHD_SECTOR_SIZE, (end - at) * VHD_SECTOR_SIZE);
      const lengthSectors = Math.abs(run) / VHD_SECTOR_SIZE;
      if (run > 0) this.#readHeld(layer, at, { end: at + lengthSectors, offsetBytes: 0 });
      at += lengthSectors;
    }
  }

  #readBlocks(
    layer: Layer,
    image: VhdImage,
    { index, end }: { index: number; end: number },
  ): void {
    const perBlock = image.sectorsPerBlock;
    const first = Math.floor(this.sector / perBlock);
    const bytes = image.bitmapSectors * VHD_SECTOR_SIZE;
    for (let block = first; block * perBlock < end; block++) {
      if (!isAllocated(image, block)) continue;
      const start = block * perBlock;
      const from = Math.max(start, this.sector);
      const to = Math.min(start + perBlock, end);
      // A sector's place in the file, less the sector itself times its size.
      const offsetBytes = dataOffset(image, block) - start * VHD_SECTOR_SIZE;
      const at = this.#bitmapsAt[index] + (block - first) * bytes;
      const bits = this.#arena.bytes.subarray(at, at + bytes);
      for (let sector = from; sector < to;) {
        const runTo = start + runEnd(bits, sector - start, to - start);
        if (testBit(bits, sector - start)) {
          this.#readHeld(layer, sector, { end: runTo, offsetBytes });
        }
        sector = runTo;
      }
    }
  }

  /** Reads what no layer above has of a run of sectors that a layer holds. */
  #readHeld(
    { disk, fileBytes, tail }: Layer,
    sector: number,
    { end, offsetBytes }: { end: number; offsetBytes: number },
  ): void {
    const last = end - this.sector;
    for (let at = sector - this.sector; at < last;) {
      const runTo = runEnd(this.covered, at, last);
      if (!testBit(this.covered, at)) {
        const address = this.address + at * VHD_SECTOR_SIZE;
        const lengthBytes = (runTo - at) * VHD_SECTOR_SIZE;
        const offset = offsetBytes + (this.sector + at) * VHD_SECTOR_SIZE;
        // After a crash a file may end within its last block, and a raw image within a sector.
        const wholeBytes = fileBytes - tail.length;
        const thereBytes = Math.max(0, Math.min(lengthBytes, wholeBytes - offset));
        if (thereBytes < lengthBytes) {
          this.#zero(address + thereBytes, lengthBytes - thereBytes);
          const ends = offset + thereBytes === wholeBytes;
          if (ends) this.#arena.bytes.set(tail, address + thereBytes - this.#arena.address);
        }
        if (thereBytes > 0) this.read(disk.file, offset, thereBytes, address);
        setBits(this.covered, at, runTo - at);
      }
      at = runTo;
    }
  }

  /** Calls back with the data of each run that was found, and its first sector on the disk. */
  eachData(call: (bytes: Uint8Array<ArrayBuffer>, sector: number) => void): void {
    const dataAt = this.address - this.#arena.address;
    this.eachRun((from, end) => {
      const start = dataAt + from * VHD_SECTOR_SIZE;
      const bytes = this.#arena.bytes.subarray(start, dataAt + end * VHD_SECTOR_SIZE);
      call(bytes, this.sector + from);
    });
  }

  /** Whether all that was found is zeros. */
  isZero(): boolean {
    let zero = true;
    this.eachRun((from, end) => zero &&= this.#isZeroRun(from, end));
    return zero;
  }

  /** Memory is zero when its start is, and it equals itself a little further on. */
  #isZeroRun(from: number, end: number): boolean {
    const address = this.address + from * VHD_SECTOR_SIZE;
    const at = address - this.#arena.address;
    for (let i = 0; i < PROBE_BYTES; i++) if (this.#arena.bytes[at + i] !== 0) return false;
    const lengthBytes = (end - from) * VHD_SECTOR_SIZE;
    return equalMemory(address, address + PROBE_BYTES, lengthBytes - PROBE_BYTES);
  }

  /** Makes the part of the buffer zero that nothing was found for. */
  zeroRest(): void {
    const last = this.end - this.sector;
    for (let at = 0; at < last;) {
      const end = this.runEnd(at);
      if (!testBit(this.covered, at)) {
        this.#zero(this.address + at * VHD_SECTOR_SIZE, (end - at) * VHD_SECTOR_SIZE);
      }
      at = end;
    }
  }

  /** Unmaps its memory. */
  release(): void {
    this.#arena.release();
  }
}
