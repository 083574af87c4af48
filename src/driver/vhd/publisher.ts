import { assert } from "../../../ffi/assert.ts";
import { Arena } from "../../../ffi/memory.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { BAT_ENTRIES_PER_SECTOR, batSectorOf, putBatSector } from "../../vhd/format/bat.ts";
import { encodeFooter } from "../../vhd/format/footer.ts";
import { PublishOrder } from "../../vhd/format/publish_order.ts";
import { type ImageQueue, SECTOR_BYTES } from "../driver.ts";
import { type BitmapCache, BlockFlag } from "./bitmap_cache.ts";
import type { VhdFile } from "./vhd_file.ts";

const MOST_BAT_SECTORS = 8;
const MOST_BLOCKS = 64;
const FOOTER_TOKEN = -1;
/** Operations that a publisher can have under way: BAT sectors, the footer, the sync. */
export const PUBLISHER_OPERATIONS = MOST_BAT_SECTORS + 1;

/** Where a publisher tells the ends. */
export interface PublisherOwner {
  /** The BAT on disk points at the block of this entry now, or, with an errno, does not. */
  published(entry: number, errno: number): void;
  /** Publishing came to its end; the next can start. */
  publisherIdle(): void;
}

/**
 * Makes the BAT point at new blocks, many at once: their data and bitmaps are synced, then the BAT's
 * sectors that name them are written. So the BAT never points at a block whose bitmap is not there,
 * whenever the power fails. The footer at the file's new end is written along with them.
 */
export class Publisher {
  readonly #file: VhdFile;
  readonly #cache: BitmapCache;
  readonly #queue: ImageQueue;
  readonly #owner: PublisherOwner;
  readonly #arena = new Arena((MOST_BAT_SECTORS + 1) * SECTOR_BYTES);
  /** Entries of the cache whose blocks are being published. */
  readonly #batch = new Int32Array(MOST_BLOCKS);
  /** Their stamps: the sync that each needs before the BAT may name it. */
  readonly #stamps = new Int32Array(MOST_BLOCKS);
  readonly #order = new PublishOrder();
  #batchSize = 0;
  /** BAT sectors being written, by their number in the BAT. */
  readonly #batSectors = new Int32Array(MOST_BAT_SECTORS);
  #writesLeft = 0;
  #busy = false;
  /** Sector of the footer that is being written, or -1. */
  #footerSector = -1;
  readonly #syncOwner: IoOwner = { ioDone: (_t, _l, errno) => this.#synced(errno) };
  readonly #writeOwner: IoOwner = { ioDone: (token, _l, errno) => this.#written(token, errno) };

  constructor(
    file: VhdFile,
    { cache, queue, owner }: { cache: BitmapCache; queue: ImageQueue; owner: PublisherOwner },
  ) {
    this.#file = file;
    this.#cache = cache;
    this.#queue = queue;
    this.#owner = owner;
  }

  /** Whether blocks are being published; others wait. */
  get busy(): boolean {
    return this.#busy;
  }

  /** Whether a footer is being written between two sectors of the file, the second one excluded. */
  footerInTheWay(startSector: number, endSector: number): boolean {
    return this.#footerSector >= startSector && this.#footerSector < endSector;
  }

  /**
   * Adds an entry, whose data and bitmap have been written, to the next publication; false when that
   * is full.
   */
  add(entry: number): boolean {
    assert(!this.#busy, "A block is added to a publication that has started");
    assert(this.#cache.has(entry, BlockFlag.Unpublished), "A block is published twice");
    if (this.#batchSize === MOST_BLOCKS || !this.#fits(entry)) return false;
    this.#cache.flags[entry] |= BlockFlag.Publishing;
    this.#stamps[this.#batchSize] = this.#order.written();
    this.#batch[this.#batchSize++] = entry;
    return true;
  }

  #batSectorOf(entry: number): number {
    return batSectorOf(this.#cache.block[entry]);
  }

  #fits(entry: number): boolean {
    const sector = this.#batSectorOf(entry);
    let different = 0;
    for (let i = 0; i < this.#batchSize; i++) {
      const other = this.#batSectorOf(this.#batch[i]);
      if (other === sector) return true;
      if (i === 0 || other !== this.#batSectorOf(this.#batch[i - 1])) different++;
    }
    return different < MOST_BAT_SECTORS;
  }

  /** Starts to publish what was added. */
  start(): void {
    if (this.#batchSize === 0) return;
    assert(!this.#busy, "A publication starts while another is under way");
    this.#busy = true;
    this.#order.syncStarts();
    this.#queue.sync(this.#file.disk.file, this.#syncOwner, 0);
  }

  #synced(errno: number): void {
    this.#order.syncEnded(errno === 0);
    if (errno !== 0) {
      for (let i = 0; i < this.#batchSize; i++) this.#owner.published(this.#batch[i], errno);
      return this.#finish();
    }
    let sectors = 0;
    for (let i = 0; i < this.#batchSize; i++) {
      const sector = this.#batSectorOf(this.#batch[i]);
      let at = 0;
      while (at < sectors && this.#batSectors[at] !== sector) at++;
      if (at === sectors) this.#fillBatSector(sectors++, sector);
      this.#order.requireDurable(this.#stamps[i]);
      this.#putEntry(at, this.#batch[i]);
    }
    this.#writesLeft = sectors + (this.#file.grown ? 1 : 0);
    for (let at = 0; at < sectors; at++) {
      const first = this.#file.image.batOffsetBytes / SECTOR_BYTES;
      this.#write(first + this.#batSectors[at], at, at);
    }
    if (this.#file.grown) this.#writeFooter();
  }

  #fillBatSector(at: number, sector: number): void {
    this.#batSectors[at] = sector;
    putBatSector(this.#file.image, sector, this.#arena.view, at * SECTOR_BYTES);
  }

  #putEntry(at: number, entry: number): void {
    const index = this.#cache.block[entry] % BAT_ENTRIES_PER_SECTOR;
    this.#arena.view.setUint32(
      at * SECTOR_BYTES + 4 * index,
      this.#cache.location[entry],
      false,
    );
  }

  #writeFooter(): void {
    this.#footerSector = this.#file.footerOffsetBytes / SECTOR_BYTES;
    this.#arena.bytes.set(encodeFooter(this.#file.image.footer), MOST_BAT_SECTORS * SECTOR_BYTES);
    this.#file.noteFooter();
    this.#write(this.#footerSector, MOST_BAT_SECTORS, FOOTER_TOKEN);
  }

  /** Writes one sector of the arena. */
  #write(sector: number, arenaSector: number, token: number): void {
    const memorySector = this.#arena.sector + arenaSector;
    const { file } = this.#file.disk;
    this.#queue.write(file, sector, 1, memorySector, this.#writeOwner, token);
  }

  #written(token: number, errno: number): void {
    if (token === FOOTER_TOKEN) {
      // Without it the backup serves; the next publication, or closing, tries again.
      if (errno !== 0) this.#file.noteFooterLost();
      this.#footerSector = -1;
    } else {
      const sector = this.#batSectors[token];
      if (errno === 0) this.#file.noteBatWritten(sector);
      for (let i = 0; i < this.#batchSize; i++) {
        const entry = this.#batch[i];
        if (this.#batSectorOf(entry) !== sector) continue;
        const block = this.#cache.block[entry];
        if (errno === 0) this.#file.bat[block] = this.#cache.location[entry];
        else this.#file.noteUncertain(block);
        this.#owner.published(entry, errno);
      }
    }
    assert(this.#writesLeft > 0, "More writes of a publication ended than were started");
    if (--this.#writesLeft === 0) this.#finish();
  }

  #finish(): void {
    this.#batchSize = 0;
    this.#busy = false;
    this.#owner.publisherIdle();
  }

  /** Unmaps its memory; it must not be busy. */
  release(): void {
    this.#arena.release();
  }
}
