import type { LayerExtent } from "./descriptions.ts";

/** A part of a disk in equal buckets, and how much of each bucket each image holds. */
export interface Buckets {
  readonly layerCount: number;
  /** Where the part begins: a multiple of `bucketBytes`. */
  readonly startBytes: number;
  /** Where it ends; the last bucket may be shorter than the others. */
  readonly endBytes: number;
  /** A power of two. */
  readonly bucketBytes: number;
  readonly count: number;
  /** Bytes that an image holds of a bucket, at `bucket * layerCount + layer`. */
  readonly heldBytes: Float64Array;
  /** Bytes that each image holds of the part. */
  readonly totals: Float64Array;
}

/** A table is 32 MiB at most. */
const MOST_ENTRIES = 2 ** 22;
const LEAST_BUCKET_BYTES = 512;

/** The number of a layer; -1 where none holds data, or one that is not counted. */
export function layerOf({ layer }: LayerExtent, layerCount: number): number {
  return layer === null || layer < 0 || layer >= layerCount ? -1 : layer;
}

/** Which part of a disk is counted, and how finely. */
export interface BucketPlan {
  readonly sizeBytes: number;
  readonly layerCount: number;
  /**
   * How many buckets there may be. There are fewer where the part has fewer sectors, or the chain is so long
   * that the table would not be small.
   */
  readonly most: number;
  /** The part; all of the disk by default. */
  readonly startBytes?: number;
  readonly lengthBytes?: number;
  /** The smallest bucket: a power of two from 512 on. */
  readonly leastBytes?: number;
}

/**
 * Counts how much each image holds of each part of a disk. Buckets are powers of two, so that the edges of
 * an image's blocks are edges of buckets.
 */
export class BucketCounter {
  /** What was counted until now. */
  readonly buckets: Buckets;

  constructor(
    { sizeBytes, layerCount, most, startBytes = 0, lengthBytes = sizeBytes, leastBytes = 4096 }:
      BucketPlan,
  ) {
    const allowed = Math.max(1, Math.min(most, Math.floor(MOST_ENTRIES / Math.max(1, layerCount))));
    const wished = Math.min(Math.max(0, startBytes), sizeBytes);
    const endBytes = Math.min(sizeBytes, wished + Math.max(0, lengthBytes));
    let bucketBytes = Math.max(LEAST_BUCKET_BYTES, leastBytes);
    let start = 0;
    let count = 0;
    for (;; bucketBytes *= 2) {
      start = Math.floor(wished / bucketBytes) * bucketBytes;
      count = Math.ceil((endBytes - start) / bucketBytes);
      if (count <= allowed) break;
    }
    this.buckets = {
      layerCount,
      startBytes: start,
      endBytes,
      bucketBytes,
      count,
      heldBytes: new Float64Array(count * layerCount),
      totals: new Float64Array(layerCount),
    };
  }

  /** Counts a range. What lies outside the part is left out. */
  add(extent: LayerExtent): void {
    const { layerCount, startBytes, endBytes, bucketBytes, heldBytes, totals } = this.buckets;
    const layer = layerOf(extent, layerCount);
    const end = Math.min(endBytes, extent.offsetBytes + extent.lengthBytes);
    for (let at = Math.max(startBytes, extent.offsetBytes); layer >= 0 && at < end;) {
      const bucket = Math.floor((at - startBytes) / bucketBytes);
      const next = Math.min(end, startBytes + (bucket + 1) * bucketBytes);
      heldBytes[bucket * layerCount + layer] += next - at;
      totals[layer] += next - at;
      at = next;
    }
  }
}

/** Counts all ranges of a disk; see {@linkcode BucketCounter}. */
export function countBuckets(extents: Iterable<LayerExtent>, plan: BucketPlan): Buckets {
  const counter = new BucketCounter(plan);
  for (const extent of extents) counter.add(extent);
  return counter.buckets;
}

/** What a bucket, or several neighbours, hold. */
export interface BucketShare {
  /** The image that holds most of it; -1 where no image holds data. */
  readonly layer: number;
  /** How much of it holds data, from 0 to 1. */
  readonly share: number;
}

/**
 * What buckets hold together.
 *
 * @param only The image that counts; without it all of them do.
 */
export function shareOf(
  { layerCount, startBytes, endBytes, bucketBytes, heldBytes }: Buckets,
  { bucket, count = 1, only }: { bucket: number; count?: number; only?: number },
): BucketShare {
  const start = startBytes + bucket * bucketBytes;
  const bytes = Math.min(endBytes, start + count * bucketBytes) - start;
  let held = 0;
  let best = -1;
  let most = 0;
  for (let layer = only ?? 0; layer < (only === undefined ? layerCount : only + 1); layer++) {
    let sum = 0;
    for (let i = 0; i < count; i++) sum += heldBytes[(bucket + i) * layerCount + layer] ?? 0;
    held += sum;
    if (sum > most) [best, most] = [layer, sum];
  }
  return { layer: best, share: bytes <= 0 ? 0 : Math.min(1, held / bytes) };
}
