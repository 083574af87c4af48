import { assert } from "../../../ffi/assert.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import type { ImageContext } from "../driver.ts";
import { PieceLists } from "../pieces.ts";
import type { ClusterMap } from "./cluster_map.ts";
import type { CopyBuffers } from "./copy_buffers.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { type Refcounts, WAIT } from "./refcounts.ts";

const NONE = -1;
/** Tables that can be made at once. */
export const MOST_TABLES = 8;
/** Operations that making tables can have under way. */
export const TABLE_OPERATIONS = MOST_TABLES;

/** Where the ends are told. */
export interface TableOwner {
  /** The content of a table is in the file, or, with an errno, is not. */
  tableWritten(errno: number): void;
  /** Nothing leads to a cluster that a table was to have. */
  unused(cluster: number): void;
}

/**
 * Makes L2 tables: empty ones where there is none, and copies of those that snapshots share. The
 * pieces that need a table wait for it here. A table that could not be made gives its place back, unless
 * the file may lead there.
 */
export class Tables implements IoOwner {
  /** By job: the index in the L1 table; -1: no job. */
  readonly table = new Int32Array(MOST_TABLES).fill(NONE);
  /** By job: sector of the file at which the new table begins. */
  readonly place = new Float64Array(MOST_TABLES);
  /** By job: pieces that wait for the table. */
  readonly waiting = new PieceLists(MOST_TABLES);
  readonly #state = new Uint8Array(MOST_TABLES);
  readonly #written = new Int32Array(MOST_TABLES);
  readonly #part = new Int32Array(MOST_TABLES);
  readonly #isReading = new Uint8Array(MOST_TABLES);
  readonly #buffer = new Int32Array(MOST_TABLES).fill(NONE);
  readonly #context: ImageContext;
  readonly #file: Qcow2File;
  readonly #map: ClusterMap;
  readonly #refcounts: Refcounts;
  readonly #buffers: CopyBuffers;
  readonly #owner: TableOwner;
  #ready = 0;
  #writing = 0;

  constructor(
    { context, file, map, refcounts, buffers, owner }: {
      context: ImageContext;
      file: Qcow2File;
      map: ClusterMap;
      refcounts: Refcounts;
      buffers: CopyBuffers;
      owner: TableOwner;
    },
  ) {
    this.#context = context;
    this.#file = file;
    this.#map = map;
    this.#refcounts = refcounts;
    this.#buffers = buffers;
    this.#owner = owner;
  }

  /** Whether tables wait to be pointed at. */
  get hasReady(): boolean {
    return this.#ready > 0;
  }

  /** Whether nothing is being written. */
  get isIdle(): boolean {
    return this.#writing === 0 && this.#ready === 0;
  }

  /** Whether a job waits to be pointed at. */
  isReady(job: number): boolean {
    return this.#state[job] === State.Ready;
  }

  #find(table: number): number {
    for (let job = 0; job < MOST_TABLES; job++) if (this.table[job] === table) return job;
    return NONE;
  }

  /**
   * Makes a table, unless it is being made.
   *
   * @returns The job that pieces can wait for; -1: wait for anything; below: -1 - errno.
   */
  want(table: number): number {
    const known = this.#find(table);
    if (known !== NONE) return known;
    const job = this.table.indexOf(NONE);
    if (job === NONE) return NONE;
    const isCopy = this.#map.tableSector(table) !== 0;
    // First what is given back easily: the place would be lost with a table that cannot be made now.
    const buffer = isCopy ? this.#buffers.take() : NONE;
    if (isCopy && buffer === NONE) return NONE;
    const cluster = this.#refcounts.allocate();
    if (cluster < 0) {
      if (buffer !== NONE) this.#buffers.give(buffer);
      return cluster === WAIT ? NONE : cluster;
    }
    this.table[job] = table;
    this.place[job] = cluster * this.#file.clusterSectors;
    this.#buffer[job] = buffer;
    this.#state[job] = State.Writing;
    this.#written[job] = 0;
    this.#isReading[job] = 0;
    this.#writing++;
    this.#writePart(job);
    return job;
  }

  #writePart(job: number): void {
    const { clusterSectors } = this.#file;
    const done = this.#written[job];
    const { queue, zeros } = this.#context;
    const { file } = this.#file.disk;
    const buffer = this.#buffer[job];
    if (buffer === NONE) {
      // The room for the whole table is there afterwards: its entries never lack room.
      const count = Math.min(zeros.sectors, clusterSectors - done);
      this.#part[job] = count;
      return queue.write(file, this.place[job] + done, count, zeros.at, this, job);
    }
    const memory = this.#buffers.memoryOf(buffer);
    if (this.#isReading[job] === 1) {
      this.#isReading[job] = 0;
      return queue.write(file, this.place[job] + done, this.#part[job], memory, this, job);
    }
    this.#isReading[job] = 1;
    this.#part[job] = Math.min(this.#buffers.sectors, clusterSectors - done);
    const from = this.#map.tableSector(this.table[job]) + done;
    queue.read(file, from, this.#part[job], memory, this, job);
  }

  ioDone(job: number, _sectors: number, errno: number): void {
    if (errno !== 0) return this.#wrote(job, errno);
    if (this.#isReading[job] === 0) this.#written[job] += this.#part[job];
    if (this.#written[job] < this.#file.clusterSectors) return this.#writePart(job);
    this.#wrote(job, 0);
  }

  #wrote(job: number, errno: number): void {
    this.#writing--;
    if (this.#buffer[job] !== NONE) this.#buffers.give(this.#buffer[job]);
    this.#buffer[job] = NONE;
    if (errno === 0) {
      this.#state[job] = State.Ready;
      this.#ready++;
    } else this.#failed(job, errno, false);
    this.#owner.tableWritten(errno);
  }

  /** Ends the pieces that wait for a job. Set by the owner of the pieces. */
  failPieces: (first: number, errno: number) => void = () => {};

  /** A job failed: its pieces end with the error. What they start then may want the table again. */
  #failed(job: number, errno: number, isInFile: boolean): void {
    const first = this.waiting.takeAll(job);
    this.#end(job);
    if (!isInFile) this.#owner.unused(this.place[job] / this.#file.clusterSectors);
    this.failPieces(first, errno);
  }

  #end(job: number): void {
    this.#state[job] = State.None;
    this.table[job] = NONE;
  }

  /** A ready job is being pointed at. */
  commit(job: number): void {
    assert(this.#state[job] === State.Ready, "A table is pointed at that is not written");
    this.#state[job] = State.Committing;
    this.#ready--;
  }

  /**
   * The L1 table points at the table of a job, or, with an errno, it does not.
   *
   * @param isInFile Whether it may, with an errno.
   */
  committed(job: number, errno: number, isInFile: boolean): void {
    if (errno !== 0) return this.#failed(job, errno, isInFile);
    this.#end(job);
  }
}

const State = { None: 0, Writing: 1, Ready: 2, Committing: 3 } as const;
