import {
  compressedOffset,
  compressedSectors,
  highOfSector,
  lowOfSector,
  OFLAG_COMPRESSED_HIGH,
  OFLAG_COPIED_HIGH,
  OFLAG_ZERO_LOW,
} from "../../qcow2/format/entries.ts";
import { SECTOR_BYTES } from "../driver.ts";
import type { ClusterMap } from "./cluster_map.ts";
import type { Drops } from "./drops.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { Change, type Records } from "./records.ts";

const SECTORS_PER_BYTE = 1 / SECTOR_BYTES;

/** Makes the entries of L2 tables that changes of clusters lead to. */
export class EntryWriter {
  readonly #map: ClusterMap;
  readonly #records: Records;
  readonly #file: Qcow2File;
  readonly #drops: Drops;

  constructor(
    { map, records, file, drops }: {
      map: ClusterMap;
      records: Records;
      file: Qcow2File;
      drops: Drops;
    },
  ) {
    this.#map = map;
    this.#records = records;
    this.#file = file;
    this.#drops = drops;
  }

  #entryOf(record: number): number {
    return this.#map.entryAt(this.#records.slice[record], this.#records.cluster[record]);
  }

  /** The sector of the map's cache that has a record's entry. */
  sectorInCache(record: number): number {
    return Math.floor(this.#entryOf(record) * SECTORS_PER_BYTE);
  }

  /**
   * Puts the new entry of a record's cluster into a copy of its sector.
   *
   * @param shift Where in `view` the copy is, relative to the map's cache, bytes.
   */
  put(record: number, view: DataView, shift: number): void {
    const at = this.#entryOf(record) + shift;
    const { hasSubclusters } = this.#map.geometry;
    const change = this.#records.change[record];
    if (change === Change.Data) {
      const place = this.#records.place[record];
      view.setUint32(at, (highOfSector(place) | OFLAG_COPIED_HIGH) >>> 0, false);
      view.setUint32(at + 4, lowOfSector(place), false);
      if (!hasSubclusters) return;
      const bits = this.#records.subclusters[record];
      view.setUint32(at + 8, (view.getUint32(at + 8, false) & ~bits) >>> 0, false);
      view.setUint32(at + 12, (view.getUint32(at + 12, false) | bits) >>> 0, false);
      return;
    }
    const isZero = change === Change.Zeros;
    view.setUint32(at, 0, false);
    view.setUint32(at + 4, isZero && !hasSubclusters ? OFLAG_ZERO_LOW : 0, false);
    if (!hasSubclusters) return;
    view.setUint32(at + 8, isZero ? 0xffffffff : 0, false);
    view.setUint32(at + 12, 0, false);
  }

  /** The file has the new entry of a record: so has the map, and the old place loses a reference. */
  apply(record: number): void {
    if (this.#records.dropsOld[record] === 1) this.#dropOld(this.#entryOf(record));
    this.put(record, this.#map.cache.view, 0);
  }

  #dropOld(at: number): void {
    const { view } = this.#map.cache;
    const { clusterBits, clusterBytes } = this.#map.geometry;
    const high = view.getUint32(at, false);
    if ((high & OFLAG_COMPRESSED_HIGH) === 0) {
      const sector = this.#map.sectorAt(at);
      if (sector !== 0) this.#drops.add(Math.floor(sector / this.#file.clusterSectors));
      return;
    }
    const offset = compressedOffset(high, view.getUint32(at + 4, false), clusterBits);
    const start = offset - offset % SECTOR_BYTES;
    const end = start + compressedSectors(high, clusterBits) * SECTOR_BYTES;
    const first = Math.floor(start / clusterBytes);
    for (let cluster = first; cluster * clusterBytes < end; cluster++) this.#drops.add(cluster);
  }
}
