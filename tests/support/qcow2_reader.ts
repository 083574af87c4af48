import { sectorOfEntry } from "../../src/qcow2/format/entries.ts";
import type { Storage } from "../../src/files/storage.ts";
import { openQcow2, type Qcow2Image } from "../../src/qcow2/image/image.ts";

const SECTOR_BYTES = 512;

/** Reads an image without parent and compressed clusters, sector by sector, from its tables. */
export class Qcow2Reader {
  readonly image: Qcow2Image;

  constructor(storage: Storage, path: string) {
    this.image = openQcow2(path, { storage });
  }

  /** Byte of the file at which a sector lies; -1: it is a hole; -2: zeros. */
  placeOf(sector: number): number {
    const { geometry, l1, file } = this.image;
    const { clusterSectors, l2Entries, l2EntryBytes, hasSubclusters, subclusterSectors } = geometry;
    const cluster = Math.floor(sector / clusterSectors);
    const index = Math.floor(cluster / l2Entries);
    const high = l1.getUint32(8 * index, false);
    const table = sectorOfEntry(high, l1.getUint32(8 * index + 4, false)) * SECTOR_BYTES;
    if (table === 0) return -1;
    const bytes = new Uint8Array(l2EntryBytes);
    file.readAt(bytes, table + (cluster % l2Entries) * l2EntryBytes);
    const entry = new DataView(bytes.buffer);
    const [entryHigh, entryLow] = [entry.getUint32(0, false), entry.getUint32(4, false)];
    const inCluster = sector % clusterSectors;
    const place = (sectorOfEntry(entryHigh, entryLow) + inCluster) * SECTOR_BYTES;
    if (hasSubclusters) {
      const bit = 1 << Math.floor(inCluster / subclusterSectors);
      if ((entry.getUint32(12, false) & bit) !== 0) return place;
      return (entry.getUint32(8, false) & bit) !== 0 ? -2 : -1;
    }
    if ((entryLow & 1) !== 0) return -2;
    return place >= SECTOR_BYTES * clusterSectors ? place : -1;
  }

  read(into: Uint8Array<ArrayBuffer>, sector: number): void {
    into.fill(0);
    for (let i = 0; i < into.length / SECTOR_BYTES; i++) {
      const place = this.placeOf(sector + i);
      if (place < 0) continue;
      this.image.file.readAt(into.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES), place);
    }
  }

  close(): void {
    this.image.close();
  }
}
