import { type Done, type SystemError, systemError } from "../../ffi/errno.ts";
import { SECTOR_BYTES } from "../../ffi/memory.ts";
import type { Compressed, Compressors } from "./compressors.ts";
import type { Engine } from "./engine.ts";
import { InOrder, type OrderedSink } from "./in_order.ts";
import type { CompressedImage, PutBytes, SequentialImage } from "./kind.ts";
import type { OpenImage } from "./open_image.ts";
import { QueuedWrites } from "./queued_writes.ts";
import { type Piece, walkImage } from "./walk.ts";
import type { WorkOptions } from "./work.ts";
import { eachData, UNIT_SECTORS } from "./zeros.ts";

/** The most writes of one piece: parts of 4 KiB with zeros between them, some of them in two clusters. */
const WRITES_OF_PIECE = 128;

/** Clusters for each compressor that wait for it, so that it never waits for them. */
const JOBS_FOR_ONE = 8;

/** A copy into an image that is written from start to end. */
export interface SequentialCopy extends WorkOptions {
  readonly source: OpenImage;
  readonly detectZeros: boolean;
  /** The most requests under way. */
  readonly slots?: number;
}

/**
 * Writes all that a disk holds to a new image, from start to end; returns the sectors that were written.
 * The image is closed, also when that fails.
 */
export async function copySequentially(
  engine: Engine,
  image: SequentialImage,
  copy: SequentialCopy,
): Promise<number> {
  const sink = new PlainSink(engine, image, copy.detectZeros);
  return await copyInto(engine, { image, copy, sink });
}

/** The same with compressed clusters. */
export async function copyCompressed(
  engine: Engine,
  image: CompressedImage,
  copy: SequentialCopy & { readonly compressors: Compressors },
): Promise<number> {
  const sink = new CompressingSink(engine, image, copy);
  return await copyInto(engine, { image, copy, sink });
}

interface Sink extends OrderedSink {
  /** Sectors that were taken. */
  readonly written: number;
  /** Operations of the disk queue that a piece needs. */
  readonly operations: number;
  /** Ends what is under way after the last piece. */
  end(finished: () => void): void;
  throwError(): void;
}

async function copyInto(
  engine: Engine,
  { image, copy: { source, slots, signal, onProgress }, sink }: {
    image: SequentialImage;
    copy: SequentialCopy;
    sink: Sink;
  },
): Promise<number> {
  try {
    const order = new InOrder(sink, 0);
    await walkImage(engine, {
      source,
      operations: sink.operations,
      slots,
      signal,
      onProgress,
      stretch: ({ count }, isData) => order.stretch(count, isData),
      take: (piece, done) => order.add(piece, done),
    }).finally(() => order.throwFailure());
    await engine.run((finished) => sink.end(finished));
    sink.throwError();
  } catch (error) {
    image.abandon();
    throw error;
  }
  image.finish();
  return sink.written;
}

/** Calls back with the runs of a piece that are to be written. */
function eachRun(
  { bytes, count, memorySector }: Piece,
  detectZeros: boolean,
  call: (from: number, count: number) => void,
): void {
  if (detectZeros) eachData(bytes, { unitSectors: UNIT_SECTORS, memorySector }, call);
  else call(0, count);
}

/** Writes data as it is: to a regular file by the disk queue, while further data is read. */
class PlainSink implements Sink {
  written = 0;
  readonly operations: number;
  readonly #image: SequentialImage;
  readonly #detectZeros: boolean;
  /** Null where the image writes its file itself. */
  readonly #writes: QueuedWrites | null;

  constructor({ context }: Engine, image: SequentialImage, detectZeros: boolean) {
    this.#image = image;
    this.#detectZeros = detectZeros;
    const { path, descriptor } = image.file;
    this.#writes = descriptor === undefined
      ? null
      : new QueuedWrites(context.queue, { path, file: descriptor });
    this.operations = this.#writes === null ? 0 : WRITES_OF_PIECE;
  }

  write(piece: Piece, done: Done): void {
    const writes = this.#writes;
    if (writes !== null) return writes.write(piece, done, (put) => this.#write(piece, put));
    this.#write(piece);
    done(null);
  }

  #write(piece: Piece, put?: PutBytes): void {
    const { bytes, sector } = piece;
    eachRun(piece, this.#detectZeros, (from, count) => {
      const run = bytes.subarray(from * SECTOR_BYTES, (from + count) * SECTOR_BYTES);
      this.#image.write(run, (sector + from) * SECTOR_BYTES, put);
      this.written += count;
    });
  }

  skip(): void {}

  end(finished: () => void): void {
    finished();
  }

  throwError(): void {}
}

/** A cluster that is compressed, or waits to be written. */
interface Job {
  readonly cluster: number;
  compressed: Compressed | null;
}

/** Compresses clusters, many at once, and writes them in their order. */
class CompressingSink implements Sink {
  written = 0;
  readonly operations = 0;
  readonly #engine: Engine;
  readonly #image: CompressedImage;
  readonly #compressors: Compressors;
  readonly #detectZeros: boolean;
  /** The cluster that is being put together; null when there is none. */
  #bytes: Uint8Array<ArrayBuffer> | null = null;
  #cluster = -1;
  /** Clusters that are not in the image, in their order. */
  readonly #jobs: Job[] = [];
  readonly #mostJobs: number;
  /** What is called when there is room for further clusters. */
  readonly #waiting: Done[] = [];
  #error: SystemError | null = null;
  #finished: (() => void) | null = null;

  constructor(
    engine: Engine,
    image: CompressedImage,
    { compressors, detectZeros }: { compressors: Compressors; detectZeros: boolean },
  ) {
    this.#engine = engine;
    this.#image = image;
    this.#compressors = compressors;
    this.#detectZeros = detectZeros;
    this.#mostJobs = JOBS_FOR_ONE * compressors.count;
  }

  write(piece: Piece, done: Done): void {
    const { bytes, sector } = piece;
    eachRun(piece, this.#detectZeros, (from, count) => {
      const run = bytes.subarray(from * SECTOR_BYTES, (from + count) * SECTOR_BYTES);
      this.#add(run, (sector + from) * SECTOR_BYTES);
      this.written += count;
    });
    if (this.#jobs.length < this.#mostJobs || this.#error !== null) done(this.#error);
    else this.#waiting.push(done);
  }

  skip(): void {}

  #add(bytes: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    const { clusterBytes } = this.#image;
    for (let at = 0; at < bytes.length;) {
      const inCluster = (offsetBytes + at) % clusterBytes;
      const cluster = (offsetBytes + at - inCluster) / clusterBytes;
      if (cluster !== this.#cluster) this.#submit();
      this.#cluster = cluster;
      this.#bytes ??= new Uint8Array(clusterBytes);
      const part = bytes.subarray(at, at + clusterBytes - inCluster);
      this.#bytes.set(part, inCluster);
      at += part.length;
    }
  }

  /** Has the cluster compressed that was put together. */
  #submit(): void {
    if (this.#bytes === null) return;
    const job: Job = { cluster: this.#cluster, compressed: null };
    this.#jobs.push(job);
    const answer = this.#compressors.compress(this.#bytes).catch((error) =>
      systemError(error, "Cannot compress")
    );
    this.#bytes = null;
    this.#engine.context.scheduler.settle(answer, (compressed) => {
      if (compressed instanceof Error) this.#error ??= compressed;
      else job.compressed = compressed;
      this.#goOn();
    });
  }

  /** Writes what is next and has been compressed. */
  #goOn(): void {
    try {
      for (let [job] = this.#jobs; this.#error === null && job !== undefined; [job] = this.#jobs) {
        const { cluster, compressed } = job;
        if (compressed === null) break;
        this.#jobs.shift();
        const { bytes, packed } = compressed;
        if (packed === null) this.#image.write(bytes, cluster * this.#image.clusterBytes);
        else this.#image.writeCompressed(cluster, packed);
      }
    } catch (error) {
      this.#error = systemError(error, "Cannot write");
    }
    while (
      this.#waiting.length > 0 && (this.#jobs.length < this.#mostJobs || this.#error !== null)
    ) {
      this.#waiting.shift()?.(this.#error);
    }
    if (this.#jobs.length === 0 || this.#error !== null) this.#end();
  }

  /** Calls back when all clusters are in the image, or one failed. */
  end(finished: () => void): void {
    this.#submit();
    this.#finished = finished;
    if (this.#jobs.length === 0 || this.#error !== null) this.#end();
  }

  #end(): void {
    this.#finished?.();
    this.#finished = null;
  }

  throwError(): void {
    if (this.#error !== null) throw this.#error;
  }
}
