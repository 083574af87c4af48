import type { DiskCounts } from "./disk_counts.ts";
import {
  highOfSector,
  lowOfSector,
  OFLAG_COMPRESSED_HIGH,
  OFLAG_COPIED_HIGH,
  OFLAG_ZERO_LOW,
  sectorOfEntry,
} from "./format/entries.ts";
import { SECTOR_BYTES } from "./format/units.ts";
import type { Qcow2Image } from "./image/image.ts";
import type { MovableTables } from "./movable_tables.ts";
import type { References } from "./references.ts";

/** Bytes of clusters, and of tables in memory, that are moved between two syncs. */
const MOST_BYTES = 64 << 20;
const MOST_TABLE_BYTES = 8 << 20;

/** What moves are made in. */
export interface MoveContext {
  readonly image: Qcow2Image;
  readonly references: References;
  readonly counts: DiskCounts;
  readonly tables: MovableTables;
}

/** A table whose clusters move. */
interface ChangedTable {
  /** Its index in the L1 table. */
  readonly index: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly from: number;
  /** The same as `from` for a table that stays. */
  readonly to: number;
  /** Sectors with new entries. */
  readonly sectors: Set<number>;
}

/**
 * Moves clusters from the end of the file into free room in front of them. A cluster is copied, the
 * copy becomes durable, and then the entry is written that leads there. The old place is given up
 * once that is durable.
 */
export class ClusterMoves {
  moved = 0;
  readonly #context: MoveContext;
  readonly #clusterBytes: number;
  readonly #clusterSectors: number;
  /** The next cluster that may be free. */
  #next = 0;
  /** Clusters from here on are to move. */
  #boundary = 0;
  #copies: { readonly from: number; readonly to: number }[] = [];
  #changed: ChangedTable[] = [];

  constructor(context: MoveContext) {
    this.#context = context;
    this.#clusterBytes = context.image.geometry.clusterBytes;
    this.#clusterSectors = context.image.geometry.clusterSectors;
  }

  /** Moves what can be moved; returns how many clusters that were. */
  run(): number {
    const before = this.moved;
    this.#boundary = this.#context.references.used;
    this.#next = 0;
    this.#moveTables();
    this.#moveBlocks();
    this.#moveData();
    this.#moveTables();
    return this.moved - before;
  }

  /** A free cluster in front of the boundary; -1 without one. It counts as used from then on. */
  #takeFree(): number {
    const { references, counts } = this.#context;
    for (; this.#next < this.#boundary; this.#next++) {
      if (references.of(this.#next) > 0 || !counts.isCounted(this.#next)) continue;
      references.add(this.#next);
      return this.#next++;
    }
    return -1;
  }

  /** Moves the L1 table and the refcount table into the first free run in front of them. */
  #moveTables(): void {
    const { references, counts, tables } = this.#context;
    for (const { field, offset, bytes } of tables.list) {
      const clusters = Math.ceil(bytes / this.#clusterBytes);
      const from = offset / this.#clusterBytes;
      if (from + clusters <= this.#boundary) continue;
      const to = this.#freeRun(clusters, from);
      if (to < 0) continue;
      const places = Array.from({ length: clusters }, (_, i) => to + i);
      counts.raise(places);
      tables.move(field, to * this.#clusterBytes);
      for (const place of places) references.add(place);
      for (let i = 0; i < clusters; i++) references.remove(from + i);
      this.moved += clusters;
    }
  }

  /** The first of some free clusters in a row that end in front of another; -1 without those. */
  #freeRun(clusters: number, before: number): number {
    const { references, counts } = this.#context;
    let run = 0;
    for (let cluster = 0; cluster < before; cluster++) {
      const isFree = references.of(cluster) === 0 && counts.isCounted(cluster);
      run = isFree ? run + 1 : 0;
      if (run === clusters) return cluster - clusters + 1;
    }
    return -1;
  }

  #moveBlocks(): void {
    const { counts, image: { refcountTable: table, file }, references, tables } = this.#context;
    const moves: { group: number; from: number; to: number }[] = [];
    for (let group = 0; group < counts.groups; group++) {
      const from = counts.blockOf(group);
      if (from < this.#boundary || references.of(from) !== 1) continue;
      const to = this.#takeFree();
      if (to < 0) break;
      moves.push({ group, from, to });
    }
    if (moves.length === 0) return;
    // The counts come first: they may be in blocks that are copied then.
    counts.raise(moves.map(({ to }) => to));
    for (const { from, to } of moves) this.#copy(from, to);
    file.sync();
    const sectors = new Set<number>();
    for (const { group, to } of moves) {
      table.setUint32(8 * group, highOfSector(to * this.#clusterSectors), false);
      table.setUint32(8 * group + 4, lowOfSector(to * this.#clusterSectors), false);
      sectors.add(Math.floor(8 * group / SECTOR_BYTES));
    }
    tables.writeRefcountTable(sectors);
    file.sync();
    for (const { from } of moves) references.remove(from);
    this.moved += moves.length;
  }

  #copy(from: number, to: number): void {
    const { file } = this.#context.image;
    const bytes = new Uint8Array(this.#clusterBytes);
    file.readAt(bytes, from * this.#clusterBytes);
    file.writeAt(bytes, to * this.#clusterBytes);
  }

  /** Moves L2 tables and clusters of data. */
  #moveData(): void {
    const { references, image: { l1, file } } = this.#context;
    let hasRoom = true;
    for (let index = 0; hasRoom && index < l1.byteLength / 8; index++) {
      const high = l1.getUint32(8 * index, false);
      const sector = sectorOfEntry(high, l1.getUint32(8 * index + 4, false));
      if (sector === 0) continue;
      const from = sector / this.#clusterSectors;
      // A table that a snapshot shares is not changed.
      if (references.of(from) !== 1) continue;
      const bytes = new Uint8Array(this.#clusterBytes);
      file.readAt(bytes, sector * SECTOR_BYTES);
      let to = from;
      if (from >= this.#boundary) {
        to = this.#takeFree();
        hasRoom = to >= 0;
        if (!hasRoom) break;
      }
      const sectors = new Set<number>();
      hasRoom = this.#moveEntries(new DataView(bytes.buffer), sectors);
      if (to === from && sectors.size === 0) continue;
      this.#changed.push({ index, bytes, from, to, sectors });
      const isFull = this.#copies.length * this.#clusterBytes >= MOST_BYTES ||
        this.#changed.length * this.#clusterBytes >= MOST_TABLE_BYTES;
      if (isFull) this.#commit();
    }
    this.#commit();
  }

  /** Gives clusters of a table new places, in memory; false when there is no free place left. */
  #moveEntries(table: DataView, sectors: Set<number>): boolean {
    const { references, image: { geometry: { l2Entries, l2EntryBytes, hasSubclusters } } } =
      this.#context;
    for (let i = 0; i < l2Entries; i++) {
      const at = i * l2EntryBytes;
      const high = table.getUint32(at, false);
      const low = table.getUint32(at + 4, false);
      if ((high & OFLAG_COMPRESSED_HIGH) !== 0) continue;
      const from = sectorOfEntry(high, low) / this.#clusterSectors;
      if (from < this.#boundary || references.of(from) !== 1) continue;
      const to = this.#takeFree();
      if (to < 0) return false;
      this.#copies.push({ from, to });
      const flags = hasSubclusters ? 0 : low & OFLAG_ZERO_LOW;
      const place = to * this.#clusterSectors;
      table.setUint32(at, (highOfSector(place) | (high & OFLAG_COPIED_HIGH)) >>> 0, false);
      table.setUint32(at + 4, (lowOfSector(place) | flags) >>> 0, false);
      sectors.add(Math.floor(at / SECTOR_BYTES));
    }
    return true;
  }

  #commit(): void {
    const { image: { l1, file }, counts, references, tables } = this.#context;
    const changed = this.#changed.splice(0);
    const copies = this.#copies.splice(0);
    if (changed.length === 0) return;
    const moved = changed.filter(({ from, to }) => from !== to);
    counts.raise([...copies, ...moved].map(({ to }) => to));
    for (const { from, to } of copies) this.#copy(from, to);
    for (const { to, bytes } of moved) file.writeAt(bytes, to * this.#clusterBytes);
    file.sync();
    const l1Sectors = new Set<number>();
    for (const { index, bytes, from, to, sectors } of changed) {
      if (to === from) {
        for (const sector of sectors) {
          const start = sector * SECTOR_BYTES;
          file.writeAt(
            bytes.subarray(start, start + SECTOR_BYTES),
            to * this.#clusterBytes + start,
          );
        }
        continue;
      }
      const place = to * this.#clusterSectors;
      const flag = l1.getUint32(8 * index, false) & OFLAG_COPIED_HIGH;
      l1.setUint32(8 * index, (highOfSector(place) | flag) >>> 0, false);
      l1.setUint32(8 * index + 4, lowOfSector(place), false);
      l1Sectors.add(Math.floor(8 * index / SECTOR_BYTES));
    }
    tables.writeL1(l1Sectors);
    file.sync();
    for (const { from } of [...copies, ...moved]) references.remove(from);
    this.moved += copies.length + moved.length;
  }
}
