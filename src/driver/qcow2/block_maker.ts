import { Arena } from "../../../ffi/memory.ts";
import { assert } from "../../../ffi/assert.ts";
import { Errno, errnoOf } from "../../../ffi/errno.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { highOfSector, lowOfSector } from "../../qcow2/format/entries.ts";
import { encodeGrowth, grownTable, type Growth, planGrowth } from "../../qcow2/format/growth.ts";
import { type ImageQueue, SECTOR_BYTES } from "../driver.ts";
import type { HeaderWriter } from "./header_writer.ts";
import type { ProtectedPlaces } from "./protected_places.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import type { Refcounts } from "./refcounts.ts";

/** Operations that it can have under way. */
export const BLOCK_MAKER_OPERATIONS = 1;
const PART_SECTORS = 128;
const ENTRIES_PER_SECTOR = SECTOR_BYTES / 8;

/** Where the end is told. */
export interface BlockMakerOwner {
  /** The blocks are there and durable, or, with an errno, are not. */
  blocksMade(errno: number): void;
  /** So many clusters from one on, the old refcount table, have lost their reference. */
  oldTable(cluster: number, count: number): void;
}

type Step = "write" | "sync" | "commit" | "sync again";

/**
 * Makes refcount blocks, and a longer refcount table when it has no more entries. Order on disk:
 *
 * 1. the blocks, and the new table;
 * 2. a sync;
 * 3. the entry of the table, or the header, which leads to the new table;
 * 4. a sync. Only then are clusters given out that these blocks count.
 *
 * It is done once for thousands of clusters, so it makes objects and lets others wait.
 */
export class BlockMaker implements IoOwner {
  readonly #file: Qcow2File;
  readonly #refcounts: Refcounts;
  readonly #header: HeaderWriter;
  readonly #places: ProtectedPlaces;
  readonly #queue: ImageQueue;
  readonly #owner: BlockMakerOwner;
  readonly #arena = new Arena(PART_SECTORS * SECTOR_BYTES);
  #growth: Growth | null = null;
  #table: DataView<ArrayBuffer> | null = null;
  #step: Step = "write";
  #sector = 0;

  constructor(
    { file, refcounts, header, places, queue, owner }: {
      file: Qcow2File;
      refcounts: Refcounts;
      header: HeaderWriter;
      places: ProtectedPlaces;
      queue: ImageQueue;
      owner: BlockMakerOwner;
    },
  ) {
    this.#file = file;
    this.#refcounts = refcounts;
    this.#header = header;
    this.#places = places;
    this.#queue = queue;
    this.#owner = owner;
  }

  /** Whether blocks are being made. */
  get isBusy(): boolean {
    return this.#growth !== null;
  }

  /**
   * Makes the refcount block for a cluster, which lies behind all that are in use. Nothing is done when
   * the block has been made since it was missed.
   */
  start(cluster: number): void {
    assert(this.#growth === null, "Refcount blocks are made while others are");
    if (this.#refcounts.blockSector(this.#refcounts.groupOf(cluster)) !== 0) return;
    const { geometry } = this.#file.image;
    const entries = this.#refcounts.table.byteLength / 8;
    const growth = planGrowth(cluster, geometry, entries);
    if (growth === null) return this.#owner.blocksMade(Errno.EFBIG);
    const clusters = growth.blocks + growth.tableClusters;
    const overlap = this.#places.overlap(
      growth.first * geometry.clusterSectors,
      clusters * geometry.clusterSectors,
    );
    if (overlap >= 0) return this.#owner.blocksMade(Errno.EIO);
    try {
      this.#file.take(growth.first + clusters - 1);
    } catch (error) {
      return this.#owner.blocksMade(errnoOf(error));
    }
    this.#growth = growth;
    this.#table = grownTable(growth, geometry, this.#refcounts.table);
    this.#step = "write";
    this.#sector = 0;
    this.#writePart(growth, this.#table);
  }

  #writePart(growth: Growth, table: DataView<ArrayBuffer>): void {
    const { geometry } = this.#file.image;
    const sectors = (growth.blocks + growth.tableClusters) * geometry.clusterSectors;
    const count = Math.min(PART_SECTORS, sectors - this.#sector);
    const into = this.#arena.bytes.subarray(0, count * SECTOR_BYTES);
    encodeGrowth(growth, geometry, { table, sector: this.#sector, into });
    const start = growth.first * geometry.clusterSectors + this.#sector;
    this.#sector += count;
    this.#queue.write(this.#file.disk.file, start, count, this.#arena.sector, this, 0);
  }

  ioDone(_token: number, _sectors: number, errno: number): void {
    const growth = this.#growth;
    const table = this.#table;
    assert(growth !== null && table !== null, "A refcount block is written that is not being made");
    if (errno !== 0) return this.#end(errno);
    const { clusterSectors } = this.#file;
    const sectors = (growth.blocks + growth.tableClusters) * clusterSectors;
    if (this.#step === "write" && this.#sector < sectors) return this.#writePart(growth, table);
    if (this.#step === "write") {
      this.#step = "sync";
      return this.#queue.sync(this.#file.disk.file, this, 0);
    }
    if (this.#step === "sync") {
      this.#step = "commit";
      return this.#commit(growth, table);
    }
    if (this.#step === "commit") {
      this.#step = "sync again";
      return this.#queue.sync(this.#file.disk.file, this, 0);
    }
    this.#finish(growth, table);
  }

  #commit(growth: Growth, table: DataView<ArrayBuffer>): void {
    const { clusterSectors } = this.#file;
    if (growth.tableClusters > 0) {
      const sector = (growth.first + growth.blocks) * clusterSectors;
      const [high, low] = [highOfSector(sector), lowOfSector(sector)];
      return this.#header.setRefcountTable(
        high,
        low,
        growth.tableClusters,
        (errno) => this.ioDone(0, 0, errno),
      );
    }
    const inTable = Math.floor(growth.firstGroup / ENTRIES_PER_SECTOR);
    const from = new Uint8Array(table.buffer, inTable * SECTOR_BYTES, SECTOR_BYTES);
    this.#arena.bytes.set(from);
    const sector = this.#tableOffset / SECTOR_BYTES + inTable;
    this.#queue.write(this.#file.disk.file, sector, 1, this.#arena.sector, this, 0);
  }

  #movedTo = 0;

  /** Where the refcount table is. */
  get #tableOffset(): number {
    return this.#movedTo > 0 ? this.#movedTo : Number(this.#file.image.header.refcountTableOffset);
  }

  #finish(growth: Growth, table: DataView<ArrayBuffer>): void {
    const { clusterBytes } = this.#file.image.geometry;
    const oldCluster = this.#tableOffset / clusterBytes;
    const oldCount = Math.ceil(this.#refcounts.table.byteLength / clusterBytes);
    this.#refcounts.table = table;
    this.#refcounts.skipTo(growth.first);
    if (growth.tableClusters > 0) {
      this.#movedTo = (growth.first + growth.blocks) * clusterBytes;
      this.#places.setRefcountTable(this.#movedTo, growth.tableClusters * clusterBytes);
      this.#owner.oldTable(oldCluster, oldCount);
    }
    this.#end(0);
  }

  #end(errno: number): void {
    this.#growth = null;
    this.#table = null;
    this.#owner.blocksMade(errno);
  }

  /** Unmaps its memory; it must not be busy. */
  release(): void {
    this.#arena.release();
  }
}
