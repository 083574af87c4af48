/** Clusters that are counted in advance at once, at most; there can be twice as many. */
const MOST = 256;
/** Bytes of the file that they may take. */
const MOST_BYTES = 16 << 20;

/**
 * Clusters of a hole at the end of the file that have a reference before they are given out. Once that
 * reference is durable, and so is the length of the file, an entry that leads to such a cluster needs no
 * sync: the cluster is counted whenever the power fails, and reads as zeros until it has its data.
 *
 * A crash leaves those that were not given out with a reference too many. So there are few of them
 * while few clusters are given out.
 */
export class Reserve {
  /** How many are counted at once at most. */
  readonly #most: number;
  #first = 0;
  #end = 0;
  /** The references of those in front of this cluster are durable. */
  #durableEnd = 0;
  #committingEnd = 0;
  #givenOut = 0;

  constructor(clusterBytes: number) {
    this.#most = Math.max(1, Math.min(MOST, Math.floor(MOST_BYTES / clusterBytes)));
  }

  /** How many are left. */
  get count(): number {
    return this.#end - this.#first;
  }

  /** The last that is left. */
  get last(): number {
    return this.#end - 1;
  }

  /** Clusters from here on have no durable reference in advance. */
  get durableEnd(): number {
    return this.#durableEnd;
  }

  /** A cluster is given out, from the reserve or not. */
  noteGivenOut(): void {
    this.#givenOut++;
  }

  /** How many are to be added now; they begin with `cluster`. */
  wanted(cluster: number): number {
    const wanted = Math.min(this.#most, this.#givenOut);
    const fits = this.count === 0 || this.#end === cluster;
    return fits && this.count < wanted ? wanted : 0;
  }

  /** Adds clusters that have a reference in memory now. All that were added before lie in front. */
  add(cluster: number, count: number): void {
    if (this.count === 0) this.#first = cluster;
    this.#end = cluster + count;
  }

  /** Takes the first that is left. */
  take(): number {
    return this.#first++;
  }

  /** Takes the last that is left. */
  takeLast(): void {
    this.#end--;
  }

  /** Forgets what is left. */
  forget(): void {
    this.#first = this.#end;
  }

  /** A commit starts, with all references that are not in the file. */
  commitStarts(): void {
    this.#committingEnd = this.#end;
  }

  /** The references were written, and then a sync ended well. */
  synced(): void {
    this.#durableEnd = this.#committingEnd;
  }
}
