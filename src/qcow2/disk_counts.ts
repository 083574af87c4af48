import { Errno, SystemError } from "../../ffi/errno.ts";
import { sectorOfEntry } from "./format/entries.ts";
import { refcountAt, setRefcountAt } from "./format/refcounts.ts";
import { SECTOR_BYTES } from "./format/units.ts";
import type { Qcow2Image } from "./image/image.ts";
import type { References } from "./references.ts";

/** The reference counts in the file, which offline work changes in their places. */
export class DiskCounts {
  readonly #image: Qcow2Image;
  readonly #perBlock: number;
  readonly #bits: number;
  readonly #clusterBytes: number;

  constructor(image: Qcow2Image) {
    this.#image = image;
    this.#perBlock = image.geometry.refcountsPerBlock;
    this.#bits = image.geometry.refcountBits;
    this.#clusterBytes = image.geometry.clusterBytes;
  }

  /** Entries of the refcount table. */
  get groups(): number {
    return this.#image.refcountTable.byteLength / 8;
  }

  /** The cluster of the block that counts a group of clusters; 0 without one. */
  blockOf(group: number): number {
    const { refcountTable: table, geometry: { clusterSectors } } = this.#image;
    if (group >= this.groups) return 0;
    const high = table.getUint32(8 * group, false);
    return sectorOfEntry(high, table.getUint32(8 * group + 4, false)) / clusterSectors;
  }

  /** Whether a block counts a cluster. */
  isCounted(cluster: number): boolean {
    return this.blockOf(Math.floor(cluster / this.#perBlock)) > 0;
  }

  /**
   * Makes the counts of clusters 1 that nothing refers to: lost ones may have others. They are to be
   * durable before something leads there.
   */
  raise(clusters: readonly number[]): void {
    const groups = new Map<number, number[]>();
    for (const cluster of clusters) {
      const group = Math.floor(cluster / this.#perBlock);
      const indices = groups.get(group) ?? [];
      indices.push(cluster % this.#perBlock);
      groups.set(group, indices);
    }
    for (const [group, indices] of groups) {
      this.#change(group, indices, () => 1);
    }
  }

  /** Makes the counts of all clusters what they are to be: none of them is to become larger. */
  settle(references: References): void {
    const all = Array.from({ length: this.#perBlock }, (_, index) => index);
    for (let group = 0; group < this.groups; group++) {
      if (this.blockOf(group) > 0) {
        this.#change(group, all, (_count, cluster) => references.of(cluster));
      }
    }
  }

  /** Writes the sectors of a block in which a count changes. */
  #change(
    group: number,
    indices: readonly number[],
    wanted: (count: number, cluster: number) => number,
  ): void {
    const { file, path } = this.#image;
    const at = this.blockOf(group) * this.#clusterBytes;
    if (at === 0) throw new SystemError(Errno.EINVAL, `Cannot count a cluster of ${path}`);
    const bytes = new Uint8Array(this.#clusterBytes);
    const view = new DataView(bytes.buffer);
    file.readAt(bytes, at);
    const changed = new Set<number>();
    for (const index of indices) {
      const now = refcountAt(view, 0, index, this.#bits);
      const count = wanted(now, group * this.#perBlock + index);
      if (count === now) continue;
      setRefcountAt(view, 0, index, this.#bits, count);
      changed.add(Math.floor(index * this.#bits / 8 / SECTOR_BYTES));
    }
    for (const sector of changed) {
      const start = sector * SECTOR_BYTES;
      file.writeAt(bytes.subarray(start, start + SECTOR_BYTES), at + start);
    }
  }
}
