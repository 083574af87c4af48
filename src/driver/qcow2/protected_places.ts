import type { Qcow2Image } from "../../qcow2/image/image.ts";
import { SECTOR_BYTES } from "../driver.ts";

/** The most structures that are protected. */
const MOST = 8;

/**
 * The places of structures that are in one piece: the header, the L1 table, the refcount table, the
 * snapshot table, the directory of bitmaps. A cluster that is written may not lie there: the tables
 * would contradict each other, and writing would destroy the image.
 */
export class ProtectedPlaces {
  readonly #start = new Float64Array(MOST);
  readonly #end = new Float64Array(MOST);
  readonly #names: string[] = [];

  /** @param keepsBitmaps Whether the directory of bitmaps still counts after a write. */
  constructor(
    { header, geometry, snapshotTable, bitmaps, l1 }: Qcow2Image,
    keepsBitmaps: boolean,
  ) {
    const { clusterBytes } = geometry;
    this.#add("the header", 0, clusterBytes);
    this.#add("the L1 table", Number(header.l1TableOffset), l1.byteLength);
    this.setRefcountTable(
      Number(header.refcountTableOffset),
      header.refcountTableClusters * clusterBytes,
    );
    this.#add("the snapshot table", snapshotTable.offsetBytes, snapshotTable.lengthBytes);
    if (bitmaps !== null && keepsBitmaps) {
      this.#add("the directory of bitmaps", bitmaps.directoryOffset, bitmaps.directoryBytes);
    }
  }

  #add(name: string, offsetBytes: number, lengthBytes: number): void {
    if (lengthBytes === 0) return;
    this.#put(this.#names.length, name, offsetBytes, lengthBytes);
  }

  #put(index: number, name: string, offsetBytes: number, lengthBytes: number): void {
    this.#start[index] = Math.floor(offsetBytes / SECTOR_BYTES);
    this.#end[index] = Math.ceil((offsetBytes + lengthBytes) / SECTOR_BYTES);
    this.#names[index] = name;
  }

  /** The refcount table is there now. */
  setRefcountTable(offsetBytes: number, lengthBytes: number): void {
    const known = this.#names.indexOf("the refcount table");
    const index = known < 0 ? this.#names.length : known;
    this.#put(index, "the refcount table", offsetBytes, lengthBytes);
  }

  /** The structure that sectors of the file overlap: its index, or -1. */
  overlap(sector: number, count: number): number {
    const { length } = this.#names;
    for (let i = 0; i < length; i++) {
      if (sector < this.#end[i] && sector + count > this.#start[i]) return i;
    }
    return -1;
  }

  /** The name of a structure. */
  nameOf(index: number): string {
    return this.#names[index];
  }
}
