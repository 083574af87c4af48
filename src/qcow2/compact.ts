import { Errno, SystemError } from "../../ffi/errno.ts";
import type { ProgressListener } from "../files/progress.ts";
import { type OnStorage, osStorage } from "../files/storage.ts";
import { checkQcow2 } from "./check.ts";
import { DiskCounts } from "./disk_counts.ts";
import { giveBack } from "./free_room.ts";
import { sectorOfEntry } from "./format/entries.ts";
import { Autoclear, HeaderField, Incompatible } from "./format/header.ts";
import { SECTOR_BYTES } from "./format/units.ts";
import { hasFeature } from "./image/header_reader.ts";
import { openQcow2, type Qcow2Image } from "./image/image.ts";
import { MovableTables } from "./movable_tables.ts";
import { ClusterMoves } from "./moves.ts";
import { changeHeader } from "./rebuild.ts";
import type { References } from "./references.ts";
import { isZero, ZeroClusters } from "./zero_clusters.ts";

/** Rounds of moves: each may free refcount blocks, whose room the next one fills. */
const MOST_ROUNDS = 8;

/** What was won. */
export interface CompactedQcow2 {
  /** Clusters that held only zeros, and tables that led to nothing. */
  readonly freedClusters: number;
  readonly movedClusters: number;
  /** Length of the file, before and after. */
  readonly beforeBytes: number;
  readonly afterBytes: number;
}

/**
 * Gives room back: clusters that read as zeros are taken out of the tables, clusters at the end move
 * into free room, and the file is cut. The disk reads the same at every moment, and this may be killed
 * and repeated: at most clusters are lost then, which the next run wins back.
 *
 * What a snapshot or a bitmap uses, and compressed clusters, stay where they are.
 *
 * @throws {SystemError} EINVAL for an image with errors; EOPNOTSUPP for one whose data is in another
 * file; EBUSY when a tapdisk uses the image.
 */
export function compactQcow2(
  path: string,
  { storage = osStorage, onProgress }: OnStorage & { readonly onProgress?: ProgressListener } = {},
): CompactedQcow2 {
  const image = openQcow2(path, { storage, readOnly: false });
  try {
    const what = `Cannot compact ${path}`;
    if (image.dataFile !== null) {
      throw new SystemError(Errno.EOPNOTSUPP, `${what} (its data is in another file)`);
    }
    image.file.refuseReaders();
    const references = soundReferences(image, what);
    clearUnknownFeatures(image);
    const compaction = new Compaction(image, references, onProgress);
    return compaction.run();
  } finally {
    image.close();
  }
}

/**
 * The references to all clusters of an image that is in order, but for lost clusters.
 *
 * @throws {SystemError} EINVAL for another one.
 */
export function soundReferences(image: Qcow2Image, what: string): References {
  const { errors, errorCount, references } = checkQcow2(image);
  const isDirty = hasFeature(image.header, Incompatible.Dirty);
  if (errorCount === 0 && !isDirty) return references;
  throw new SystemError(Errno.EINVAL, `${what}: ${errors[0] ?? "it was not closed"}`, {
    hint: "mend it by td-util check --repair",
  });
}

/** Features that are not known are not kept true. */
function clearUnknownFeatures({ file, header }: Qcow2Image): void {
  const kept = header.autoclearFeatures & BigInt(Autoclear.Bitmaps | Autoclear.RawDataFile);
  if (kept === header.autoclearFeatures) return;
  changeHeader(file, [{ offset: HeaderField.AutoclearFeatures, value: kept }]);
}

class Compaction {
  readonly #image: Qcow2Image;
  readonly #references: References;
  readonly #counts: DiskCounts;
  readonly #onProgress: ProgressListener | undefined;
  readonly #clusterBytes: number;
  readonly #tables: MovableTables;
  #freed = 0;

  constructor(image: Qcow2Image, references: References, onProgress?: ProgressListener) {
    this.#image = image;
    this.#references = references;
    this.#counts = new DiskCounts(image);
    this.#tables = new MovableTables(image);
    this.#onProgress = onProgress;
    this.#clusterBytes = image.geometry.clusterBytes;
  }

  run(): CompactedQcow2 {
    const { file } = this.#image;
    const beforeBytes = file.isBlockDevice
      ? this.#references.end * this.#clusterBytes
      : file.sizeBytes();
    this.#freeZeros();
    const moves = new ClusterMoves({
      image: this.#image,
      references: this.#references,
      counts: this.#counts,
      tables: this.#tables,
    });
    for (let round = 0; round < MOST_ROUNDS; round++) {
      const dropped = this.#dropBlocks();
      if (moves.run() + dropped === 0) break;
    }
    this.#counts.settle(this.#references);
    file.sync();
    giveBack(this.#image, this.#references);
    const afterBytes = this.#references.end * this.#clusterBytes;
    return { freedClusters: this.#freed, movedClusters: moves.moved, beforeBytes, afterBytes };
  }

  /** Takes clusters of zeros out of the active tables, and tables without anything. */
  #freeZeros(): void {
    const { l1, geometry: { clusterSectors }, file } = this.#image;
    const zeros = new ZeroClusters(this.#image, this.#references);
    const bytes = new Uint8Array(this.#clusterBytes);
    const table = new DataView(bytes.buffer);
    const entries = l1.byteLength / 8;
    const emptied = new Set<number>();
    for (let i = 0; i < entries; i++) {
      this.#onProgress?.(i, entries);
      const high = l1.getUint32(8 * i, false);
      const sector = sectorOfEntry(high, l1.getUint32(8 * i + 4, false));
      // A table that a snapshot shares is not changed.
      if (sector === 0 || this.#references.of(sector / clusterSectors) !== 1) continue;
      bytes.fill(0);
      file.readAt(bytes, sector * SECTOR_BYTES);
      const { taken, hasChanged } = zeros.take(table);
      this.#freed += taken;
      if (isZero(bytes)) {
        l1.setUint32(8 * i, 0, false);
        l1.setUint32(8 * i + 4, 0, false);
        this.#references.remove(sector / clusterSectors);
        this.#freed++;
        emptied.add(Math.floor(8 * i / SECTOR_BYTES));
      } else if (hasChanged) file.writeAt(bytes, sector * SECTOR_BYTES);
    }
    this.#onProgress?.(entries, entries);
    this.#tables.writeL1(emptied);
    // Nothing is written to a cluster before the tables on disk have given it up.
    file.sync();
  }

  /** Takes refcount blocks that count nothing, but themselves perhaps, out of the refcount table. */
  #dropBlocks(): number {
    const { refcountTable: table, geometry: { refcountsPerBlock }, file } = this.#image;
    const emptied = new Set<number>();
    let dropped = 0;
    for (let group = 0; group < this.#counts.groups; group++) {
      const block = this.#counts.blockOf(group);
      if (block === 0) continue;
      const first = group * refcountsPerBlock;
      const isOwn = Math.floor(block / refcountsPerBlock) === group;
      const own = isOwn ? 1 : 0;
      if (this.#references.countIn(first, refcountsPerBlock) > own) continue;
      table.setUint32(8 * group, 0, false);
      table.setUint32(8 * group + 4, 0, false);
      emptied.add(Math.floor(8 * group / SECTOR_BYTES));
      this.#references.remove(block);
      dropped++;
    }
    this.#tables.writeRefcountTable(emptied);
    if (dropped > 0) file.sync();
    this.#freed += dropped;
    return dropped;
  }
}
