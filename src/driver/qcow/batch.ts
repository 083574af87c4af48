import { assert } from "../../../ffi/assert.ts";

/** Runs of new clusters in one batch. */
export const MOST_RUNS = 64;
/** Sectors of tables that a batch changes. */
export const MOST_SECTORS = 64;

/** New clusters of one batch. A run is clusters of one table that one request writes to. */
export class Batch {
  /** How many runs there are. */
  size = 0;
  readonly slot = new Int32Array(MOST_RUNS);
  /** What the request writes, on the disk. */
  readonly sector = new Float64Array(MOST_RUNS);
  readonly count = new Int32Array(MOST_RUNS);
  /** The clusters, by the first one's number on the disk. */
  readonly cluster = new Float64Array(MOST_RUNS);
  readonly clusters = new Int32Array(MOST_RUNS);
  readonly table = new Int32Array(MOST_RUNS);
  /** Where the table is in the cache. */
  readonly entry = new Int32Array(MOST_RUNS);
  /** Sector of the file at which the clusters lie. */
  readonly place = new Float64Array(MOST_RUNS);
  /** Operations that have not ended. */
  readonly left = new Int32Array(MOST_RUNS);
  readonly errno = new Int32Array(MOST_RUNS);
  /** Where in I/O memory the rest of the first and of the last cluster is; -1: nothing is written. */
  readonly head = new Int32Array(MOST_RUNS);
  readonly tail = new Int32Array(MOST_RUNS);
  /** Whether what surrounds the data is being read below. */
  readonly isReading = new Uint8Array(MOST_RUNS);
  /** The place in the inflater that is held until the end; -1 without one. */
  readonly packed = new Int32Array(MOST_RUNS);

  /** Adds a run; returns its number. */
  add(slot: number, sector: number, count: number, clusterSectors: number): number {
    assert(this.size < MOST_RUNS, "A batch of new clusters is full");
    const run = this.size++;
    this.slot[run] = slot;
    this.sector[run] = sector;
    this.count[run] = count;
    this.cluster[run] = Math.floor(sector / clusterSectors);
    this.clusters[run] = Math.ceil((sector + count) / clusterSectors) - this.cluster[run];
    this.left[run] = 0;
    this.errno[run] = 0;
    this.head[run] = -1;
    this.tail[run] = -1;
    this.packed[run] = -1;
    this.isReading[run] = 0;
    return run;
  }

  /** Whether a run has one of these clusters. */
  has(cluster: number, clusters: number): boolean {
    for (let run = 0; run < this.size; run++) {
      const first = this.cluster[run];
      if (first < cluster + clusters && cluster < first + this.clusters[run]) return true;
    }
    return false;
  }

  /** A run whose table is not in the file yet; -1 without one. */
  runOfTable(table: number): number {
    for (let run = 0; run < this.size; run++) if (this.table[run] === table) return run;
    return -1;
  }
}
