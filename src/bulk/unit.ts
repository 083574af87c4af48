import { assert } from "../../ffi/assert.ts";
import { errnoOf } from "../../ffi/errno.ts";
import { Arena, equalMemory, memorySectorOf, zeroMemory } from "../../ffi/memory.ts";
import type { DiskQueue, IoOwner } from "../queue/disk_queue.ts";
import { runEnd, setBits, testBit } from "../vhd/format/bitmap.ts";
import { bitmapOffset, dataOffset, isAllocated } from "../vhd/image/block.ts";
import type { VhdImage } from "../vhd/image/image.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";
import type { HiddenStretch, Layer } from "./layers.ts";

/** The number of bytes that are checked one by one before the rest is compared. */
const PROBE_BYTES = 64;

/** The size and the parts of a unit. */
export interface UnitShape {
  readonly layers: readonly Layer[];
  /** Sectors of a unit: one block of the target. */
  readonly sectors: number;
  /** Bytes of a bitmap of the target; 0 for a flat target. */
  readonly bitmapBytes: number;
  /** Sectors that are zeros when no layer holds them. */
  readonly hidden?: HiddenStretch;
}

/**
 * One part of the disk while it is moved: its buffer, the sectors that were found, and its
 * operations in flight. A unit is as long as a block of the target, and is used for many parts in
 * turn.
 *
 * In memory, the target's bitmap is directly in front of the data, as in the file.
 */
export class Unit implements IoOwner {
  /** First sector and first sector behind the last, on the virtual disk. */
  sector = 0;
  end = 0;
  /** The sectors that were found in a layer, one bit each, from the unit's first sector on. */
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
  /** Offset of each layer's bitmaps for this unit in the arena. */
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

  /** Assigns another part of the disk to the unit. */
  assign(sector: number, end: number): void {
    this.sector = sector;
    this.end = end;
    this.covered.fill(0);
  }

  /**
   * Runs operations. `start` starts them through the methods below. `then` is called with the first
   * error once all of them have ended.
   */
  phase(start: () => void, then: (errno: number) => void): void {
    this.#pending = 1;
    this.#errno = 0;
    this.#next = then;
    let errno = 0;
    try {
      start();
    } catch (error) {
      // The operations that were started must end before the memory is used again.
      errno = errnoOf(error);
    }
    this.ioDone(0, 0, errno);
  }

  ioDone(_token: number, _sectors: number, errno: number): void {
    if (errno !== 0 && this.#errno === 0) this.#errno = errno;
    if (--this.#pending === 0) this.#next(this.#errno);
  }

  /** Asserts that a range of memory belongs to this unit and has whole sectors. */
  #requireInside(address: number, lengthBytes: number): void {
    const at = address - this.#arena.address;
    const inside = at >= 0 && lengthBytes >= 0 && at + lengthBytes <= this.#arena.sizeBytes;
    assert(inside, "A unit reaches beyond its own memory");
    assert(
      at % VHD_SECTOR_SIZE === 0 && lengthBytes % VHD_SECTOR_SIZE === 0,
      "A unit moves something other than whole sectors",
    );
  }

  /** Zeros a range of this unit's memory. */
  #zero(address: number, lengthBytes: number): void {
    this.#requireInside(address, lengthBytes);
    zeroMemory(address, lengthBytes);
  }

  /** Reads into this unit's memory, as part of a phase. */
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

  /** Writes from this unit's memory, as part of a phase. */
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

  /** Starts to read the layers' bitmaps of this unit's sectors. */
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

  /** Zeros the sectors that no layer holds and that hide the layers below. */
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

  /**
   * The end of the run of found, or missing, sectors at `from`, counted from the unit's first
   * sector.
   */
  runEnd(from: number): number {
    return runEnd(this.covered, from, this.end - this.sector);
  }

  /** Calls back for each run of found sectors, counted from the unit's first sector. */
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
      // The file offset of the disk's sector 0, as if all sectors were stored like this block's.
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

  /**
   * Reads a run of sectors from a layer that holds them, except sectors that a layer above holds.
   */
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
        // After a crash a file may end within its last block. A raw image may end within a sector.
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

  /**
   * Calls back with the data of each run of found sectors, and the run's first sector on the disk.
   */
  eachData(call: (bytes: Uint8Array<ArrayBuffer>, sector: number) => void): void {
    const dataAt = this.address - this.#arena.address;
    this.eachRun((from, end) => {
      const start = dataAt + from * VHD_SECTOR_SIZE;
      const bytes = this.#arena.bytes.subarray(start, dataAt + end * VHD_SECTOR_SIZE);
      call(bytes, this.sector + from);
    });
  }

  /** Whether all found sectors are zero. */
  isZero(): boolean {
    let zero = true;
    this.eachRun((from, end) => zero &&= this.#isZeroRun(from, end));
    return zero;
  }

  /**
   * Memory is zero when its first bytes are zero and it equals itself at an offset of that many
   * bytes.
   */
  #isZeroRun(from: number, end: number): boolean {
    const address = this.address + from * VHD_SECTOR_SIZE;
    const at = address - this.#arena.address;
    for (let i = 0; i < PROBE_BYTES; i++) if (this.#arena.bytes[at + i] !== 0) return false;
    const lengthBytes = (end - from) * VHD_SECTOR_SIZE;
    return equalMemory(address, address + PROBE_BYTES, lengthBytes - PROBE_BYTES);
  }

  /** Zeros the part of the buffer for which no sector was found. */
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

  release(): void {
    this.#arena.release();
  }
}
