import { assert } from "../../../ffi/assert.ts";
import { Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import { Arena, copySectors, zeroSectors } from "../../../ffi/memory.ts";
import type { DiskFile } from "../../queue/disk_files.ts";
import { sectorOfEntry } from "../../qcow2/format/entries.ts";
import { MAX_HOST_OFFSET } from "../../qcow2/format/units.ts";
import type { Qcow2Image } from "../../qcow2/image/image.ts";
import { SECTOR_BYTES } from "../driver.ts";

/** The file is lengthened by so many clusters at once, as a call for each would cost time. */
const CLUSTERS_AT_ONCE = 64;

/**
 * The file of an open image: how long it is, and what of it is known to be zero.
 */
export class Qcow2File {
  readonly image: Qcow2Image;
  readonly disk: DiskFile;
  /** Where the data of guests is: this file, or the data file. */
  readonly data: DiskFile;
  readonly clusterSectors: number;
  /** The first sector that is not whole in the file with the data of guests. */
  #endSector: number;
  /** Of an image that is read: the part of that sector that is in the file, then zeros; null when nothing of it is there. */
  readonly #tail: Arena | null;
  /** Clusters that the file has room for. */
  #clusters: number;
  /** The first cluster that has held nothing since before the file was as long: it is a hole. */
  #untouched: number;
  /** L2 tables that lay behind the end of the file when it was opened. */
  readonly #missingTables: Uint8Array | null;
  /** Whether refcount blocks lie there. The file must not become longer: their zeros would be counts then. */
  readonly hasMissingBlocks: boolean;
  #canPunch = true;
  readonly #log: (message: string) => void;

  constructor(
    image: Qcow2Image,
    { disk, data, readOnly, log }: {
      disk: DiskFile;
      /** The data file; null for an image without one. */
      data: DiskFile | null;
      readOnly: boolean;
      log: (message: string) => void;
    },
  ) {
    this.image = image;
    this.disk = disk;
    this.data = data ?? disk;
    this.#log = log;
    const { clusterBytes, clusterSectors } = image.geometry;
    this.clusterSectors = clusterSectors;
    const sizeBytes = disk.sizeBytes();
    const whole = Math.ceil(sizeBytes / clusterBytes);
    // What is missing of the last cluster reads as zeros; then it can be read like the others.
    if (!readOnly) lengthen(disk, whole * clusterBytes);
    if (!readOnly && data !== null) lengthen(data, Math.ceil(image.sizeBytes / SECTOR_BYTES) * 512);
    const dataBytes = this.data.sizeBytes();
    this.#endSector = Math.floor(dataBytes / SECTOR_BYTES);
    this.#tail = readOnly ? this.#readTail(dataBytes) : null;
    this.#clusters = disk.isBlockDevice ? Math.floor(sizeBytes / clusterBytes) : whole;
    this.#untouched = disk.isBlockDevice ? Infinity : whole;
    // The length of a file that is read stays: reads of these tables fail.
    const endSector = whole * clusterSectors;
    this.#missingTables = readOnly ? null : entriesBehind(image.l1, endSector);
    const mayGrow = !readOnly && !disk.isBlockDevice;
    this.hasMissingBlocks = mayGrow && entriesBehind(image.refcountTable, endSector) !== null;
    if (this.hasMissingBlocks) {
      log(`${disk.path} lacks reference counts behind its end, and gets no new clusters (EIO)`);
    }
  }

  #readTail(sizeBytes: number): Arena | null {
    const bytes = new Uint8Array(sizeBytes % SECTOR_BYTES);
    if (bytes.length === 0) return null;
    const { path, identity } = this.data;
    const file = this.image.storage.open(path, "read", { same: identity });
    try {
      file.readAt(bytes, sizeBytes - bytes.length);
    } finally {
      file.close();
    }
    const tail = new Arena(SECTOR_BYTES);
    tail.bytes.set(bytes);
    return tail;
  }

  /** The first sector that is not whole in the file with the data of guests: it reads as zeros. */
  get endSector(): number {
    return this.#endSector;
  }

  /** Whether the data is in a file of its own. */
  get hasDataFile(): boolean {
    return this.data !== this.disk;
  }

  /** Clusters that the file has room for: new ones lie behind them. */
  get clusters(): number {
    return this.#clusters;
  }

  /** Whether a cluster that is given out now is known to be a hole. */
  isUntouched(cluster: number): boolean {
    return cluster >= this.#untouched;
  }

  /**
   * Whether the L2 table that an entry of the L1 table leads to was not in the file. It cannot be read: the
   * zeros that are there when the file has become longer are no table.
   */
  isTableMissing(table: number): boolean {
    return this.#missingTables !== null && this.#missingTables[table] === 1;
  }

  /**
   * A cluster is given out. The file is made as long as that takes.
   *
   * @throws {SystemError} ENOSPC on a device that is too small, EFBIG, or what the file says.
   */
  take(cluster: number): void {
    this.#reachOver(cluster);
    if (cluster >= this.#untouched) this.#untouched = cluster + 1;
  }

  /** Makes a file as long as a cluster takes that is not given out yet; false: it cannot be. */
  makeRoom(cluster: number): boolean {
    try {
      this.#reachOver(cluster);
      return true;
    } catch {
      // The error is told when there is no room for a cluster that is needed.
      return false;
    }
  }

  #reachOver(cluster: number): void {
    const { clusterBytes } = this.image.geometry;
    if (cluster >= this.#clusters) {
      if (this.disk.isBlockDevice) {
        throw new SystemError(Errno.ENOSPC, `Cannot find room on ${this.disk.path}`);
      }
      if ((cluster + 1) * clusterBytes > MAX_HOST_OFFSET) {
        throw new SystemError(Errno.EFBIG, `Cannot find room in ${this.disk.path}`);
      }
      const clusters = cluster + CLUSTERS_AT_ONCE;
      this.disk.truncate(clusters * clusterBytes);
      this.#clusters = clusters;
      if (!this.hasDataFile) this.#endSector = clusters * this.clusterSectors;
    }
  }

  /**
   * A cluster that the tables name, and that lies behind the end of the file, is written. The file is
   * made as long as that takes: it may not be cut there later. False when that cannot be done.
   */
  reach(cluster: number): boolean {
    if (this.hasMissingBlocks) return false;
    try {
      this.take(cluster);
      return true;
    } catch (error) {
      this.#log(`${this.disk.path} cannot be made longer: ${messageOf(error)}`);
      return false;
    }
  }

  /** Frees the room of a cluster that nothing refers to. */
  punch(cluster: number, count: number): void {
    if (!this.#canPunch) return;
    const { clusterBytes } = this.image.geometry;
    try {
      this.#canPunch = this.disk.punchHole(cluster * clusterBytes, count * clusterBytes);
    } catch (error) {
      this.#canPunch = false;
      this.#log(`${this.disk.path} cannot give room back: ${messageOf(error)}`);
    }
  }

  /** Reads sectors that lie behind `endSector` of the file, where they are all zeros but the first. */
  readPastEnd(sector: number, count: number, memorySector: number): void {
    assert(sector >= this.endSector, "A read past the end of a file starts in front of it");
    zeroSectors(memorySector, count);
    if (this.#tail !== null && sector === this.endSector) {
      copySectors(memorySector, this.#tail.sector, 1);
    }
  }

  /** Cuts the room behind the last cluster that was given out, and syncs. Throws `SystemError`. */
  finish(): void {
    try {
      if (this.#untouched < this.#clusters) this.#cut();
      this.image.file.sync();
    } finally {
      this.close();
    }
  }

  #cut(): void {
    try {
      this.disk.truncate(this.#untouched * this.image.geometry.clusterBytes);
    } catch (error) {
      // A full filesystem that copies on write refuses it. Nothing refers to the room.
      this.#log(`${this.disk.path} cannot be made shorter: ${messageOf(error)}`);
    }
  }

  /** Closes the files without writing anything. */
  close(): void {
    this.#tail?.release();
    try {
      this.image.close();
    } finally {
      // A close that fails has closed. The locks are with the other descriptors.
      try {
        if (this.hasDataFile) this.data.close();
      } finally {
        this.disk.close();
      }
    }
  }
}

/** Makes a regular file as long as that; what is added reads as zeros. */
function lengthen(file: DiskFile, lengthBytes: number): void {
  if (!file.isBlockDevice && file.sizeBytes() < lengthBytes) file.truncate(lengthBytes);
}

/** Marks entries of a table that lead to a sector or behind it; null when none does. */
function entriesBehind(table: DataView, endSector: number): Uint8Array | null {
  let marks: Uint8Array | null = null;
  for (let at = 0; at + 8 <= table.byteLength; at += 8) {
    const sector = sectorOfEntry(table.getUint32(at, false), table.getUint32(at + 4, false));
    if (sector < endSector) continue;
    marks ??= new Uint8Array(Math.floor(table.byteLength / 8));
    marks[at / 8] = 1;
  }
  return marks;
}
