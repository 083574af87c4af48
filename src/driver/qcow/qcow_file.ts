import { assert } from "../../../ffi/assert.ts";
import { Arena } from "../../../ffi/memory.ts";
import type { QcowImage } from "../../qcow/image.ts";
import { putClusterSector, sectorsPerTable, tableBytes } from "../../qcow/format.ts";
import type { DiskFile } from "../../queue/disk_files.ts";
import { SECTOR_BYTES } from "../driver.ts";

/** The file is lengthened in such steps. What is not used is given back when the image closes. */
const GROWTH_SECTORS = 2048;

/** Where things are in the file of an open image, and how it grows. */
export class QcowFile {
  readonly image: QcowImage;
  readonly disk: DiskFile;
  readonly clusterSectors: number;
  readonly tableSectors: number;
  /** Sectors of the disk that one table is for. */
  readonly sectorsPerTable: number;
  /** Whole sectors of the file. */
  endSector: number;
  /** The end of the file as it was opened for writing: clusters of this process lie behind it. */
  #openedEnd = Infinity;
  /** The part of the next sector that is in the file, then zeros; null when nothing of it is there. */
  readonly tail: Arena | null = null;
  /** The place of the next cluster or table. */
  #next = 0;
  /** By table: whether the L1 table on disk may name one that the one in memory does not. */
  readonly #uncertain: Uint8Array;
  /** The sectors of the file that the L1 table lies in: the first, and how many. */
  readonly #l1First: number;
  readonly #l1Sectors: number;
  /** The first and the last of them, as they were when the image was opened. */
  readonly #edges: Uint8Array<ArrayBuffer>;

  constructor(image: QcowImage, disk: DiskFile, { readOnly }: { readOnly: boolean }) {
    const { header, l1 } = image;
    this.image = image;
    this.disk = disk;
    this.clusterSectors = 2 ** header.clusterBits / SECTOR_BYTES;
    this.tableSectors = tableBytes(header) / SECTOR_BYTES;
    this.sectorsPerTable = sectorsPerTable(header);
    const end = header.l1OffsetBytes + 8 * l1.length;
    this.#uncertain = new Uint8Array(l1.length);
    this.#l1First = Math.floor(header.l1OffsetBytes / SECTOR_BYTES);
    this.#l1Sectors = Math.ceil(end / SECTOR_BYTES) - this.#l1First;
    this.#edges = new Uint8Array(2 * SECTOR_BYTES);
    image.file.readAt(this.#edges.subarray(0, SECTOR_BYTES), this.#l1First * SECTOR_BYTES);
    const last = this.#l1First + this.#l1Sectors - 1;
    image.file.readAt(this.#edges.subarray(SECTOR_BYTES), last * SECTOR_BYTES);
    const sizeBytes = disk.sizeBytes();
    this.endSector = Math.floor(sizeBytes / SECTOR_BYTES);
    if (!readOnly) this.#findNext(sizeBytes);
    else if (sizeBytes % SECTOR_BYTES !== 0) this.tail = this.#readTail(sizeBytes);
  }

  #readTail(sizeBytes: number): Arena {
    const tail = new Arena(SECTOR_BYTES);
    const start = this.endSector * SECTOR_BYTES;
    this.image.file.readAt(tail.bytes.subarray(0, sizeBytes - start), start);
    return tail;
  }

  #findNext(sizeBytes: number): void {
    const perCluster = this.clusterSectors * SECTOR_BYTES;
    this.#next = Math.ceil(sizeBytes / perCluster) * this.clusterSectors;
    // What is missing of the last cluster reads as zeros.
    if (sizeBytes < this.#next * SECTOR_BYTES) this.disk.truncate(this.#next * SECTOR_BYTES);
    this.endSector = this.#next;
    this.#openedEnd = this.#next;
  }

  /**
   * Whether data of the disk may lie in these sectors: they begin in the file, and do not meet the
   * header and the L1 table.
   */
  isData(sector: number, count: number): boolean {
    const behind = this.tail === null ? this.endSector : this.endSector + 1;
    if (sector < 1 || sector >= behind) return false;
    return sector >= this.#l1First + this.#l1Sectors || sector + count <= this.#l1First;
  }

  /**
   * Whether the clusters of a table, from this place on, go beyond what was in the file when it was opened:
   * new clusters lie there. Clusters that begin at a multiple of their size cannot.
   */
  goesBeyond(place: number, endSector: number): boolean {
    return endSector > this.#openedEnd && place % this.clusterSectors !== 0;
  }

  /** Sectors of the file when it was opened for writing, whole clusters. */
  get openedEnd(): number {
    return this.#openedEnd;
  }

  /**
   * Takes so many sectors at the end of the file, whole clusters, and makes the file as long as that
   * takes. They read as zeros.
   *
   * @throws {SystemError} ENOSPC, EFBIG: nothing has changed then.
   */
  grow(sectors: number): number {
    assert(sectors % this.clusterSectors === 0, "A QCOW grows by a part of a cluster");
    const sector = this.#next;
    const end = sector + sectors;
    if (end > this.endSector) {
      const length = end + GROWTH_SECTORS;
      this.disk.truncate(length * SECTOR_BYTES);
      this.endSector = length;
    }
    this.#next = end;
    return sector;
  }

  /** The sector of the file that has the L1 entry of a table. */
  l1SectorOf(table: number): number {
    return Math.floor((this.image.header.l1OffsetBytes + 8 * table) / SECTOR_BYTES);
  }

  /** Whether the file may have a table that is not in memory: a write of its L1 entry failed. */
  isUncertain(table: number): boolean {
    return this.#uncertain[table] !== 0;
  }

  /** The L1 table's sector with a new table could not be written; the disk may have done it. */
  noteUncertain(table: number): void {
    this.#uncertain[table] = 1;
  }

  /** A sector of the L1 table on disk is as it is in memory, but for the tables that it names now. */
  noteL1Written(sector: number): void {
    const first = (sector * SECTOR_BYTES - this.image.header.l1OffsetBytes) / 8;
    this.#uncertain.fill(0, Math.max(0, first), Math.max(0, first + SECTOR_BYTES / 8));
  }

  /** Puts a sector of the L1 table, and what else it has, into memory. */
  putL1Sector(sector: number, into: Arena, atBytes: number): void {
    const { header, l1 } = this.image;
    const isLast = sector !== this.#l1First;
    const edge = isLast ? SECTOR_BYTES : 0;
    for (let i = 0; i < SECTOR_BYTES; i += 8) {
      const table = (sector * SECTOR_BYTES + i - header.l1OffsetBytes) / 8;
      if (table >= 0 && table < l1.length) putClusterSector(into.view, atBytes + i, l1[table]);
      else for (let k = i; k < i + 8; k++) into.bytes[atBytes + k] = this.#edges[edge + k];
    }
  }

  /** Gives the room back that was not taken, syncs the file, and closes it. Throws `SystemError`. */
  finish(): void {
    try {
      if (this.endSector > this.#next) this.disk.truncate(this.#next * SECTOR_BYTES);
      this.image.file.sync();
    } finally {
      this.close();
    }
  }

  /** Closes the files without writing anything. */
  close(): void {
    this.tail?.release();
    try {
      this.image.close();
    } finally {
      // A close that fails has closed. The lock is with the other descriptor.
      this.disk.close();
    }
  }
}
