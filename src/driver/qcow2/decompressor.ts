import { Errno, messageOf } from "../../../ffi/errno.ts";
import { Arena, zeroSectors } from "../../../ffi/memory.ts";
import { decompressCluster } from "../../qcow2/format/compression.ts";
import { compressedOffset, compressedSectors } from "../../qcow2/format/entries.ts";
import { type ImageContext, SECTOR_BYTES } from "../driver.ts";
import { PieceLists } from "../pieces.ts";
import type { ClusterMap } from "./cluster_map.ts";
import { FlightOwners, type Flights } from "./flights.ts";
import type { Qcow2File } from "./qcow2_file.ts";

const NONE = -1;
/** Clusters that are decompressed at once, or kept. */
const WORKERS = 8;
/** A compressed cluster takes at most twice its own room, by the width of the field. */
const MOST_FACTOR = 2;

/** What becomes of pieces that wait for a cluster. */
export interface DecompressorOwner {
  /** The cluster is at a sector of I/O memory: takes what the piece wants of it. */
  decompressed(piece: number, memorySector: number): void;
  /** The cluster cannot be had. */
  notDecompressed(piece: number, errno: number): void;
}

/**
 * Reads compressed clusters. The last ones are kept, as a cluster is mostly read in several parts.
 * Decompressing allocates, and takes the time of the loop: it is done once for a cluster.
 */
export class Decompressor {
  readonly #context: ImageContext;
  readonly #file: Qcow2File;
  readonly #map: ClusterMap;
  readonly #flights: Flights;
  readonly #owner: DecompressorOwner;
  readonly #owners: FlightOwners;
  readonly #inSectors: number;
  readonly #arena: Arena;
  /** By worker: byte offset of the compressed data; -1: none. */
  readonly #offset = new Float64Array(WORKERS).fill(NONE);
  readonly #sectors = new Int32Array(WORKERS);
  readonly #isReading = new Uint8Array(WORKERS);
  readonly #used = new Float64Array(WORKERS);
  readonly #waiting = new PieceLists(WORKERS);
  /** Pieces that found no worker; `entry` of a piece is the byte of its entry in the map's cache. */
  readonly #starved = new PieceLists(1);
  #clock = 0;
  /** Begins a piece again that found no worker. */
  resume: (piece: number) => void = () => {};

  constructor(
    { context, file, map, flights, owner }: {
      context: ImageContext;
      file: Qcow2File;
      map: ClusterMap;
      flights: Flights;
      owner: DecompressorOwner;
    },
  ) {
    this.#context = context;
    this.#file = file;
    this.#map = map;
    this.#flights = flights;
    this.#owner = owner;
    this.#owners = new FlightOwners(flights, {
      ioDone: (worker, _sectors, errno) => this.#read(worker, errno),
    });
    this.#inSectors = MOST_FACTOR * file.clusterSectors + 1;
    this.#arena = new Arena(WORKERS * (this.#inSectors + file.clusterSectors) * SECTOR_BYTES);
  }

  #inAt(worker: number): number {
    return this.#arena.sector + worker * this.#inSectors;
  }

  #outAt(worker: number): number {
    return this.#arena.sector + WORKERS * this.#inSectors + worker * this.#file.clusterSectors;
  }

  /** Gets the compressed cluster whose entry is at a byte of the map's cache, for a piece. */
  get(piece: number, at: number): void {
    // A data file has whole clusters only.
    if (this.#file.hasDataFile) return this.#owner.notDecompressed(piece, Errno.EIO);
    const { clusterBits } = this.#map.geometry;
    const { view } = this.#map.cache;
    const high = view.getUint32(at, false);
    const offset = compressedOffset(high, view.getUint32(at + 4, false), clusterBits);
    const known = this.#offset.indexOf(offset);
    if (known !== NONE) {
      this.#used[known] = ++this.#clock;
      if (this.#isReading[known] === 0) return this.#owner.decompressed(piece, this.#outAt(known));
      return this.#context.pieces.append(this.#waiting, known, piece);
    }
    const worker = this.#idle();
    if (worker === NONE) return this.#context.pieces.append(this.#starved, 0, piece);
    this.#used[worker] = ++this.#clock;
    this.#offset[worker] = offset;
    this.#isReading[worker] = 1;
    this.#context.pieces.append(this.#waiting, worker, piece);
    const start = Math.floor(offset / SECTOR_BYTES);
    const sectors = compressedSectors(high, clusterBits);
    this.#sectors[worker] = sectors;
    // The last sectors may lie past the end of the file; they hold nothing then.
    const end = Math.min(this.#file.endSector, this.#file.clusters * this.#file.clusterSectors);
    const there = Math.min(sectors, end - start);
    if (there <= 0) return this.#read(worker, Errno.EIO);
    if (there < sectors && end === this.#file.endSector) {
      this.#file.readPastEnd(end, sectors - there, this.#inAt(worker) + there);
    } else if (there < sectors) zeroSectors(this.#inAt(worker) + there, sectors - there);
    this.#context.queue.read(
      this.#file.disk.file,
      start,
      there,
      this.#inAt(worker),
      this.#flights.begin(this.#owners),
      worker,
    );
  }

  /** The worker that was used longest ago and is not reading; -1: none. */
  #idle(): number {
    let oldest = NONE;
    for (let worker = 0; worker < WORKERS; worker++) {
      if (this.#isReading[worker] === 1) continue;
      if (oldest === NONE || this.#used[worker] < this.#used[oldest]) oldest = worker;
    }
    return oldest;
  }

  #read(worker: number, errno: number): void {
    const result = errno === 0 ? this.#decompress(worker) : errno;
    this.#isReading[worker] = 0;
    const { pieces } = this.#context;
    const first = this.#waiting.takeAll(worker);
    if (result !== 0) this.#offset[worker] = NONE;
    for (let piece = first; piece !== NONE;) {
      const next = pieces.next(piece);
      if (result === 0) this.#owner.decompressed(piece, this.#outAt(worker));
      else this.#owner.notDecompressed(piece, result);
      piece = next;
    }
    // Only as many as find a worker: many thousands may wait where clusters are small.
    while (!this.#starved.isEmpty(0) && this.#idle() !== NONE) {
      this.resume(pieces.takeFirst(this.#starved, 0));
    }
  }

  #decompress(worker: number): number {
    const { bytes } = this.#arena;
    const offset = this.#offset[worker];
    const start = worker * this.#inSectors * SECTOR_BYTES;
    const { header: { compressionType: type }, geometry: { clusterBytes } } = this.#file.image;
    try {
      const from = start + offset % SECTOR_BYTES;
      const packed = bytes.subarray(from, start + this.#sectors[worker] * SECTOR_BYTES);
      const content = decompressCluster(packed, { type, clusterBytes });
      bytes.set(content, (this.#outAt(worker) - this.#arena.sector) * SECTOR_BYTES);
      return 0;
    } catch (error) {
      const what =
        `Cannot read the compressed cluster at byte ${offset} of ${this.#file.disk.path}`;
      this.#context.log(`${what}: ${messageOf(error)}`);
      return Errno.EIO;
    }
  }

  /** Unmaps its memory. */
  release(): void {
    this.#arena.release();
  }
}
