import { copySectors, zeroSectors } from "../../../ffi/memory.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { type ImageContext, type ImageDriver, REQUEST_SLOTS, type RequestSink } from "../driver.ts";
import { PieceKind } from "../pieces.ts";
import { type ClusterMap, Held } from "./cluster_map.ts";
import type { CopyBuffers } from "./copy_buffers.ts";
import type { Decompressor } from "./decompressor.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import type { Records } from "./records.ts";

const NONE = -1;

/** Where the ends of copies are told. */
export interface CopierOwner {
  /** What surrounds the data of a record is in its place, or, with an errno, is not. */
  copied(record: number, errno: number): void;
}

/**
 * Fills what surrounds the data of a request in a cluster that is given out for it: with what the
 * cluster held before, with what the image below has, or with zeros. One part after the other, each
 * read and then written.
 *
 * Reads of the image below use the slot of the request, which is one that writes: so all pieces of
 * it that end below are those of such reads.
 */
export class Copier implements RequestSink {
  /** The image below; null without a parent. */
  below: ImageDriver | null = null;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: Qcow2File;
  readonly #map: ClusterMap;
  readonly #records: Records;
  readonly #buffers: CopyBuffers;
  readonly #decompressor: Decompressor;
  readonly #owner: CopierOwner;
  /** By record: whether a hole needs no zeros. */
  readonly #isUntouched: Uint8Array;
  /** By slot: sectors that are being read below, the first error, and the records that read them. */
  readonly #left = new Int32Array(REQUEST_SLOTS);
  readonly #error = new Int32Array(REQUEST_SLOTS);
  readonly #readers = new Int32Array(REQUEST_SLOTS).fill(NONE);
  /** Records that wait for a buffer. */
  #firstWaiting = NONE;
  readonly #readOwner: IoOwner = { ioDone: (record, _n, errno) => this.#partRead(record, errno) };
  readonly #writeOwner: IoOwner = {
    ioDone: (record, _n, errno) => this.#partWritten(record, errno),
  };

  constructor(
    { context, sink, file, map, records, buffers, decompressor, owner }: {
      context: ImageContext;
      sink: RequestSink;
      file: Qcow2File;
      map: ClusterMap;
      records: Records;
      buffers: CopyBuffers;
      decompressor: Decompressor;
      owner: CopierOwner;
    },
  ) {
    this.#context = context;
    this.#sink = sink;
    this.#file = file;
    this.#map = map;
    this.#records = records;
    this.#buffers = buffers;
    this.#decompressor = decompressor;
    this.#owner = owner;
    this.#isUntouched = new Uint8Array(records.cluster.length);
  }

  // ---- the sink of the image below ------------------------------------------------------------

  pieceDone(slot: number, sectors: number, errno: number): void {
    if (this.#left[slot] === 0) return this.#sink.pieceDone(slot, sectors, errno);
    if (errno !== 0) this.#error[slot] = errno;
    this.#left[slot] -= sectors;
    if (this.#left[slot] > 0) return;
    const error = this.#error[slot];
    let record = this.#readers[slot];
    this.#error[slot] = 0;
    this.#readers[slot] = NONE;
    while (record !== NONE) {
      const next = this.#records.next[record];
      this.#records.next[record] = NONE;
      this.#partRead(record, error);
      record = next;
    }
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    return this.#sink.extent(slot, sectors, isData);
  }

  statusDone(slot: number, errno: number): void {
    this.#sink.statusDone(slot, errno);
  }

  // ---- parts ----------------------------------------------------------------------------------

  /** Starts to fill what surrounds a record's data. May end at once. */
  start(record: number, isUntouched: boolean): void {
    this.#isUntouched[record] = isUntouched ? 1 : 0;
    this.#copyNext(record);
  }

  #copyNext(record: number): void {
    const records = this.#records;
    for (;;) {
      const isHead = records.headStart[record] < records.headEnd[record];
      const start = isHead ? records.headStart[record] : records.tailStart[record];
      const end = isHead ? records.headEnd[record] : records.tailEnd[record];
      if (start >= end) return this.#end(record, 0);
      const { subclusterSectors } = this.#map.geometry;
      const at = this.#map.entryAt(records.slice[record], records.cluster[record]);
      const sub = Math.floor(start / subclusterSectors);
      const subs = Math.ceil(end / subclusterSectors);
      const run = this.#map.runAt(at, sub, subs);
      const runEnd = Math.min(end, (sub + run) * subclusterSectors);
      const held = this.#map.heldAt(at, sub);
      const isZero = held === Held.Zeros || (held === Held.Nothing && !this.#shows(record, start));
      if (isZero && this.#isUntouched[record] === 1) {
        this.#advance(record, runEnd - start);
        continue;
      }
      const most = isZero ? this.#context.zeros.sectors : this.#buffers.sectors;
      records.partStart[record] = start;
      records.partCount[record] = Math.min(runEnd - start, most);
      if (isZero) return this.#writePart(record, this.#context.zeros.at);
      return this.#readPart(record, held, at);
    }
  }

  /** Whether something below shows through at a sector of a record's cluster. */
  #shows(record: number, inCluster: number): boolean {
    if (this.below === null) return false;
    const sector = this.#records.cluster[record] * this.#file.clusterSectors + inCluster;
    return sector < this.below.sectors;
  }

  #advance(record: number, sectors: number): void {
    const records = this.#records;
    const isHead = records.headStart[record] < records.headEnd[record];
    if (isHead) records.headStart[record] += sectors;
    else records.tailStart[record] += sectors;
  }

  #readPart(record: number, held: number, at: number): void {
    const records = this.#records;
    if (records.buffer[record] === NONE) {
      records.buffer[record] = this.#buffers.take();
      if (records.buffer[record] === NONE) {
        records.next[record] = this.#firstWaiting;
        this.#firstWaiting = record;
        return;
      }
    }
    const memory = this.#buffers.memoryOf(records.buffer[record]);
    const start = records.partStart[record];
    const count = records.partCount[record];
    if (held === Held.Nothing) return this.#readBelow(record, start, count, memory);
    if (held === Held.Compressed) {
      const { pieces } = this.#context;
      const piece = pieces.take(PieceKind.Copy, records.slot[record], 0, count, memory);
      pieces.entry[piece] = record;
      return this.#decompressor.get(piece, at);
    }
    const from = this.#map.sectorAt(at) + start;
    this.#context.queue.read(this.#file.data.file, from, count, memory, this.#readOwner, record);
  }

  #readBelow(record: number, start: number, count: number, memory: number): void {
    const { below } = this;
    const sector = this.#records.cluster[record] * this.#file.clusterSectors + start;
    const there = below === null ? 0 : Math.max(0, Math.min(count, below.sectors - sector));
    if (there < count) zeroSectors(memory + there, count - there);
    if (below === null || there === 0) return this.#partRead(record, 0);
    const slot = this.#records.slot[record];
    this.#left[slot] += there;
    this.#records.next[record] = this.#readers[slot];
    this.#readers[slot] = record;
    below.read(slot, sector, there, memory);
  }

  /** A compressed cluster is in memory, or, with an errno, is not. Gives the piece back. */
  decompressed(piece: number, cluster: number, errno: number): void {
    const { pieces } = this.#context;
    const record = pieces.entry[piece];
    pieces.give(piece);
    if (errno === 0) {
      const start = this.#records.partStart[record];
      const memory = this.#buffers.memoryOf(this.#records.buffer[record]);
      copySectors(memory, cluster + start, this.#records.partCount[record]);
    }
    this.#partRead(record, errno);
  }

  /** Begins a part again for whose cluster no decompressor was free. Gives the piece back. */
  resume(piece: number): void {
    const record = this.#context.pieces.entry[piece];
    this.#context.pieces.give(piece);
    this.#copyNext(record);
  }

  #partRead(record: number, errno: number): void {
    if (errno !== 0) return this.#end(record, errno);
    this.#writePart(record, this.#buffers.memoryOf(this.#records.buffer[record]));
  }

  #writePart(record: number, memory: number): void {
    const records = this.#records;
    const start = records.place[record] + records.partStart[record];
    const count = records.partCount[record];
    this.#context.queue.write(
      this.#file.data.file,
      start,
      count,
      memory,
      this.#writeOwner,
      record,
    );
  }

  #partWritten(record: number, errno: number): void {
    if (errno !== 0) return this.#end(record, errno);
    this.#advance(record, this.#records.partCount[record]);
    this.#copyNext(record);
  }

  #end(record: number, errno: number): void {
    const buffer = this.#records.buffer[record];
    this.#records.buffer[record] = NONE;
    if (buffer !== NONE) this.#buffers.give(buffer);
    this.#owner.copied(record, errno);
    if (buffer !== NONE) this.buffersFree();
  }

  /** Buffers may be free again: goes on with a record that found none. */
  buffersFree(): void {
    const record = this.#firstWaiting;
    if (record === NONE) return;
    this.#firstWaiting = this.#records.next[record];
    this.#records.next[record] = NONE;
    this.#copyNext(record);
  }
}
