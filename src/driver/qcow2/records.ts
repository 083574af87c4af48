import { assert } from "../../../ffi/assert.ts";
import { PieceLists } from "../pieces.ts";

const NONE = -1;
/** A power of 2, as in `slice_cache.ts`. */
const BUCKETS = 1024;
/** Changes of clusters that an image can have under way. */
export const MOST_RECORDS = 1024;

/** What a change makes of a cluster. */
export const Change = {
  /** Data at a place in the file. */
  Data: 0,
  /** Zeros. */
  Zeros: 1,
  /** Nothing: zeros, as there is no image below. */
  Nothing: 2,
} as const;

/**
 * Changes of entries of L2 tables on their way to the file, at most one for each cluster: fields by
 * number. A record is taken when a request needs the change, and given back when the entry in the
 * file has it, or when it failed.
 */
export class Records {
  readonly cluster = new Float64Array(MOST_RECORDS);
  /** Entry of the map's cache with the slice that changes; pinned. */
  readonly slice = new Int16Array(MOST_RECORDS);
  readonly change = new Uint8Array(MOST_RECORDS);
  /** Sector of the file at which the cluster's data begins. */
  readonly place = new Float64Array(MOST_RECORDS);
  /** Whether the place was given out for this change. */
  readonly isNew = new Uint8Array(MOST_RECORDS);
  /**
   * Whether the place was counted in advance and is a hole, and the cluster reads as zeros, so that the
   * entry may be durable without the data.
   */
  readonly isHole = new Uint8Array(MOST_RECORDS);
  /** Whether what the cluster held before loses a reference. */
  readonly dropsOld = new Uint8Array(MOST_RECORDS);
  /** Subclusters that get data. */
  readonly subclusters = new Int32Array(MOST_RECORDS);
  /** Whether all that the place does not get is zero in it, so that further writes may join. */
  readonly isOpen = new Uint8Array(MOST_RECORDS);
  /** Operations and steps that have not ended. */
  readonly left = new Int32Array(MOST_RECORDS);
  readonly error = new Int32Array(MOST_RECORDS);
  /** Whether it is part of a commit. */
  readonly isCommitting = new Uint8Array(MOST_RECORDS);
  /** Next record of a list: of those that are ready, or change the same sector. */
  readonly next = new Int32Array(MOST_RECORDS);
  /** Pieces of requests that end with the record. */
  readonly pieces = new PieceLists(MOST_RECORDS);
  /** Pieces that begin again when the record has ended. */
  readonly waiting = new PieceLists(MOST_RECORDS);
  /** What is copied into the cluster around the data: from where to where, sectors in the cluster. */
  readonly headStart = new Int32Array(MOST_RECORDS);
  readonly headEnd = new Int32Array(MOST_RECORDS);
  readonly tailStart = new Int32Array(MOST_RECORDS);
  readonly tailEnd = new Int32Array(MOST_RECORDS);
  /** The part that is being copied, and the buffer that it is in; -1: none. */
  readonly partStart = new Int32Array(MOST_RECORDS);
  readonly partCount = new Int32Array(MOST_RECORDS);
  readonly buffer = new Int32Array(MOST_RECORDS);
  readonly slot = new Int32Array(MOST_RECORDS);
  readonly #bucket = new Int16Array(BUCKETS).fill(NONE);
  readonly #nextInBucket = new Int16Array(MOST_RECORDS);
  #free = 0;
  #used = 0;

  constructor() {
    for (let i = 0; i < MOST_RECORDS; i++) this.next[i] = i + 1 < MOST_RECORDS ? i + 1 : NONE;
  }

  /** How many are taken. */
  get used(): number {
    return this.#used;
  }

  /** The record of a cluster; -1 without one. */
  find(cluster: number): number {
    let record = this.#bucket[cluster & (BUCKETS - 1)];
    while (record !== NONE && this.cluster[record] !== cluster) record = this.#nextInBucket[record];
    return record;
  }

  /** Takes a record for a cluster that has none; -1: all are taken. */
  take(cluster: number, change: number): number {
    const record = this.#free;
    if (record === NONE) return NONE;
    assert(this.find(cluster) === NONE, "A cluster gets a second change while one is under way");
    this.#free = this.next[record];
    this.#used++;
    this.cluster[record] = cluster;
    this.#nextInBucket[record] = this.#bucket[cluster & (BUCKETS - 1)];
    this.#bucket[cluster & (BUCKETS - 1)] = record;
    this.change[record] = change;
    this.place[record] = 0;
    this.isNew[record] = 0;
    this.isHole[record] = 0;
    this.dropsOld[record] = 0;
    this.subclusters[record] = 0;
    this.isOpen[record] = 0;
    this.left[record] = 0;
    this.error[record] = 0;
    this.isCommitting[record] = 0;
    this.next[record] = NONE;
    this.headStart[record] = 0;
    this.headEnd[record] = 0;
    this.tailStart[record] = 0;
    this.tailEnd[record] = 0;
    this.buffer[record] = NONE;
    return record;
  }

  /** Gives a record back. */
  give(record: number): void {
    assert(this.pieces.isEmpty(record), "A change of a cluster ends in front of its requests");
    assert(this.waiting.isEmpty(record), "Requests wait for a change of a cluster that is over");
    const bucket = this.cluster[record] & (BUCKETS - 1);
    if (this.#bucket[bucket] === record) this.#bucket[bucket] = this.#nextInBucket[record];
    else {
      let before = this.#bucket[bucket];
      while (this.#nextInBucket[before] !== record) before = this.#nextInBucket[before];
      this.#nextInBucket[before] = this.#nextInBucket[record];
    }
    this.cluster[record] = NONE;
    this.next[record] = this.#free;
    this.#free = record;
    this.#used--;
  }
}
