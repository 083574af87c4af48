import {
  compressedPlace,
  hasWrongOffset,
  L1_RESERVED_LOW,
  L2_RESERVED_HIGH,
  L2_RESERVED_LOW,
  OFLAG_COMPRESSED_HIGH,
  OFLAG_COPIED_HIGH,
  OFLAG_ZERO_LOW,
  sectorOfEntry,
} from "./format/entries.ts";
import { ExtensionType } from "./format/extensions.ts";
import { refcountAt } from "./format/refcounts.ts";
import { SECTOR_BYTES } from "./format/units.ts";
import type { Qcow2Image } from "./image/image.ts";
import { L1Tables } from "./l1_tables.ts";
import { References } from "./references.ts";
import { TableReader } from "./table_reader.ts";

/** Findings of one kind that are kept with their text. */
const MOST_TEXTS = 64;
/** Entries of the directory of bitmaps that are accepted. */
const MOST_BITMAPS = 65535;
/** The longest table that is accepted, bytes. */
const MOST_RANGE_BYTES = 64 << 20;
/** The most bytes of the L1 tables of all snapshots together. */
const MOST_SNAPSHOT_TABLE_BYTES = 256 << 20;

/** What a check found. */
export interface Qcow2Findings {
  /** Contradictions that endanger data. */
  readonly errors: readonly string[];
  readonly errorCount: number;
  /** Whether all errors are wrong reference counts and flags, which `repairQcow2` makes right. */
  readonly isMendable: boolean;
  /** Clusters with more references than are there: lost room, and nothing else. */
  readonly leakedClusters: number;
  readonly references: References;
  /** The first byte behind the last cluster in use. */
  readonly endOfData: number;
}

/**
 * Checks the tables of an image against each other: all clusters that are referred to are counted, and
 * the counts are compared with the reference counts. Nothing is written.
 */
export function checkQcow2(image: Qcow2Image): Qcow2Findings {
  return new Check(image).run();
}

/**
 * Counts the references to all clusters but those of the refcount table and its blocks, as if there
 * were none.
 */
export function countReferences(image: Qcow2Image): Qcow2Findings {
  return new Check(image).run(false);
}

/** A name that is only made when it is needed. */
type Named = string | (() => string);

class Check {
  readonly #image: Qcow2Image;
  readonly #references = new References();
  readonly #errors: string[] = [];
  #errorCount = 0;
  #isMendable = true;
  #leaks = 0;
  readonly #clusterBytes: number;
  readonly #fileBytes: number;
  /** Clusters from here on lie past the end of the file. */
  readonly #endCluster: number;

  constructor(image: Qcow2Image) {
    this.#image = image;
    this.#clusterBytes = image.geometry.clusterBytes;
    this.#fileBytes = image.file.sizeBytes();
    this.#endCluster = Math.ceil(this.#fileBytes / this.#clusterBytes);
  }

  #error(what: Named, problem: string, isMendable = false): void {
    this.#errorCount++;
    this.#isMendable &&= isMendable;
    if (this.#errors.length >= MOST_TEXTS) return;
    this.#errors.push(`${typeof what === "string" ? what : what()} ${problem}`);
  }

  run(withCounts = true): Qcow2Findings {
    const { header, l1, refcountTable, snapshotTable } = this.#image;
    this.#addRange("the header", 0, this.#clusterBytes);
    const l1Offset = Number(header.l1TableOffset);
    this.#addTable("the L1 table", l1Offset, l1.byteLength);
    if (withCounts) {
      const tableOffset = Number(header.refcountTableOffset);
      this.#addTable("the refcount table", tableOffset, refcountTable.byteLength);
      this.#addRefcountBlocks();
    }
    this.#addTable("the snapshot table", snapshotTable.offsetBytes, snapshotTable.lengthBytes);
    this.#addTables();
    this.#addBitmaps();
    this.#addCryptHeader();
    if (withCounts) {
      this.#compare();
      if (this.#isMendable) this.#checkFlags();
    }
    return {
      errors: this.#errors,
      errorCount: this.#errorCount,
      isMendable: this.#isMendable,
      leakedClusters: this.#leaks,
      references: this.#references,
      endOfData: this.#references.end * this.#clusterBytes,
    };
  }

  /** Counts the clusters of a table, which must be in the file whole; false when it cannot be one. */
  #addTable(what: Named, offsetBytes: number, lengthBytes: number, times = 1): boolean {
    if (!this.#addRange(what, offsetBytes, lengthBytes, times)) return false;
    if (lengthBytes === 0 || offsetBytes + lengthBytes <= this.#fileBytes) return true;
    this.#error(what, `at byte ${offsetBytes} is cut by the end of the file`);
    return false;
  }

  /** Counts the clusters of a range of the file; false when it cannot be one. */
  #addRange(what: Named, offsetBytes: number, lengthBytes: number, times = 1): boolean {
    if (lengthBytes === 0) return true;
    if (lengthBytes > MOST_RANGE_BYTES) {
      this.#error(what, `at byte ${offsetBytes} has ${lengthBytes} bytes, which is too long`);
      return false;
    }
    const first = Math.floor(offsetBytes / this.#clusterBytes);
    const end = Math.ceil((offsetBytes + lengthBytes) / this.#clusterBytes);
    // The last cluster may be there in part.
    if (offsetBytes + lengthBytes >= this.#fileBytes + this.#clusterBytes) {
      this.#error(what, `at byte ${offsetBytes} lies past the end of the file`);
      return false;
    }
    for (let cluster = first; cluster < end; cluster++) this.#references.add(cluster, times);
    return true;
  }

  #isCluster(what: Named, offsetBytes: number): boolean {
    if (offsetBytes % this.#clusterBytes === 0) return true;
    this.#error(what, `leads to byte ${offsetBytes}, where no cluster begins`);
    return false;
  }

  /** What is wrong here is mended: a repair writes all counts anew, in other places. */
  #addRefcountBlocks(): void {
    const { refcountTable: table } = this.#image;
    for (let i = 0; i < table.byteLength / 8; i++) {
      const high = table.getUint32(8 * i, false);
      const low = table.getUint32(8 * i + 4, false);
      if (high === 0 && low === 0) continue;
      const offset = sectorOfEntry(high, low) * SECTOR_BYTES;
      const problem = this.#problemOfBlock(high, low, offset);
      if (problem !== null) this.#error(`refcount_table[${i}]`, problem, true);
      else if (offset !== 0) this.#references.add(offset / this.#clusterBytes);
    }
  }

  #problemOfBlock(high: number, low: number, offset: number): string | null {
    if ((low & L1_RESERVED_LOW) !== 0) return "has reserved bits";
    // All of the upper bits belong to the place of a block.
    if (high >= 1 << 24) return "leads past the end of the file";
    if (offset % this.#clusterBytes !== 0) {
      return `leads to byte ${offset}, where no cluster begins`;
    }
    if (offset + this.#clusterBytes <= this.#fileBytes) return null;
    const isCut = offset < this.#fileBytes;
    return `at byte ${offset} ${isCut ? "is cut by" : "lies past"} the end of the file`;
  }

  #addTables(): void {
    const nameOf = (index: number, of: string) => (): string => `l1[${index}]${of}`;
    const tables = new L1Tables({
      fault: (index, of, problem) => this.#error(nameOf(index, of), problem),
      refers: (index, of, offset, times) => {
        const what = nameOf(index, of);
        return this.#isCluster(what, offset) &&
          this.#addTable(what, offset, this.#clusterBytes, times);
      },
    });
    tables.add(this.#image.l1, "", 1);
    this.#addSnapshotTables(tables);
    const reader = new TableReader(this.#image);
    for (const { offset, index, of, times, isElsewhere } of tables.tables) {
      const table = reader.read(offset);
      if (table === null) continue;
      this.#addEntries(table, { index, of: nameOf(index, of), times });
      if (!isElsewhere || this.#image.dataFile === null) continue;
      this.#error(nameOf(index, of), "leads to the table of another entry");
    }
  }

  /** Takes the tables of snapshots; what several snapshots share is read once. */
  #addSnapshotTables(tables: L1Tables): void {
    const { snapshotTable: { snapshots }, file } = this.#image;
    const found = new Map<string, { of: string; offset: number; bytes: number; times: number }>();
    for (const { id, l1Offset: offset, l1Entries } of snapshots) {
      const known = found.get(`${offset} ${l1Entries}`);
      if (known !== undefined) known.times++;
      else {
        const of = ` of snapshot ${JSON.stringify(id)}`;
        found.set(`${offset} ${l1Entries}`, { of, offset, bytes: l1Entries * 8, times: 1 });
      }
    }
    let left = MOST_SNAPSHOT_TABLE_BYTES;
    for (const { of, offset, bytes, times } of found.values()) {
      if (!this.#isCluster(`the L1 table${of}`, offset)) continue;
      if (!this.#addTable(`the L1 table${of}`, offset, bytes, times)) continue;
      left -= bytes;
      if (left < 0) return this.#error(`the L1 table${of}`, "makes all of them too long");
      const table = new Uint8Array(bytes);
      file.readAt(table, offset);
      tables.add(new DataView(table.buffer), of, times);
    }
  }

  #addEntries(
    table: DataView,
    { index, of, times }: { index: number; of: () => string; times: number },
  ): void {
    const { l2EntryBytes, l2Entries, clusterSectors, hasSubclusters } = this.#image.geometry;
    const isPlain = this.#image.dataFile === null && !hasSubclusters;
    const reservedLow = this.#reservedLow;
    for (let i = 0; i < l2Entries; i++) {
      const at = i * l2EntryBytes;
      const high = table.getUint32(at, false);
      const low = table.getUint32(at + 4, false);
      if (high === 0 && low === 0 && !hasSubclusters) continue;
      const isOdd = (high & (OFLAG_COMPRESSED_HIGH | L2_RESERVED_HIGH)) !== 0 ||
        (low & reservedLow) !== 0;
      const cluster = sectorOfEntry(high, low) / clusterSectors;
      if (!isPlain || isOdd || !Number.isInteger(cluster) || cluster >= this.#endCluster) {
        const diskCluster = index * l2Entries + i;
        this.#addOddEntry(table, at, { what: () => `l2[${i}] of ${of()}`, times, diskCluster });
      } else if (cluster > 0) this.#references.add(cluster, times);
    }
  }

  /** Bits of the lower half of an L2 entry that must be 0. Version 2 and subclusters have no flag for zeros. */
  get #reservedLow(): number {
    const { geometry: { hasSubclusters }, header: { version } } = this.#image;
    return hasSubclusters || version < 3 ? L2_RESERVED_LOW | OFLAG_ZERO_LOW : L2_RESERVED_LOW;
  }

  /** Takes an entry that is no plain cluster in the file. */
  #addOddEntry(
    table: DataView,
    at: number,
    { what, times, diskCluster }: { what: () => string; times: number; diskCluster: number },
  ): void {
    const { clusterBits, hasSubclusters } = this.#image.geometry;
    const hasOwnData = this.#image.dataFile === null;
    const high = table.getUint32(at, false);
    const low = table.getUint32(at + 4, false);
    if ((high & OFLAG_COMPRESSED_HIGH) !== 0) {
      if ((high & OFLAG_COPIED_HIGH) !== 0) this.#error(what, "is compressed and not shared");
      if (!hasOwnData) this.#error(what, "is compressed in a data file");
      if (hasWrongOffset(high, clusterBits)) {
        return this.#error(what, "leads past the end of the file");
      }
      if (hasSubclusters && hasBits(table, at)) {
        this.#error(what, "is compressed and has subclusters");
      }
      const { offsetBytes, lengthBytes } = compressedPlace(high, low, clusterBits);
      this.#addRange(what, offsetBytes, lengthBytes, times);
      return;
    }
    if ((high & L2_RESERVED_HIGH) !== 0 || (low & this.#reservedLow) !== 0) {
      this.#error(what, "has reserved bits");
    }
    const offset = sectorOfEntry(high, low) * SECTOR_BYTES;
    const isThere = offset !== 0 || (!hasOwnData && (high & OFLAG_COPIED_HIGH) !== 0);
    if (hasSubclusters) this.#checkSubclusters(table, at, what, isThere);
    if (!isThere || !this.#isCluster(what, offset)) return;
    if (hasOwnData) this.#addRange(what, offset, this.#clusterBytes, times);
    else if (offset !== diskCluster * this.#clusterBytes) {
      this.#error(what, `leads to byte ${offset} of the data file, which is another cluster's`);
    }
  }

  #checkSubclusters(table: DataView, at: number, what: Named, isThere: boolean): void {
    const zeros = table.getUint32(at + 8, false);
    const data = table.getUint32(at + 12, false);
    if ((zeros & data) !== 0) this.#error(what, "has subclusters with data that are zeros");
    if (data !== 0 && !isThere) this.#error(what, "has subclusters with data and no cluster");
  }

  #addBitmaps(): void {
    const { bitmaps, file } = this.#image;
    if (bitmaps === null) return;
    if (bitmaps.bitmaps > MOST_BITMAPS) {
      return this.#error("the bitmaps", `are ${bitmaps.bitmaps}, which is too many`);
    }
    this.#addRange("the bitmaps", bitmaps.directoryOffset, bitmaps.directoryBytes);
    let at = bitmaps.directoryOffset;
    const end = at + bitmaps.directoryBytes;
    for (let i = 0; i < bitmaps.bitmaps; i++) {
      if (at + 24 > end) return this.#error("the directory of bitmaps", `has no entry ${i}`);
      const entry = new Uint8Array(24);
      file.readAt(entry, at);
      const view = new DataView(entry.buffer);
      const offset = Number(view.getBigUint64(0, false));
      const entries = view.getUint32(8, false);
      const more = view.getUint32(20, false) + view.getUint16(18, false);
      at += Math.ceil((24 + more) / 8) * 8;
      if (!this.#addRange(`the table of bitmap ${i}`, offset, entries * 8)) continue;
      const table = new Uint8Array(Math.min(entries * 8, Math.max(0, this.#fileBytes - offset)));
      file.readAt(table, offset);
      const clusters = new DataView(table.buffer);
      for (let k = 0; k + 8 <= table.length; k += 8) {
        const cluster = sectorOfEntry(
          clusters.getUint32(k, false),
          clusters.getUint32(k + 4, false),
        );
        if (cluster !== 0) {
          this.#addRange(`bitmap ${i}`, cluster * SECTOR_BYTES, this.#clusterBytes);
        }
      }
    }
  }

  #addCryptHeader(): void {
    const { extensions } = this.#image;
    const found = extensions.find(({ type }) => type === ExtensionType.CryptoHeader);
    if (found === undefined || found.data.length < 16) return;
    const view = new DataView(found.data.buffer, found.data.byteOffset, 16);
    const offset = Number(view.getBigUint64(0, false));
    this.#addRange("the encryption header", offset, Number(view.getBigUint64(8, false)));
  }

  /** Calls back with the number and the reference count of each cluster that a block counts. */
  #eachCount(visit: (cluster: number, count: number) => void): void {
    const { refcountTable: table, geometry } = this.#image;
    const { refcountsPerBlock, refcountBits } = geometry;
    const block = new Uint8Array(this.#clusterBytes);
    const view = new DataView(block.buffer);
    const { end } = this.#references;
    // What counts clusters behind the end of the file counts nothing, and may be a million blocks.
    const last = Math.max(end, Math.ceil(this.#fileBytes / this.#clusterBytes));
    for (let i = 0; i < table.byteLength / 8 && i * refcountsPerBlock < last; i++) {
      const high = table.getUint32(8 * i, false);
      const sector = sectorOfEntry(high, table.getUint32(8 * i + 4, false));
      if (sector === 0 && i * refcountsPerBlock >= end) continue;
      block.fill(0);
      if (sector !== 0) this.#image.file.readAt(block, sector * SECTOR_BYTES);
      // Most of a block of large clusters counts nothing.
      const counts = Math.ceil(usedBytes(block) * 8 / refcountBits);
      const last = Math.min(refcountsPerBlock, Math.max(counts, end - i * refcountsPerBlock));
      for (let k = 0; k < last; k++) {
        visit(i * refcountsPerBlock + k, refcountAt(view, 0, k, refcountBits));
      }
    }
    const counted = table.byteLength / 8 * refcountsPerBlock;
    this.#references.eachFrom(counted, (cluster) => visit(cluster, 0));
  }

  /** Clusters whose reference count is more than 1. */
  readonly #shared = new References();

  #compare(): void {
    this.#eachCount((cluster, count) => {
      const references = this.#references.of(cluster);
      if (count > references) this.#leaks++;
      else if (count < references) {
        const what = (): string => `the cluster at byte ${cluster * this.#clusterBytes}:`;
        this.#error(what, `its reference count is ${count}, not ${references}`, true);
      }
      if (count > 1) this.#shared.add(cluster);
    });
  }

  /** The flag for a cluster that has one reference must be right in the active tables. */
  #checkFlags(): void {
    const { l1, geometry, dataFile } = this.#image;
    const { l2EntryBytes, l2Entries } = geometry;
    const reader = new TableReader(this.#image);
    const seen = new Set<number>();
    const isOwn = (sector: number): boolean =>
      this.#shared.of(Math.floor(sector * SECTOR_BYTES / this.#clusterBytes)) === 0;
    for (let i = 0; i < l1.byteLength / 8; i++) {
      const high = l1.getUint32(8 * i, false);
      const sector = sectorOfEntry(high, l1.getUint32(8 * i + 4, false));
      if (sector === 0 || sector * SECTOR_BYTES % this.#clusterBytes !== 0) continue;
      const copied = (high & OFLAG_COPIED_HIGH) !== 0;
      if (copied !== isOwn(sector)) {
        this.#error(`l1[${i}]`, "has a wrong flag for a table of its own", true);
      }
      if (seen.has(sector)) continue;
      seen.add(sector);
      const table = reader.read(sector * SECTOR_BYTES);
      if (table === null) continue;
      for (let k = 0; k < l2Entries && dataFile === null; k++) {
        const entryHigh = table.getUint32(k * l2EntryBytes, false);
        const entryLow = table.getUint32(k * l2EntryBytes + 4, false);
        if ((entryHigh & OFLAG_COMPRESSED_HIGH) !== 0) continue;
        const place = sectorOfEntry(entryHigh, entryLow);
        if (place === 0) continue;
        if (((entryHigh & OFLAG_COPIED_HIGH) !== 0) !== isOwn(place)) {
          const what = (): string => `l2[${k}] of l1[${i}]`;
          this.#error(what, "has a wrong flag for a cluster of its own", true);
        }
      }
    }
  }
}

/** Whether a word of subclusters beside an entry says something of any of them. */
function hasBits(table: DataView, at: number): boolean {
  return table.getUint32(at + 8, false) !== 0 || table.getUint32(at + 12, false) !== 0;
}

/** Bytes up to the last one that is not zero, rounded up to words of 4 bytes. */
function usedBytes(bytes: Uint8Array<ArrayBuffer>): number {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  let end = words.length;
  while (end > 0 && words[end - 1] === 0) end--;
  return end * 4;
}
