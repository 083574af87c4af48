import { assert } from "../../ffi/assert.ts";
import { type Done, Errno, SystemError, systemError } from "../../ffi/errno.ts";
import { SECTOR_BYTES } from "../../ffi/memory.ts";
import { createEngine } from "./engine.ts";
import { OpenImage } from "./open_image.ts";
import { walkImage } from "./walk.ts";
import type { WorkOptions } from "./work.ts";

/** Where a stream goes: it gets all bytes in their order. */
export interface StreamSink {
  /** The next bytes. */
  write(bytes: Uint8Array): void;
  /** So many zeros follow, of a hole. */
  skip(lengthBytes: number): void;
}

/** Options of a stream. */
export interface StreamOptions extends Pick<WorkOptions, "signal"> {
  /** The first sector; 0 by default. */
  readonly skip?: number;
  /** How many sectors; all that follow by default. */
  readonly count?: number;
}

/**
 * Writes the content of a disk, from start to end.
 *
 * @throws {SystemError} ERANGE for a start behind the end of the disk; errors of the image and the sink.
 */
export async function streamImage(
  name: string,
  sink: StreamSink,
  { skip = 0, count, signal }: StreamOptions = {},
): Promise<void> {
  const engine = createEngine(() => {});
  try {
    const source = await OpenImage.open(engine, name, { readOnly: true });
    try {
      if (skip > source.sectors) {
        const what = `Cannot start at sector ${skip} of ${name} (it has ${source.sectors})`;
        throw new SystemError(Errno.ERANGE, what);
      }
      const range = { sector: skip, count: Math.min(count ?? Infinity, source.sectors - skip) };
      const order = new InOrder(sink, range.sector);
      await walkImage(engine, {
        source,
        ranges: [range],
        signal,
        stretch: (stretch, isData) => order.stretch(stretch.count, isData),
        take: (piece, done) => order.add(piece.sector, piece.bytes, done),
      }).finally(() => order.throwFailure());
    } finally {
      await source.close(engine);
    }
  } finally {
    engine.close();
  }
}

interface Waiting {
  readonly bytes: Uint8Array;
  readonly done: Done;
}

/** Brings pieces into their order. What is read too early waits in the memory that it was read into. */
class InOrder {
  readonly #sink: StreamSink;
  readonly #waiting = new Map<number, Waiting>();
  /** Stretches that were found, the one that the stream is in first. */
  readonly #stretches: { count: number; readonly isData: boolean }[] = [];
  /** Where the stream is. */
  #at: number;
  #isGoing = false;
  /** What the sink threw first; nothing is written after that. */
  #failure: unknown = null;

  constructor(sink: StreamSink, sector: number) {
    this.#sink = sink;
    this.#at = sector;
  }

  /** Throws what the sink threw, as it is: a pipe that nobody reads ends a program without a message. */
  throwFailure(): void {
    if (this.#failure !== null) throw this.#failure;
  }

  /** Throws what the sink throws: the walk ends with that. */
  stretch(count: number, isData: boolean): void {
    const last = this.#stretches.at(-1);
    // A piece may have data of several stretches that follow each other.
    if (last?.isData === isData) last.count += count;
    else this.#stretches.push({ count, isData });
    this.#go();
    this.throwFailure();
  }

  add(sector: number, bytes: Uint8Array, done: Done): void {
    this.#waiting.set(sector, { bytes, done });
    this.#go();
  }

  /** Writes what can be written. The next pieces may come within the calls. */
  #go(): void {
    if (this.#isGoing) return;
    this.#isGoing = true;
    for (let [next] = this.#stretches; next !== undefined; [next] = this.#stretches) {
      if (this.#failure !== null) break;
      if (!next.isData) this.#skip(next.count);
      else if (!this.#write(next)) break;
    }
    this.#isGoing = false;
    if (this.#failure !== null) this.#giveUp(this.#failure);
  }

  /** Calls the sink; false when it fails. */
  #call(sink: () => void): boolean {
    try {
      sink();
      return true;
    } catch (error) {
      this.#failure ??= error;
      return false;
    }
  }

  /** The walk ends when all pieces that were read have been taken. */
  #giveUp(failure: unknown): void {
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { done } of waiting) done(systemError(failure, "Cannot write the stream"));
  }

  #skip(count: number): void {
    this.#stretches.shift();
    this.#at += count;
    this.#call(() => this.#sink.skip(count * SECTOR_BYTES));
  }

  /** Writes the next piece of a stretch; false when it has not been read. */
  #write(stretch: { count: number }): boolean {
    const piece = this.#waiting.get(this.#at);
    if (piece === undefined) return false;
    const count = piece.bytes.length / SECTOR_BYTES;
    if (!this.#call(() => this.#sink.write(piece.bytes))) return false;
    this.#waiting.delete(this.#at);
    this.#at += count;
    stretch.count -= count;
    assert(stretch.count >= 0, "A piece of a disk is longer than the data that was found");
    if (stretch.count === 0) this.#stretches.shift();
    piece.done(null);
    return true;
  }
}
