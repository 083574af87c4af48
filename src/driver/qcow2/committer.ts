import { assert } from "../../../ffi/assert.ts";
import { Arena, copySectors } from "../../../ffi/memory.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { PublishOrder } from "../../vhd/format/publish_order.ts";
import { highOfSector, lowOfSector, OFLAG_COPIED_HIGH } from "../../qcow2/format/entries.ts";
import { type ImageQueue, SECTOR_BYTES } from "../driver.ts";
import type { ClusterMap } from "./cluster_map.ts";
import type { Drops } from "./drops.ts";
import type { EntryWriter } from "./entry_writer.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { MOST_DIRTY_SECTORS, type Refcounts } from "./refcounts.ts";
import type { Records } from "./records.ts";
import { MOST_TABLES, type Tables } from "./tables.ts";

const NONE = -1;
/** Sectors of L2 tables that one commit can write. */
const MOST_ENTRY_SECTORS = 64;
const FIRST_TABLE_SECTOR = MOST_ENTRY_SECTORS;
const MOST_PLACES = MOST_ENTRY_SECTORS + MOST_TABLES;
/** References that a change can take away: a compressed cluster can lie in three. */
const MOST_DROPS = 3;
/**
 * Operations that a commit has under way if there is no room for more. Room for all of a commit is
 * taken when it starts, so that a tapdisk can serve hundreds of images that do not write.
 */
export const COMMITTER_OPERATIONS = 4;

/** Where a committer tells the ends. */
export interface CommitterOwner {
  /** The entry in the file has a change now, or, with an errno, may not have it. */
  committed(record: number, errno: number): void;
  /** The L1 table points at the table of a job, or, with an errno, does not, or may with `isInFile`. */
  tableCommitted(job: number, errno: number, isInFile: boolean): void;
  /** A commit came to its end; the next can start. */
  commitEnded(errno: number): void;
}

/**
 * Makes changes of the tables durable in an order that leaves no entry that leads nowhere, whenever
 * the power fails. A commit has three steps, each for all changes that were ready:
 *
 * 1. write the reference counts that changed;
 * 2. a sync, which also covers data and tables that have been written;
 * 3. write the sectors of L2 tables and of the L1 table that name them.
 *
 * The first two are left out when all changes are first writes to clusters of zeros, at places of the
 * reserve (`reserve.ts`) whose references are durable: an entry without its data shows zeros.
 *
 * References of what was overwritten are taken away after the sync of the next commit.
 */
export class Committer {
  readonly #file: Qcow2File;
  readonly #map: ClusterMap;
  readonly #records: Records;
  readonly #entries: EntryWriter;
  readonly #refcounts: Refcounts;
  readonly #tables: Tables;
  readonly #drops: Drops;
  readonly #queue: ImageQueue;
  readonly #owner: CommitterOwner;
  readonly #arena = new Arena((MOST_PLACES + MOST_DIRTY_SECTORS) * SECTOR_BYTES);
  readonly #order = new PublishOrder();
  /** Records that are ready, oldest first. */
  #firstReady = NONE;
  #lastReady = NONE;
  /** Sectors that are being written: which slice and sector of it, or which sector of the L1 table. */
  readonly #placeKey = new Int32Array(MOST_PLACES);
  readonly #placeSector = new Float64Array(MOST_PLACES);
  /** By place: the first record that changes the sector. */
  readonly #placeRecords = new Int32Array(MOST_PLACES).fill(NONE);
  #entryPlaces = 0;
  #tablePlaces = 0;
  readonly #tableOfPlace = new Int32Array(MOST_TABLES);
  /** By sector of the map's cache: its place + 1. */
  readonly #placeOf: Uint16Array;
  readonly #counts = new Int32Array(MOST_DIRTY_SECTORS);
  #stamp = 0;
  /** Writes of the step: all, those that were started, and those that have not ended. */
  #writes = 0;
  #started = 0;
  #left = 0;
  /** Room of the disk queue that the commit has taken beside its least. */
  #moreRoom = 0;
  #isWritingCounts = false;
  /** Whether a change needs a sync in front of its entry. */
  #needsSync = false;
  #errno = 0;
  #busy = false;
  readonly #countOwner: IoOwner = {
    ioDone: (token, _n, errno) => this.#countWritten(token, errno),
  };
  readonly #syncOwner: IoOwner = { ioDone: (_t, _n, errno) => this.#synced(errno) };
  readonly #writeOwner: IoOwner = { ioDone: (token, _n, errno) => this.#written(token, errno) };

  constructor(
    { file, map, records, entries, refcounts, tables, drops, queue, owner }: {
      file: Qcow2File;
      map: ClusterMap;
      records: Records;
      entries: EntryWriter;
      refcounts: Refcounts;
      tables: Tables;
      drops: Drops;
      queue: ImageQueue;
      owner: CommitterOwner;
    },
  ) {
    this.#file = file;
    this.#map = map;
    this.#records = records;
    this.#entries = entries;
    this.#refcounts = refcounts;
    this.#tables = tables;
    this.#drops = drops;
    this.#queue = queue;
    this.#owner = owner;
    this.#placeOf = new Uint16Array(map.cache.entries * map.cache.sliceSectors);
  }

  /** Whether a commit is under way. */
  get busy(): boolean {
    return this.#busy;
  }

  /** Whether nothing is under way, and nothing waits. */
  get isIdle(): boolean {
    return !this.#busy && !this.#hasWork;
  }

  get #hasWork(): boolean {
    return this.hasRequests || this.#drops.wantSync || this.#refcounts.dirtySectors > 0;
  }

  /** Whether requests wait for the next commit. */
  get hasRequests(): boolean {
    return this.#firstReady !== NONE || this.#tables.hasReady;
  }

  /** Adds a record all of whose data is written. */
  add(record: number): void {
    this.#records.next[record] = NONE;
    if (this.#lastReady === NONE) this.#firstReady = record;
    else this.#records.next[this.#lastReady] = record;
    this.#lastReady = record;
  }

  /** Starts a commit of all that is ready. */
  start(): void {
    if (this.#busy || !this.#hasWork) return;
    this.#errno = 0;
    this.#entryPlaces = 0;
    this.#tablePlaces = 0;
    this.#needsSync = this.#drops.wantSync;
    this.#refcounts.reserve.commitStarts();
    this.#takeReady();
    this.#takeTables();
    this.#left = this.#refcounts.dirtySectors;
    // Changes may have to wait until references of others have been taken away.
    const isEmpty = this.#entryPlaces + this.#tablePlaces + this.#left === 0;
    if (isEmpty && !this.#drops.wantSync) return;
    this.#busy = true;
    this.#stamp = this.#order.written();
    const sectors = this.#left;
    this.#takeRoom(Math.max(sectors, this.#entryPlaces + this.#tablePlaces));
    if (sectors === 0) return this.#needsSync ? this.#sync() : this.#writeEntries();
    for (let i = 0; i < sectors; i++) {
      this.#counts[i] = this.#refcounts.stage(this.#arena.sector + MOST_PLACES + i);
    }
    this.#isWritingCounts = true;
    this.#startWrites(sectors);
  }

  #takeRoom(operations: number): void {
    const more = operations - COMMITTER_OPERATIONS;
    if (more > 0 && this.#queue.reserve(more)) this.#moreRoom = more;
  }

  /** Starts the writes of a step, as many at once as there is room for. */
  #startWrites(writes: number): void {
    this.#writes = writes;
    this.#started = 0;
    this.#left = writes;
    this.#continueWrites();
  }

  #continueWrites(): void {
    const room = COMMITTER_OPERATIONS + this.#moreRoom;
    while (this.#started < this.#writes) {
      const ended = this.#writes - this.#left;
      if (this.#started - ended >= room) return;
      const index = this.#started++;
      if (this.#isWritingCounts) this.#writeCount(index);
      else if (index < this.#entryPlaces) this.#write(index);
      else this.#write(FIRST_TABLE_SECTOR + index - this.#entryPlaces);
    }
  }

  #writeCount(index: number): void {
    const memory = this.#arena.sector + MOST_PLACES + index;
    const sector = this.#refcounts.sectorOf(this.#counts[index]);
    this.#queue.write(this.#file.disk.file, sector, 1, memory, this.#countOwner, index);
  }

  /** Finds the sectors of the ready records, as many as one commit can write. */
  #takeReady(): void {
    const records = this.#records;
    const drops = Math.floor(this.#drops.room / MOST_DROPS) - MOST_TABLES;
    const durableSectors = this.#refcounts.reserve.durableEnd * this.#file.clusterSectors;
    for (let taken = 0; this.#firstReady !== NONE && taken < drops; taken++) {
      const record = this.#firstReady;
      const key = this.#entries.sectorInCache(record);
      let place = this.#placeOf[key] - 1;
      if (place < 0) {
        if (this.#entryPlaces === MOST_ENTRY_SECTORS) return;
        place = this.#entryPlaces++;
        this.#placeOf[key] = place + 1;
        this.#placeKey[place] = key;
        this.#placeRecords[place] = NONE;
      }
      this.#firstReady = records.next[record];
      if (this.#firstReady === NONE) this.#lastReady = NONE;
      records.next[record] = this.#placeRecords[place];
      this.#placeRecords[place] = record;
      records.isCommitting[record] = 1;
      const isReady = records.isHole[record] === 1 && records.place[record] < durableSectors;
      if (!isReady) this.#needsSync = true;
    }
  }

  #takeTables(): void {
    if (!this.#tables.hasReady || this.#drops.room < MOST_TABLES) return;
    for (let job = 0; job < MOST_TABLES; job++) {
      if (!this.#tables.isReady(job)) continue;
      this.#tables.commit(job);
      this.#tableOfPlace[this.#tablePlaces++] = job;
      this.#needsSync = true;
    }
  }

  #countWritten(index: number, errno: number): void {
    if (errno !== 0) this.#errno = errno;
    this.#refcounts.staged(this.#counts[index], errno === 0);
    if (--this.#left > 0) return this.#continueWrites();
    this.#isWritingCounts = false;
    if (this.#errno !== 0) return this.#failAll(this.#errno);
    this.#sync();
  }

  #sync(): void {
    if (this.#entryPlaces + this.#tablePlaces === 0 && !this.#needsSync) return this.#end();
    const { disk, data, hasDataFile } = this.#file;
    this.#order.syncStarts();
    this.#drops.syncStarts();
    this.#left = hasDataFile ? 2 : 1;
    this.#queue.sync(disk.file, this.#syncOwner, 0);
    if (hasDataFile) this.#queue.sync(data.file, this.#syncOwner, 1);
  }

  #synced(errno: number): void {
    if (errno !== 0) this.#errno = errno;
    if (--this.#left > 0) return;
    this.#order.syncEnded(this.#errno === 0);
    if (this.#errno !== 0) return this.#failAll(this.#errno);
    this.#drops.synced();
    this.#refcounts.reserve.synced();
    this.#order.requireDurable(this.#stamp);
    this.#writeEntries();
  }

  #writeEntries(): void {
    const writes = this.#entryPlaces + this.#tablePlaces;
    if (writes === 0) return this.#end();
    // All sectors are made first: a write that ends at once must not change what others are made of.
    for (let place = 0; place < this.#entryPlaces; place++) this.#fillEntries(place);
    for (let i = 0; i < this.#tablePlaces; i++) this.#fillTables(i);
    this.#startWrites(writes);
  }

  #write(place: number): void {
    const memory = this.#arena.sector + place;
    const sector = this.#placeSector[place];
    this.#queue.write(this.#file.disk.file, sector, 1, memory, this.#writeOwner, place);
  }

  /** Copies a sector of an L2 table, with the changes that it gets. */
  #fillEntries(place: number): void {
    const key = this.#placeKey[place];
    const { cache } = this.#map;
    copySectors(this.#arena.sector + place, cache.memoryOf(0) + key, 1);
    const slice = Math.floor(key / cache.sliceSectors);
    this.#placeSector[place] = this.#map.sliceSector(cache.key[slice]) +
      key - slice * cache.sliceSectors;
    for (let record = this.#placeRecords[place]; record !== NONE;) {
      this.#entries.put(record, this.#arena.view, place * SECTOR_BYTES - key * SECTOR_BYTES);
      record = this.#records.next[record];
    }
  }

  /** Copies the sector of the L1 table that a job changes, with all changes of this commit. */
  #fillTables(index: number): void {
    const { l1 } = this.#map;
    const place = FIRST_TABLE_SECTOR + index;
    const start = place * SECTOR_BYTES;
    const sector = Math.floor(8 * this.#tables.table[this.#tableOfPlace[index]] / SECTOR_BYTES);
    this.#placeSector[place] = Number(this.#file.image.header.l1TableOffset) / SECTOR_BYTES +
      sector;
    const { view } = this.#arena;
    for (let byte = 0; byte < SECTOR_BYTES; byte += 4) {
      const at = sector * SECTOR_BYTES + byte;
      view.setUint32(start + byte, at < l1.byteLength ? l1.getUint32(at, false) : 0, false);
    }
    for (let i = 0; i < this.#tablePlaces; i++) {
      const job = this.#tableOfPlace[i];
      const at = 8 * this.#tables.table[job] - sector * SECTOR_BYTES;
      if (at < 0 || at >= SECTOR_BYTES) continue;
      const newPlace = this.#tables.place[job];
      view.setUint32(start + at, (highOfSector(newPlace) | OFLAG_COPIED_HIGH) >>> 0, false);
      view.setUint32(start + at + 4, lowOfSector(newPlace), false);
    }
  }

  #written(place: number, errno: number): void {
    if (errno !== 0) this.#errno = errno;
    if (place >= FIRST_TABLE_SECTOR) this.#tableWritten(place - FIRST_TABLE_SECTOR, errno);
    else this.#entriesWritten(place, errno, true);
    assert(this.#left > 0, "More writes of a commit ended than were started");
    if (--this.#left === 0) this.#end();
    else this.#continueWrites();
  }

  #entriesWritten(place: number, errno: number, isInFile: boolean): void {
    const records = this.#records;
    this.#placeOf[this.#placeKey[place]] = 0;
    if (isInFile) this.#map.cache.setUncertain(this.#placeKey[place], errno !== 0);
    let record = this.#placeRecords[place];
    this.#placeRecords[place] = NONE;
    while (record !== NONE) {
      const next = records.next[record];
      records.isCommitting[record] = 0;
      if (errno === 0) this.#entries.apply(record);
      // A place may be in the file although the write failed: it must not be given away then.
      else if (isInFile) records.isNew[record] = 0;
      this.#owner.committed(record, errno);
      record = next;
    }
  }

  #tableWritten(index: number, errno: number): void {
    const job = this.#tableOfPlace[index];
    const table = this.#tables.table[job];
    const old = this.#map.tableSector(table);
    if (errno === 0) {
      const place = this.#tables.place[job];
      const { l1 } = this.#map;
      l1.setUint32(8 * table, (highOfSector(place) | OFLAG_COPIED_HIGH) >>> 0, false);
      l1.setUint32(8 * table + 4, lowOfSector(place), false);
      if (old !== 0) this.#drops.add(old / this.#file.clusterSectors);
    }
    this.#owner.tableCommitted(job, errno, true);
  }

  /** A step in front of the tables failed: nothing of the changes is in the file. */
  #failAll(errno: number): void {
    const entryPlaces = this.#entryPlaces;
    const tablePlaces = this.#tablePlaces;
    for (let place = 0; place < entryPlaces; place++) this.#entriesWritten(place, errno, false);
    for (let i = 0; i < tablePlaces; i++) {
      this.#owner.tableCommitted(this.#tableOfPlace[i], errno, false);
    }
    this.#end();
  }

  #end(): void {
    if (this.#moreRoom > 0) this.#queue.release(this.#moreRoom);
    this.#moreRoom = 0;
    this.#busy = false;
    this.#owner.commitEnded(this.#errno);
  }

  /** Unmaps its memory; it must be idle. */
  release(): void {
    this.#arena.release();
  }
}
