import { assert } from "../../ffi/assert.ts";
import { type FileIdentity, osStorage, type Storage, type StorageFile } from "../files/storage.ts";
import { createQcow2 } from "./create.ts";
import { compressedHigh, highOfSector, lowOfSector, OFLAG_COPIED_HIGH } from "./format/entries.ts";
import { maxRefcount, refcountAt, setRefcountAt } from "./format/refcounts.ts";
import { type Geometry, SECTOR_BYTES } from "./format/units.ts";
import { openQcow2 } from "./image/image.ts";

/** Bytes of packed clusters that are written at once. */
const PACKED_BYTES = 1 << 20;

/** Options of an image that is written from start to end. */
export interface SequentialQcow2Options {
  /** Size of the virtual disk, bytes. */
  readonly sizeBytes: number;
  readonly compression?: "zlib" | "zstd";
  /** 64 KiB by default. */
  readonly clusterBytes?: number;
  readonly storage?: Storage;
  /** The file that the caller has made under this name. */
  readonly same?: FileIdentity;
}

/** Reference counts of a group of clusters, as many as a refcount block has. */
interface Counts {
  readonly group: number;
  readonly view: DataView<ArrayBuffer>;
  /** The cluster of the refcount block; -1: it has none yet. */
  cluster: number;
}

/**
 * A new image that is written once, from the start of the disk to its end, and not read before
 * `finish`. Clusters lie in the file in the order of the disk. Compressed ones follow each other without
 * gaps, as qemu-img packs them. Of the tables, those that are being filled are in memory, and the L1 and
 * the refcount table; the others are in the file.
 *
 * Writes have no order on disk: before the end of `finish` the image is not whole. Then it is durable.
 */
export class SequentialQcow2 {
  readonly #file: StorageFile;
  readonly #geometry: Geometry;
  readonly #l1: DataView<ArrayBuffer>;
  readonly #l1Offset: number;
  readonly #l2: DataView<ArrayBuffer>;
  /** The L1 entry of the L2 table in memory; -1: none. */
  #l2Index = -1;
  readonly #table: DataView<ArrayBuffer>;
  readonly #tableOffset: number;
  /** Counts of the group of the last cluster in use, and of groups before it that are not in the file. */
  #counts: Counts;
  readonly #fullCounts: Counts[] = [];
  /** The first cluster of the file that is free. */
  #next: number;
  /** The cluster of the disk that came last, and for a plain one where it is in the file. */
  #last = -1;
  #host = 0;
  /** Packed bytes that are not in the file. */
  readonly #packed = new Uint8Array(PACKED_BYTES);
  /** Where they begin in the file, and how many there are. */
  #packedAt = 0;
  #packedBytes = 0;
  /** Whether the next packed bytes can follow them. */
  #isPacking = false;

  /** @throws {SystemError} Errors of the file system; see `createQcow2`. */
  constructor(path: string, options: SequentialQcow2Options) {
    const { sizeBytes, storage = osStorage, same } = options;
    createQcow2(path, { ...options, roomForBytes: 2 * sizeBytes });
    const image = openQcow2(path, { storage, readOnly: false, same });
    const { header, geometry, l1, refcountTable } = image;
    this.#file = image.file;
    this.#geometry = geometry;
    this.#l1 = l1;
    this.#l1Offset = Number(header.l1TableOffset);
    this.#table = refcountTable;
    this.#tableOffset = Number(header.refcountTableOffset);
    this.#l2 = this.#emptyCluster();
    this.#counts = {
      group: 0,
      view: this.#emptyCluster(),
      cluster: 1 + header.refcountTableClusters,
    };
    this.#next = 0;
    const l1Clusters = Math.max(1, Math.ceil(l1.byteLength / geometry.clusterBytes));
    const end = this.#l1Offset / geometry.clusterBytes + l1Clusters;
    while (this.#next < end) this.#allocate();
    assert(this.#counts.group === 0, "The structures of a new image have one refcount block");
  }

  /** The file that the image is written to. */
  get file(): StorageFile {
    return this.#file;
  }

  /** Bytes of a cluster. */
  get clusterBytes(): number {
    return this.#geometry.clusterBytes;
  }

  /**
   * Writes whole sectors as they are. What is not written of a cluster reads as zeros.
   *
   * @param offsetBytes On the disk, behind what was written before.
   * @param put Writes part of the bytes to a place of the file, before `finish`.
   * @throws {SystemError} Errors of the file system.
   */
  write(
    bytes: Uint8Array<ArrayBuffer>,
    offsetBytes: number,
    put: (part: Uint8Array<ArrayBuffer>, at: number) => void = (part, at) =>
      this.#file.writeAt(part, at),
  ): void {
    const { clusterBytes } = this.#geometry;
    for (let at = 0; at < bytes.length;) {
      const inCluster = (offsetBytes + at) % clusterBytes;
      const start = this.#plainCluster((offsetBytes + at - inCluster) / clusterBytes) + inCluster;
      let end = at + clusterBytes - inCluster;
      // Clusters that follow each other in the file, too, are written at once.
      while (end < bytes.length) {
        const next = this.#plainCluster((offsetBytes + end) / clusterBytes);
        if (next !== start + end - at) break;
        end += clusterBytes;
      }
      put(bytes.subarray(at, Math.min(end, bytes.length)), start);
      at = end;
    }
  }

  /**
   * Writes a cluster in its compressed form.
   *
   * @param cluster Its number on the disk, above those that were written before.
   * @throws {SystemError} Errors of the file system.
   */
  writeCompressed(cluster: number, packed: Uint8Array): void {
    assert(cluster > this.#last, "Compressed clusters come in their order");
    const { clusterBits, clusterBytes } = this.#geometry;
    this.#begin(cluster);
    if (!this.#isPacking) {
      this.#isPacking = true;
      this.#packedAt = this.#next * clusterBytes;
    }
    const offset = this.#packedAt + this.#packedBytes;
    const last = offset + packed.length - 1;
    if (offset < this.#next * clusterBytes) this.#count(this.#next - 1);
    while (this.#next * clusterBytes <= last) this.#allocate();
    if (this.#packedBytes + packed.length > PACKED_BYTES) this.#writePacked();
    this.#packed.set(packed, this.#packedBytes);
    this.#packedBytes += packed.length;
    const sectors = Math.floor(last / SECTOR_BYTES) - Math.floor(offset / SECTOR_BYTES);
    this.#setEntry(cluster, compressedHigh(offset, sectors, clusterBits), offset % 2 ** 32);
  }

  /** Where a cluster is in the file that is not compressed, or goes to. */
  #plainCluster(cluster: number): number {
    if (cluster === this.#last) return this.#host;
    assert(cluster > this.#last, "Clusters come in their order");
    this.#begin(cluster);
    this.#endPacking();
    const { clusterBytes, clusterSectors } = this.#geometry;
    const own = this.#allocate();
    this.#host = own * clusterBytes;
    // What a device held there would show.
    if (this.#file.isBlockDevice) this.#file.writeAt(new Uint8Array(clusterBytes), this.#host);
    const sector = own * clusterSectors;
    this.#setEntry(cluster, highOfSector(sector) | OFLAG_COPIED_HIGH, lowOfSector(sector));
    return this.#host;
  }

  /** Gets the L2 table of a cluster ready. */
  #begin(cluster: number): void {
    this.#last = cluster;
    const index = Math.floor(cluster / this.#geometry.l2Entries);
    if (index === this.#l2Index) return;
    this.#endTables();
    this.#l2Index = index;
  }

  #setEntry(cluster: number, high: number, low: number): void {
    const at = 8 * (cluster % this.#geometry.l2Entries);
    this.#l2.setUint32(at, high, false);
    this.#l2.setUint32(at + 4, low, false);
  }

  /** Takes the next cluster of the file. */
  #allocate(): number {
    const cluster = this.#next++;
    const group = Math.floor(cluster / this.#geometry.refcountsPerBlock);
    if (group !== this.#counts.group) {
      this.#fullCounts.push(this.#counts);
      this.#counts = { group, view: this.#emptyCluster(), cluster: -1 };
    }
    this.#count(cluster);
    return cluster;
  }

  /** Counts a reference to the last cluster in use. */
  #count(cluster: number): void {
    const { refcountBits, refcountsPerBlock } = this.#geometry;
    const index = cluster % refcountsPerBlock;
    const { view } = this.#counts;
    const count = refcountAt(view, 0, index, refcountBits) + 1;
    assert(count <= maxRefcount(refcountBits), "A cluster has more references than can be counted");
    setRefcountAt(view, 0, index, refcountBits, count);
  }

  #emptyCluster(): DataView<ArrayBuffer> {
    return new DataView(new ArrayBuffer(this.#geometry.clusterBytes));
  }

  #endPacking(): void {
    this.#writePacked();
    this.#isPacking = false;
  }

  #writePacked(): void {
    if (this.#packedBytes === 0) return;
    this.#file.writeAt(this.#packed.subarray(0, this.#packedBytes), this.#packedAt);
    this.#packedAt += this.#packedBytes;
    this.#packedBytes = 0;
  }

  /** Writes the L2 table in memory and the refcount blocks that are full. */
  #endTables(): void {
    this.#endPacking();
    if (this.#l2Index >= 0) {
      this.#putPlace(this.#l1, this.#l2Index, OFLAG_COPIED_HIGH, this.#writeCluster(this.#l2));
      new Uint8Array(this.#l2.buffer).fill(0);
      this.#l2Index = -1;
    }
    for (const counts of this.#fullCounts.splice(0)) this.#writeCounts(counts);
  }

  #unplaced(): Counts | undefined {
    return [...this.#fullCounts, this.#counts].find(({ cluster }) => cluster < 0);
  }

  #writeCounts(counts: Counts): void {
    if (counts.cluster < 0) counts.cluster = this.#allocate();
    this.#writeCluster(counts.view, counts.cluster);
    this.#putPlace(this.#table, counts.group, 0, counts.cluster);
  }

  #writeCluster(content: DataView<ArrayBuffer>, cluster = this.#allocate()): number {
    this.#file.writeAt(new Uint8Array(content.buffer), cluster * this.#geometry.clusterBytes);
    return cluster;
  }

  #putPlace(table: DataView, index: number, flags: number, cluster: number): void {
    const sector = cluster * this.#geometry.clusterSectors;
    table.setUint32(8 * index, highOfSector(sector) | flags, false);
    table.setUint32(8 * index + 4, lowOfSector(sector), false);
  }

  /**
   * Writes all tables and makes the image durable. The image is closed, also when that fails.
   *
   * @throws {SystemError} Errors of the file system.
   */
  finish(): void {
    try {
      this.#endTables();
      // A block counts its own cluster, which may be the first of a further group.
      for (let counts = this.#unplaced(); counts !== undefined; counts = this.#unplaced()) {
        counts.cluster = this.#allocate();
      }
      for (const counts of [...this.#fullCounts, this.#counts]) this.#writeCounts(counts);
      if (!this.#file.isBlockDevice) {
        this.#file.truncate(this.#next * this.#geometry.clusterBytes);
      }
      this.#file.writeAt(new Uint8Array(this.#table.buffer), this.#tableOffset);
      this.#file.writeAt(new Uint8Array(this.#l1.buffer), this.#l1Offset);
      this.#file.sync();
    } finally {
      this.#file.close();
    }
  }

  /** Closes an image that is not whole. */
  abandon(): void {
    this.#file.close();
  }
}
