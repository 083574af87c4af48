import { ImageFormatError } from "../files/format_error.ts";
import { type OnStorage, osStorage } from "../files/storage.ts";
import { Findings } from "../vhd/check/findings.ts";
import type { CheckResult } from "../vhd/check/check.ts";
import { runEnd, setBits, testBit } from "../vhd/format/bitmap.ts";
import {
  Cluster,
  clusterSector,
  packedLength,
  packedOffset,
  QCOW_HEADER_BYTES,
  SECTOR_BYTES,
  tableBytes,
} from "./format.ts";
import { openQcow, overlapsFront, type QcowImage } from "./image.ts";

/** The largest file whose sectors are all counted: the map of it takes 512 MiB. */
const MOST_MAPPED_BYTES = 2 * 1024 ** 4;

/** What a check finds in an image. */
export interface QcowCheckResult extends CheckResult {
  /** Clusters that the image holds, and how many of them are compressed. */
  readonly clusters: number;
  readonly packedClusters: number;
  /** Room in the file that nothing uses: of writes that failed, or were replaced. */
  readonly unusedBytes: number;
}

/**
 * Checks one image, without its backing file: that each table and cluster lies in the file, and that no
 * two of them meet. Nothing is changed, and a damaged image is a result, not an error.
 *
 * @throws {SystemError} for a file that cannot be read.
 */
export function checkQcow(path: string, { storage = osStorage }: OnStorage = {}): QcowCheckResult {
  const findings = new Findings();
  let image: QcowImage;
  try {
    image = openQcow(path, { storage });
  } catch (error) {
    if (!(error instanceof ImageFormatError)) throw error;
    const { field, offsetBytes } = error.fault;
    findings.error(error.message, field, offsetBytes);
    const none = { clusters: 0, packedClusters: 0, unusedBytes: 0 };
    return { path, valid: false, findings: findings.list(), ...none };
  }
  try {
    const check = new Check(image, findings);
    check.run();
    const { clusters, packedClusters, unusedBytes } = check;
    const valid = !findings.hasErrors;
    return { path, valid, findings: findings.list(), clusters, packedClusters, unusedBytes };
  } finally {
    image.close();
  }
}

class Check {
  clusters = 0;
  packedClusters = 0;
  unusedBytes = 0;
  readonly #image: QcowImage;
  readonly #findings: Findings;
  readonly #fileBytes: number;
  /** A bit for each sector of the file that is used; null for a file that is too large. */
  readonly #used: Uint8Array<ArrayBuffer> | null;
  readonly #sectors: number;

  constructor(image: QcowImage, findings: Findings) {
    this.#image = image;
    this.#findings = findings;
    this.#fileBytes = image.file.sizeBytes();
    this.#sectors = Math.ceil(this.#fileBytes / SECTOR_BYTES);
    this.#used = this.#fileBytes <= MOST_MAPPED_BYTES
      ? new Uint8Array(Math.ceil(this.#sectors / 8))
      : null;
  }

  run(): void {
    const { header, l1 } = this.#image;
    this.#markBytes(0, QCOW_HEADER_BYTES);
    this.#markBytes(header.l1OffsetBytes, 8 * l1.length);
    // A rebase puts the name behind the data.
    if (header.backingOffsetBytes > 0 && header.backingLengthBytes > 0) {
      this.#markBytes(header.backingOffsetBytes, header.backingLengthBytes);
    }
    const bytes = new Uint8Array(tableBytes(header));
    for (let table = 0; table < l1.length; table++) {
      if (l1[table] === 0) continue;
      const isFree = this.#mark(l1[table], bytes.length / SECTOR_BYTES);
      // A table that others overlap is not looked into: they could be millions.
      if (!isFree) {
        this.#overlap(`l1[${table}]`, header.l1OffsetBytes + 8 * table);
        continue;
      }
      bytes.fill(0, this.#image.file.readAt(bytes, l1[table] * SECTOR_BYTES));
      this.#checkTable(table, new DataView(bytes.buffer));
    }
    this.#countUnused();
  }

  #checkTable(table: number, view: DataView): void {
    const { header, l1, sectors } = this.#image;
    const entries = view.byteLength / 8;
    const clusterBytes = 2 ** header.clusterBits;
    for (let i = 0; i < entries; i++) {
      const place = clusterSector(view, 8 * i);
      if (place === Cluster.None) continue;
      const field = `l2[${table * entries + i}]`;
      const at = l1[table] * SECTOR_BYTES + 8 * i;
      if ((table * entries + i) * clusterBytes >= sectors * SECTOR_BYTES) {
        this.#findings.warning(`${field} names a cluster behind the end of the disk`, field, at);
      }
      this.clusters++;
      if (place === Cluster.Compressed) this.#checkPacked(view, i, field, at);
      else this.#checkPlain(place, field, at);
    }
  }

  #checkPlain(place: number, field: string, at: number): void {
    const { header } = this.#image;
    const clusterBytes = 2 ** header.clusterBits;
    const end = place * SECTOR_BYTES + clusterBytes;
    // The file may end within its last cluster.
    const isInside = place > 0 && place * SECTOR_BYTES < this.#fileBytes &&
      end <= Math.ceil(this.#fileBytes / clusterBytes) * clusterBytes &&
      !overlapsFront(header, place * SECTOR_BYTES, clusterBytes);
    if (!isInside) this.#findings.error(`${field} is no place for a cluster`, field, at);
    else if (!this.#mark(place, clusterBytes / SECTOR_BYTES)) this.#overlap(field, at);
  }

  #checkPacked(view: DataView, index: number, field: string, at: number): void {
    const { clusterBits } = this.#image.header;
    const offset = packedOffset(view, 8 * index, clusterBits);
    const length = packedLength(view, 8 * index, clusterBits);
    this.packedClusters++;
    if (length === 0 || offset + length > this.#fileBytes) {
      this.#findings.error(`${field} is no place for a compressed cluster`, field, at);
      return;
    }
    // Compressed clusters may share a sector.
    this.#markBytes(offset, length);
  }

  #overlap(field: string, at: number): void {
    if (!this.#findings.hasRoom(field.replace(/\[.*/, ""))) return;
    this.#findings.error(`${field} names room that something else has`, field, at);
  }

  /** Marks the sectors that bytes lie in. */
  #markBytes(offset: number, length: number): void {
    const first = Math.floor(offset / SECTOR_BYTES);
    this.#mark(first, Math.ceil((offset + length) / SECTOR_BYTES) - first);
  }

  /** Marks sectors of the file as used; false when one of them was. */
  #mark(sector: number, count: number): boolean {
    const end = Math.min(this.#sectors, sector + count);
    const used = this.#used;
    if (used === null || end <= sector) return true;
    const isFree = !testBit(used, sector) && runEnd(used, sector, end) === end;
    setBits(used, sector, end - sector);
    return isFree;
  }

  #countUnused(): void {
    const used = this.#used;
    if (used === null) return;
    for (let at = 0; at < this.#sectors;) {
      const end = runEnd(used, at, this.#sectors);
      if (!testBit(used, at)) this.unusedBytes += (end - at) * SECTOR_BYTES;
      at = end;
    }
  }
}
