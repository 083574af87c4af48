import { Errno } from "../../../ffi/errno.ts";
import { Arena } from "../../../ffi/memory.ts";
import { putClusterSector } from "../../qcow/format.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { type ImageQueue, SECTOR_BYTES } from "../driver.ts";
import { type Batch, MOST_SECTORS } from "./batch.ts";
import type { QcowFile } from "./qcow_file.ts";
import type { TableCache } from "../table_cache.ts";

const ENTRIES_PER_SECTOR = SECTOR_BYTES / 8;
/** Tables that one batch adds. */
const MOST_TABLES = 8;
const NONE = -1;
/** Operations that a publisher can have under way: sectors of tables, new tables, the sync. */
export const TABLE_OPERATIONS = MOST_SECTORS + MOST_TABLES + 1;

/**
 * Makes the tables name the clusters of a batch, whose data has been written: new tables are written,
 * all is synced, and then the sectors of tables are written that name clusters and new tables.
 */
export class TablePublisher {
  readonly #file: QcowFile;
  readonly #cache: TableCache;
  readonly #queue: ImageQueue;
  readonly #batch: Batch;
  readonly #done: () => void;
  /** Sectors of tables as they are to be. */
  readonly #arena = new Arena(MOST_SECTORS * SECTOR_BYTES);
  /** Of each: its sector of the file, and the table that it belongs to; -1: the L1 table. */
  readonly #sectors = new Float64Array(MOST_SECTORS);
  #used = 0;
  /** Tables that are added, where they lie, and whether they have been written. */
  readonly #tables = new Int32Array(MOST_TABLES);
  readonly #places = new Float64Array(MOST_TABLES);
  readonly #errnos = new Int32Array(MOST_TABLES);
  #newTables = 0;
  /** What was used before the last reservation. */
  #usedBefore = 0;
  #tablesBefore = 0;
  #left = 0;
  readonly #tableOwner: IoOwner = { ioDone: (at, _s, errno) => this.#tableWritten(at, errno) };
  readonly #syncOwner: IoOwner = { ioDone: (_t, _s, errno) => this.#synced(errno) };
  readonly #sectorOwner: IoOwner = { ioDone: (at, _s, errno) => this.#sectorWritten(at, errno) };

  constructor(
    { file, cache, queue, batch, done }: {
      file: QcowFile;
      cache: TableCache;
      queue: ImageQueue;
      batch: Batch;
      /** The batch has come to its end. */
      done: () => void;
    },
  ) {
    this.#file = file;
    this.#cache = cache;
    this.#queue = queue;
    this.#batch = batch;
    this.#done = done;
  }

  /** Makes room for the sectors that name these clusters; false when there is none. */
  reserve(table: number, cluster: number, clusters: number): boolean {
    this.#usedBefore = this.#used;
    this.#tablesBefore = this.#newTables;
    if (this.#file.image.l1[table] === 0) {
      if (this.#tableAt(table) >= 0) return true;
      if (this.#newTables === MOST_TABLES) return false;
      this.#tables[this.#newTables++] = table;
      if (this.#note(this.#file.l1SectorOf(table))) return true;
    } else {
      const last = this.#sectorOf(table, cluster + clusters - 1);
      let sector = this.#sectorOf(table, cluster);
      while (sector <= last && this.#note(sector)) sector++;
      if (sector > last) return true;
    }
    this.giveBack();
    return false;
  }

  /** Takes the last reservation back. */
  giveBack(): void {
    this.#used = this.#usedBefore;
    this.#newTables = this.#tablesBefore;
  }

  /** The sector of the file that has the entry of a cluster in a table of the file. */
  #sectorOf(table: number, cluster: number): number {
    return this.#file.image.l1[table] +
      Math.floor(this.#indexOf(table, cluster) / ENTRIES_PER_SECTOR);
  }

  #indexOf(table: number, cluster: number): number {
    return cluster - table * (this.#file.sectorsPerTable / this.#file.clusterSectors);
  }

  #note(sector: number): boolean {
    for (let at = 0; at < this.#used; at++) if (this.#sectors[at] === sector) return true;
    if (this.#used === MOST_SECTORS) return false;
    this.#sectors[this.#used++] = sector;
    return true;
  }

  /** Which of the new tables this is; -1: it is none. */
  #tableAt(table: number): number {
    for (let at = 0; at < this.#newTables; at++) if (this.#tables[at] === table) return at;
    return NONE;
  }

  /** Starts to publish the batch, whose data has been written. */
  start(): void {
    // One more than the tables, so that the end is not found before all have started.
    this.#left = this.#newTables + 1;
    for (let at = 0; at < this.#newTables; at++) this.#writeTable(at);
    this.#tableWritten(NONE, 0);
  }

  #writeTable(at: number): void {
    const { tableSectors, clusterSectors, disk } = this.#file;
    const table = this.#tables[at];
    const entry = this.#cache.find(table);
    this.#errnos[at] = 0;
    this.#putEntries(table, entry);
    const clusters = Math.ceil(tableSectors / clusterSectors);
    try {
      this.#places[at] = this.#file.grow(clusters * clusterSectors);
    } catch {
      // The file system is full: the requests are tried again.
      return this.#tableWritten(at, Errno.ENOSPC);
    }
    const from = this.#cache.memoryOf(entry);
    this.#queue.write(disk.file, this.#places[at], tableSectors, from, this.#tableOwner, at);
  }

  /** Puts the clusters of the batch into a table of the cache. */
  #putEntries(table: number, entry: number): void {
    const batch = this.#batch;
    for (let run = 0; run < batch.size; run++) {
      if (batch.table[run] !== table || batch.errno[run] !== 0) continue;
      for (let i = 0; i < batch.clusters[run]; i++) {
        const index = this.#indexOf(table, batch.cluster[run] + i);
        const place = batch.place[run] + i * this.#file.clusterSectors;
        putClusterSector(this.#cache.view, this.#cache.at(entry, index), place);
      }
    }
  }

  #tableWritten(at: number, errno: number): void {
    if (at >= 0 && errno !== 0) this.#errnos[at] = errno;
    if (--this.#left === 0) this.#queue.sync(this.#file.disk.file, this.#syncOwner, 0);
  }

  #synced(errno: number): void {
    for (let at = 0; at < this.#newTables; at++) {
      const failed = errno !== 0 ? errno : this.#errnos[at];
      if (failed !== 0) this.#failTable(at, failed);
    }
    if (errno !== 0) {
      for (let run = 0; run < this.#batch.size; run++) this.#fail(run, errno);
      return this.#finish();
    }
    this.#left = this.#used + 1;
    for (let at = 0; at < this.#used; at++) this.#writeSector(at);
    this.#sectorWritten(NONE, 0);
  }

  #fail(run: number, errno: number): void {
    if (this.#batch.errno[run] === 0) this.#batch.errno[run] = errno;
  }

  #failTable(at: number, errno: number): void {
    const table = this.#tables[at];
    for (let run = 0; run < this.#batch.size; run++) {
      if (this.#batch.table[run] === table) this.#fail(run, errno);
    }
    this.#errnos[at] = errno;
  }

  #writeSector(at: number): void {
    const { l1 } = this.#file.image;
    const sector = this.#sectors[at];
    const run = this.#runIn(sector);
    if (run === NONE) this.#putL1(at);
    else {
      const table = this.#batch.table[run];
      const inTable = sector - l1[table];
      this.#cache.copySector(this.#batch.entry[run], inTable, this.#arena, at * SECTOR_BYTES);
      this.#putNew(sector, inTable * ENTRIES_PER_SECTOR, at * SECTOR_BYTES);
    }
    const from = this.#arena.sector + at;
    this.#queue.write(this.#file.disk.file, sector, 1, from, this.#sectorOwner, at);
  }

  /** A run with an entry in this sector of an L2 table; -1: it is one of the L1 table. */
  #runIn(sector: number): number {
    const { tableSectors, image: { l1 } } = this.#file;
    for (let run = 0; run < this.#batch.size; run++) {
      const first = l1[this.#batch.table[run]];
      if (first !== 0 && sector >= first && sector < first + tableSectors) return run;
    }
    return NONE;
  }

  #putL1(at: number): void {
    const { l1 } = this.#file.image;
    // The table in memory gets its places when they are on disk.
    for (let i = 0; i < this.#newTables; i++) {
      if (this.#errnos[i] === 0) l1[this.#tables[i]] = this.#places[i];
    }
    this.#file.putL1Sector(this.#sectors[at], this.#arena, at * SECTOR_BYTES);
    for (let i = 0; i < this.#newTables; i++) {
      if (this.#errnos[i] === 0) l1[this.#tables[i]] = 0;
    }
  }

  /** Puts the new entries of a sector of an L2 table, whose first is `firstIndex`, into memory. */
  #putNew(sector: number, firstIndex: number, toBytes: number): void {
    const batch = this.#batch;
    const { clusterSectors } = this.#file;
    for (let run = 0; run < batch.size; run++) {
      const table = batch.table[run];
      if (batch.errno[run] !== 0 || this.#file.image.l1[table] === 0) continue;
      for (let i = 0; i < batch.clusters[run]; i++) {
        if (this.#sectorOf(table, batch.cluster[run] + i) !== sector) continue;
        const at = toBytes + 8 * (this.#indexOf(table, batch.cluster[run] + i) - firstIndex);
        putClusterSector(this.#arena.view, at, batch.place[run] + i * clusterSectors);
      }
    }
  }

  #sectorWritten(at: number, errno: number): void {
    if (at >= 0 && errno !== 0) this.#failSector(this.#sectors[at], errno);
    else if (at >= 0) this.#noteWritten(this.#sectors[at]);
    if (--this.#left === 0) this.#apply();
  }

  /** The file has what memory has in a sector, beside the clusters and tables of the batch. */
  #noteWritten(sector: number): void {
    const run = this.#runIn(sector);
    if (run === NONE) return this.#file.noteL1Written(sector);
    const { l1 } = this.#file.image;
    this.#cache.setUncertain(this.#batch.entry[run], sector - l1[this.#batch.table[run]], false);
  }

  #failSector(sector: number, errno: number): void {
    const batch = this.#batch;
    if (this.#runIn(sector) === NONE) {
      for (let at = 0; at < this.#newTables; at++) {
        if (this.#file.l1SectorOf(this.#tables[at]) !== sector) continue;
        this.#failTable(at, errno);
        this.#file.noteUncertain(this.#tables[at]);
      }
      return;
    }
    for (let run = 0; run < batch.size; run++) {
      const table = batch.table[run];
      if (this.#file.image.l1[table] === 0) continue;
      const first = this.#sectorOf(table, batch.cluster[run]);
      const last = this.#sectorOf(table, batch.cluster[run] + batch.clusters[run] - 1);
      if (sector >= first && sector <= last) this.#fail(run, errno);
    }
  }

  /** What is on disk now is in memory too. */
  #apply(): void {
    const { l1 } = this.#file.image;
    for (let run = 0; run < this.#batch.size; run++) {
      const table = this.#batch.table[run];
      if (l1[table] === 0) continue;
      if (this.#batch.errno[run] !== 0) this.#noteUncertain(run);
      else this.#putEntries(table, this.#batch.entry[run]);
    }
    for (let at = 0; at < this.#newTables; at++) {
      if (this.#errnos[at] === 0) l1[this.#tables[at]] = this.#places[at];
    }
    this.#finish();
  }

  /** Entries of a run that failed may be in the file: in the sectors that were written, or in all. */
  #noteUncertain(run: number): void {
    const table = this.#batch.table[run];
    const cluster = this.#batch.cluster[run];
    const first = this.#sectorOf(table, cluster) - this.#file.image.l1[table];
    const last = this.#sectorOf(table, cluster + this.#batch.clusters[run] - 1);
    for (let i = first; i <= last - this.#file.image.l1[table]; i++) {
      this.#cache.setUncertain(this.#batch.entry[run], i, true);
    }
  }

  #finish(): void {
    this.#used = 0;
    this.#newTables = 0;
    this.#done();
  }

  /** Unmaps its memory; it must not be busy. */
  release(): void {
    this.#arena.release();
  }
}
