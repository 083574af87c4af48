import { constants, inflateRawSync } from "node:zlib";
import { Errno } from "../../../ffi/errno.ts";
import { Arena, copySectors } from "../../../ffi/memory.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { type ImageContext, SECTOR_BYTES } from "../driver.ts";
import type { QcowFile } from "./qcow_file.ts";

/** Clusters that are read at once. */
const MOST_AT_ONCE = 8;
const NONE = -1;

/** Where the ends of reads of compressed clusters are told. */
export interface InflaterOwner {
  /** The cluster of a place has been read, or not. The owner frees the place. */
  inflated(place: number, errno: number): void;
  /** Another cluster can be read. */
  inflaterFree(): void;
}

/** Reads compressed clusters. This allocates: the runtime's library makes new memory each time. */
export class Inflater implements IoOwner {
  readonly #context: ImageContext;
  readonly #file: QcowFile;
  readonly #clusterBytes: number;
  readonly #owner: InflaterOwner;
  /** For each place: the compressed bytes with the sectors around them, then the cluster. */
  readonly #arena: Arena;
  readonly #placeBytes: number;
  readonly #packedBytes: number;
  readonly #token = new Int32Array(MOST_AT_ONCE);
  readonly #skip = new Int32Array(MOST_AT_ONCE);
  readonly #length = new Int32Array(MOST_AT_ONCE);
  readonly #isUsed = new Uint8Array(MOST_AT_ONCE);

  constructor(
    context: ImageContext,
    { file, owner }: { file: QcowFile; owner: InflaterOwner },
  ) {
    const clusterBytes = file.clusterSectors * SECTOR_BYTES;
    this.#context = context;
    this.#file = file;
    this.#clusterBytes = clusterBytes;
    this.#owner = owner;
    this.#packedBytes = clusterBytes + 2 * SECTOR_BYTES;
    this.#placeBytes = this.#packedBytes + clusterBytes;
    this.#arena = new Arena(MOST_AT_ONCE * this.#placeBytes);
  }

  /**
   * Reads a cluster. Its end may be told before this returns.
   *
   * @returns 0; -1 when all places are in use; below that: -1 - errno.
   */
  start(token: number, offsetBytes: number, lengthBytes: number): number {
    const first = Math.floor(offsetBytes / SECTOR_BYTES);
    const end = Math.ceil((offsetBytes + lengthBytes) / SECTOR_BYTES);
    const { endSector, tail } = this.#file;
    if (lengthBytes === 0 || lengthBytes > this.#clusterBytes) return NONE - Errno.EIO;
    if (end > endSector + (tail === null ? 0 : 1)) return NONE - Errno.EIO;
    const place = this.#isUsed.indexOf(0);
    if (place < 0) return NONE;
    this.#isUsed[place] = 1;
    this.#token[place] = token;
    this.#skip[place] = offsetBytes - first * SECTOR_BYTES;
    this.#length[place] = lengthBytes;
    const at = this.#arena.sector + place * this.#placeBytes / SECTOR_BYTES;
    // The file may end within a sector, which the queue cannot read.
    const whole = Math.min(end, endSector) - first;
    if (tail !== null && end > endSector) copySectors(at + whole, tail.sector, 1);
    if (whole === 0) this.ioDone(place, 0, 0);
    else this.#context.queue.read(this.#file.disk.file, first, whole, at, this, place);
    return 0;
  }

  /** Whether a place is free. */
  get hasRoom(): boolean {
    return this.#isUsed.includes(0);
  }

  /** The first sector of I/O memory of the cluster in a place. */
  clusterAt(place: number): number {
    return this.#arena.sector + (place * this.#placeBytes + this.#packedBytes) / SECTOR_BYTES;
  }

  ioDone(place: number, _sectors: number, errno: number): void {
    this.#owner.inflated(place, errno === 0 ? this.#inflate(place) : errno);
  }

  /** What the read of a place was started with. */
  tokenOf(place: number): number {
    return this.#token[place];
  }

  #inflate(place: number): number {
    const at = place * this.#placeBytes;
    const from = at + this.#skip[place];
    const { bytes } = this.#arena;
    try {
      const cluster = inflateRawSync(bytes.subarray(from, from + this.#length[place]), {
        windowBits: 12,
        maxOutputLength: this.#clusterBytes,
        finishFlush: constants.Z_SYNC_FLUSH,
      });
      if (cluster.length !== this.#clusterBytes) return Errno.EIO;
      bytes.set(cluster, at + this.#packedBytes);
      return 0;
    } catch {
      return Errno.EIO;
    }
  }

  /** The cluster in a place is not needed any more. */
  free(place: number): void {
    this.#isUsed[place] = 0;
    this.#owner.inflaterFree();
  }

  release(): void {
    this.#arena.release();
  }
}
