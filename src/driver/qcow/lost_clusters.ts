import { Errno, errnoOf } from "../../../ffi/errno.ts";
import { Arena } from "../../../ffi/memory.ts";
import { Cluster, clusterSector, packedLength, packedOffset } from "../../qcow/format.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { type ImageContext, REQUEST_SECTORS, SECTOR_BYTES } from "../driver.ts";
import type { QcowFile } from "./qcow_file.ts";

/**
 * Looks for clusters that lie behind the end that the file had when it was opened: the file was cut.
 * Nothing else in the format says so. A new cluster in such a place would be part of the disk twice, so
 * the image gets none. All L2 tables are read for that, once, in front of the first new cluster.
 */
export class LostClusters implements IoOwner {
  readonly #context: ImageContext;
  readonly #file: QcowFile;
  /** A further try is possible: tables are read, or an error of that has been told. */
  readonly #known: () => void;
  #arena: Arena | null = null;
  #isDone = false;
  /** Why the image gets no new clusters; 0: it does, or that is not known yet. */
  #errno = 0;
  /** The tables that are being read: the first, and how many. */
  #table = 0;
  #count = 0;

  constructor(context: ImageContext, file: QcowFile, known: () => void) {
    this.#context = context;
    this.#file = file;
    this.#known = known;
  }

  /** Whether new clusters may be added: 0, an error number, or -1: later. */
  mayAdd(): number {
    if (this.#isDone || this.#errno !== 0) return this.#errno;
    return this.#arena === null ? this.#start() : -1;
  }

  /** Begins to read the tables; without one, all is known. */
  #start(): number {
    const { tableSectors } = this.#file;
    this.#count = 0;
    this.#table = this.#nextTable(0);
    if (this.#table < 0) {
      this.#isDone = true;
      return 0;
    }
    try {
      this.#arena = new Arena(Math.max(REQUEST_SECTORS, tableSectors) * SECTOR_BYTES);
    } catch (error) {
      return errnoOf(error);
    }
    this.#read(this.#arena);
    return -1;
  }

  /** The next table that is in the file; -1: there is none. The L1 table may have millions of entries. */
  #nextTable(from: number): number {
    const { l1 } = this.#file.image;
    for (let table = from; table < l1.length; table++) if (l1[table] !== 0) return table;
    return -1;
  }

  /** Reads the next tables that follow each other in the file. */
  #read(arena: Arena): void {
    const { tableSectors, image: { l1 }, disk: { file } } = this.#file;
    const most = Math.max(1, Math.floor(REQUEST_SECTORS / tableSectors));
    const first = l1[this.#table];
    let count = 1;
    while (count < most && l1[this.#table + count] === first + count * tableSectors) count++;
    this.#count = count;
    this.#context.queue.read(file, first, count * tableSectors, arena.sector, this, 0);
  }

  ioDone(_token: number, _sectors: number, errno: number): void {
    const arena = this.#arena;
    if (arena === null || this.#context.faults.failed) return;
    if (errno !== 0) return this.#end(errno, false);
    if (this.#hasLost(arena)) {
      const { path } = this.#file.disk;
      this.#context.log(
        `${path} was cut: clusters lie behind its end, and it gets no new ones (EIO)`,
      );
      return this.#end(Errno.EIO, true);
    }
    this.#table = this.#nextTable(this.#table + this.#count);
    if (this.#table < 0) this.#end(0, true);
    else this.#read(arena);
  }

  #hasLost({ view }: Arena): boolean {
    const { tableSectors, openedEnd, image: { header: { clusterBits } } } = this.#file;
    const end = this.#count * tableSectors * SECTOR_BYTES;
    for (let at = 0; at < end; at += 8) {
      const place = clusterSector(view, at);
      if (place === Cluster.None || place === Cluster.Wrong) continue;
      if (place !== Cluster.Compressed) {
        if (place >= openedEnd) return true;
      } else {
        const offset = packedOffset(view, at, clusterBits);
        if (offset + packedLength(view, at, clusterBits) > openedEnd * SECTOR_BYTES) return true;
      }
    }
    return false;
  }

  /** An error of a read is told to those that wait; the next one begins again. */
  #end(errno: number, isDone: boolean): void {
    this.release();
    this.#errno = errno;
    this.#isDone = isDone;
    this.#known();
    if (!isDone) this.#errno = 0;
  }

  release(): void {
    this.#arena?.release();
    this.#arena = null;
  }
}
