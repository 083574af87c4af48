import { Arena } from "../../ffi/memory.ts";
import type { DiskFile } from "../queue/disk_files.ts";
import type { DiskQueue, IoOwner } from "../queue/disk_queue.ts";
import type { VhdImage } from "../vhd/image/image.ts";
import { batSectorOf, putBatSector } from "../vhd/format/bat.ts";
import { noteFull } from "../vhd/image/batmap_writer.ts";
import { PublishOrder } from "../vhd/format/publish_order.ts";
import { VHD_SECTOR_SIZE } from "../vhd/format/units.ts";

/** The number of blocks that are collected before they are written to the BAT. */
const BLOCKS_AT_ONCE = 64;
const MOST_SECTORS = 64;

interface NewBlock {
  readonly block: number;
  readonly sector: number;
  readonly stamp: number;
  readonly isFull: boolean;
}

/**
 * Makes the BAT point at new blocks, many at once. A sync makes their data and bitmaps durable;
 * then the sectors of the BAT that hold their entries are written. After that the batmap has the bits
 * of those that are full.
 */
export class BatWriter implements IoOwner {
  readonly #image: VhdImage;
  readonly #disk: DiskFile;
  readonly #queue: DiskQueue;
  readonly #arena = new Arena(MOST_SECTORS * VHD_SECTOR_SIZE);
  /** Blocks whose data has been written. */
  readonly #waiting: NewBlock[] = [];
  /** Blocks whose entries are being written. */
  #published: NewBlock[] = [];
  readonly #order = new PublishOrder();
  #pending = 0;
  #errno = 0;
  #busy = false;
  #finished: ((errno: number) => void) | null = null;
  readonly #syncOwner: IoOwner = { ioDone: (_token, _sectors, errno) => this.#synced(errno) };
  /** The number of waiting blocks that the sync in flight covers. */
  #syncing = 0;

  constructor(image: VhdImage, { disk, queue }: { disk: DiskFile; queue: DiskQueue }) {
    this.#image = image;
    this.#disk = disk;
    this.#queue = queue;
  }

  /** Adds a block whose data and bitmap, full or not, have been written at this sector. */
  add(block: number, sector: number, isFull: boolean): void {
    noteFull(this.#image, block, false);
    this.#waiting.push({ block, sector, stamp: this.#order.written(), isFull });
    if (this.#waiting.length >= BLOCKS_AT_ONCE && this.#errno === 0) this.#start();
  }

  /** Writes the remaining entries. Calls back when the BAT has all blocks. */
  finish(done: (errno: number) => void): void {
    this.#finished = done;
    if (!this.#busy) this.#goOn();
  }

  #start(): void {
    if (this.#busy) return;
    this.#busy = true;
    this.#syncing = this.#waiting.length;
    this.#order.syncStarts();
    this.#queue.sync(this.#disk.file, this.#syncOwner, 0);
  }

  #goOn(): void {
    if (this.#errno === 0 && this.#waiting.length > 0) return this.#start();
    const finished = this.#finished;
    this.#finished = null;
    finished?.(this.#errno);
  }

  #synced(errno: number): void {
    this.#order.syncEnded(errno === 0);
    if (errno !== 0) return this.#ended(errno);
    const sectors: number[] = [];
    let taken = 0;
    for (; taken < this.#syncing; taken++) {
      const { block, sector, stamp } = this.#waiting[taken];
      this.#order.requireDurable(stamp);
      const batSector = batSectorOf(block);
      if (!sectors.includes(batSector)) {
        if (sectors.length === MOST_SECTORS) break;
        sectors.push(batSector);
      }
      this.#image.bat[block] = sector;
    }
    this.#published = this.#waiting.splice(0, taken);
    this.#pending = sectors.length;
    for (const [index, batSector] of sectors.entries()) this.#writeSector(index, batSector);
  }

  #writeSector(index: number, batSector: number): void {
    const { batOffsetBytes } = this.#image;
    const at = index * VHD_SECTOR_SIZE;
    putBatSector(this.#image, batSector, this.#arena.view, at);
    this.#queue.write(
      this.#disk.file,
      batOffsetBytes / VHD_SECTOR_SIZE + batSector,
      1,
      this.#arena.sector + at / VHD_SECTOR_SIZE,
      this,
      0,
    );
  }

  ioDone(_token: number, _sectors: number, errno: number): void {
    if (errno !== 0 && this.#errno === 0) this.#errno = errno;
    if (--this.#pending === 0) this.#ended(this.#errno);
  }

  #ended(errno: number): void {
    this.#errno = errno;
    for (const { block, isFull } of this.#published) {
      if (errno === 0) noteFull(this.#image, block, isFull);
    }
    this.#published = [];
    this.#busy = false;
    if (this.#finished !== null) this.#goOn();
    else if (this.#waiting.length >= BLOCKS_AT_ONCE && errno === 0) this.#start();
  }

  /** Unmaps its memory. No operation may be in flight. */
  release(): void {
    this.#arena.release();
  }
}
