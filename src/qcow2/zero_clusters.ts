import { OFLAG_COMPRESSED_HIGH, OFLAG_ZERO_LOW, sectorOfEntry } from "./format/entries.ts";
import { SECTOR_BYTES } from "./format/units.ts";
import type { Qcow2Image } from "./image/image.ts";
import type { References } from "./references.ts";

/** Takes clusters out of tables that read the same without being there. */
export class ZeroClusters {
  readonly #image: Qcow2Image;
  readonly #references: References;
  readonly #cluster: Uint8Array<ArrayBuffer>;

  constructor(image: Qcow2Image, references: References) {
    this.#image = image;
    this.#references = references;
    this.#cluster = new Uint8Array(image.geometry.clusterBytes);
  }

  /**
   * Changes an L2 table in memory. The clusters that it leads to no more lose their references.
   *
   * @returns How many clusters were taken out, and whether the table has changed.
   */
  take(table: DataView): { taken: number; hasChanged: boolean } {
    const { l2EntryBytes, l2Entries, clusterSectors } = this.#image.geometry;
    let [taken, hasChanged] = [0, false];
    for (let i = 0; i < l2Entries; i++) {
      const at = i * l2EntryBytes;
      const high = table.getUint32(at, false);
      if ((high & OFLAG_COMPRESSED_HIGH) !== 0) continue;
      const sector = sectorOfEntry(high, table.getUint32(at + 4, false));
      if (sector === 0) {
        const isMark = table.getUint32(at + 4, false) !== 0 && this.#image.backing === null;
        if (isMark && this.#clear(table, at)) hasChanged = true;
        continue;
      }
      const cluster = sector / clusterSectors;
      if (this.#references.of(cluster) !== 1) continue;
      if (!this.#isZero(table, at, sector) || !this.#clear(table, at)) continue;
      this.#references.remove(cluster);
      taken++;
    }
    return { taken, hasChanged: hasChanged || taken > 0 };
  }

  /** Whether all that an entry's cluster shows is zeros. */
  #isZero(table: DataView, at: number, sector: number): boolean {
    const { hasSubclusters, subclusterSectors, subclusters } = this.#image.geometry;
    if (!hasSubclusters && (table.getUint32(at + 4, false) & OFLAG_ZERO_LOW) !== 0) return true;
    const data = hasSubclusters ? table.getUint32(at + 12, false) : 1;
    const cluster = this.#cluster;
    if (data === 0) return true;
    const got = this.#image.file.readAt(cluster, sector * SECTOR_BYTES);
    cluster.fill(0, got);
    for (let k = 0; k < subclusters; k++) {
      if ((data >>> k & 1) === 0) continue;
      const start = k * subclusterSectors * SECTOR_BYTES;
      const part = cluster.subarray(start, start + subclusterSectors * SECTOR_BYTES);
      if (!isZero(part)) return false;
    }
    return true;
  }

  /** Makes an entry show the same without a cluster; false when its version has no such entry. */
  #clear(table: DataView, at: number): boolean {
    const { header, backing, geometry: { hasSubclusters } } = this.#image;
    if (hasSubclusters) {
      const zeros = table.getUint32(at + 8, false) | table.getUint32(at + 12, false);
      table.setUint32(at + 8, backing === null ? 0 : zeros >>> 0, false);
      table.setUint32(at + 12, 0, false);
    } else if (backing !== null && header.version < 3) return false;
    table.setUint32(at, 0, false);
    table.setUint32(at + 4, hasSubclusters || backing === null ? 0 : OFLAG_ZERO_LOW, false);
    return true;
  }
}

/** Whether bytes, whose number is a multiple of 4, are zeros. */
export function isZero({ buffer, byteOffset, byteLength }: Uint8Array<ArrayBuffer>): boolean {
  const words = new Int32Array(buffer, byteOffset, byteLength / 4);
  for (let i = 0; i < words.length; i++) if (words[i] !== 0) return false;
  return true;
}
