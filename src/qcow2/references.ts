import { AssertionError } from "../../ffi/assert.ts";

const PART_BITS = 14;
const PART = 2 ** PART_BITS;
/** A count that is in the map of large counts. */
const LARGE = 0xffff;
const NONE = new Uint16Array(PART);

/**
 * How often clusters of a file are referred to. Parts of the file without references take no memory,
 * others 2 bytes for each cluster.
 */
export class References {
  readonly #parts = new Map<number, Uint16Array<ArrayBuffer>>();
  readonly #large = new Map<number, number>();
  /** The part that was looked at last. */
  #lastPart = -1;
  #last = NONE;

  #partOf(cluster: number): Uint16Array<ArrayBuffer> {
    const part = Math.floor(cluster / PART);
    if (part === this.#lastPart) return this.#last;
    const counts = this.#parts.get(part);
    if (counts === undefined) return NONE;
    this.#lastPart = part;
    this.#last = counts;
    return counts;
  }

  /** More references to a cluster. */
  add(cluster: number, times = 1): void {
    let counts = this.#partOf(cluster);
    if (counts === NONE) {
      counts = new Uint16Array(PART);
      const part = Math.floor(cluster / PART);
      this.#parts.set(part, counts);
      this.#lastPart = part;
      this.#last = counts;
    }
    this.#set(counts, cluster, this.of(cluster) + times);
  }

  #set(counts: Uint16Array<ArrayBuffer>, cluster: number, count: number): void {
    const index = cluster % PART;
    if (count < LARGE) {
      if (counts[index] === LARGE) this.#large.delete(cluster);
      counts[index] = count;
      return;
    }
    counts[index] = LARGE;
    this.#large.set(cluster, count);
  }

  /** One reference to a cluster less. */
  remove(cluster: number): void {
    const count = this.of(cluster);
    if (count === 0) throw new AssertionError("A reference is taken away that is not there");
    this.#set(this.#partOf(cluster), cluster, count - 1);
  }

  /** References to a cluster. */
  of(cluster: number): number {
    const count = this.#partOf(cluster)[cluster % PART];
    return count === LARGE ? this.#large.get(cluster) ?? 0 : count;
  }

  /** How many clusters from one on have a reference. */
  countIn(first: number, clusters: number): number {
    let found = 0;
    for (let cluster = first; cluster < first + clusters;) {
      const end = Math.min(first + clusters, (Math.floor(cluster / PART) + 1) * PART);
      const counts = this.#partOf(cluster);
      for (; counts !== NONE && cluster < end; cluster++) if (counts[cluster % PART] > 0) found++;
      cluster = end;
    }
    return found;
  }

  /** How many clusters have a reference. */
  get used(): number {
    let found = 0;
    for (const counts of this.#parts.values()) for (const count of counts) if (count > 0) found++;
    return found;
  }

  /** Calls back with each cluster from one on that is referred to. */
  eachFrom(first: number, visit: (cluster: number) => void): void {
    for (const [part, counts] of this.#parts) {
      if ((part + 1) * PART <= first) continue;
      for (let i = Math.max(0, first - part * PART); i < counts.length; i++) {
        if (counts[i] > 0) visit(part * PART + i);
      }
    }
  }

  /** One more than the last cluster with a reference; 0 without one. */
  get end(): number {
    let end = 0;
    for (const [part, counts] of this.#parts) {
      let last = counts.length;
      while (last > 0 && counts[last - 1] === 0) last--;
      if (last > 0) end = Math.max(end, part * PART + last);
    }
    return end;
  }
}
