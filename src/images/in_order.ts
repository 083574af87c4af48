import { assert } from "../../ffi/assert.ts";
import { type Done, systemError } from "../../ffi/errno.ts";
import type { Piece } from "./walk.ts";

/** Takes a disk from its start to its end. What it throws ends the walk. */
export interface OrderedSink {
  /** The next sectors. Calls `done` when their memory can be used again, or throws. */
  write(piece: Piece, done: Done): void;
  /** So many sectors of a hole follow. */
  skip(sectors: number): void;
}

interface Waiting {
  readonly piece: Piece;
  readonly done: Done;
}

/** Brings pieces into their order. What is read too early waits in the memory that it was read into. */
export class InOrder {
  readonly #sink: OrderedSink;
  readonly #waiting = new Map<number, Waiting>();
  /** Stretches that were found, the one that the sink is in first. */
  readonly #stretches: { count: number; readonly isData: boolean }[] = [];
  /** Where the sink is. */
  #at: number;
  #isGoing = false;
  /** What the sink threw first; nothing is written after that. */
  #failure: unknown = null;

  constructor(sink: OrderedSink, sector: number) {
    this.#sink = sink;
    this.#at = sector;
  }

  /** Throws what the sink threw, as it is: a pipe without a reader ends a program without a message. */
  throwFailure(): void {
    if (this.#failure !== null) throw this.#failure;
  }

  /** The walk found a stretch. Throws what the sink throws: the walk ends with that. */
  stretch(count: number, isData: boolean): void {
    const last = this.#stretches.at(-1);
    // A piece may have data of several stretches that follow each other.
    if (last?.isData === isData) last.count += count;
    else this.#stretches.push({ count, isData });
    this.#go();
    this.throwFailure();
  }

  /** The walk read a piece. */
  add(piece: Piece, done: Done): void {
    this.#waiting.set(piece.sector, { piece, done });
    this.#go();
  }

  /** Hands on what can be handed on. The next pieces may come within the calls. */
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
    this.#call(() => this.#sink.skip(count));
  }

  /** Hands on the next piece of a stretch; false when it has not been read, or the sink fails. */
  #write(stretch: { count: number }): boolean {
    const waiting = this.#waiting.get(this.#at);
    if (waiting === undefined) return false;
    const { piece, done } = waiting;
    this.#at += piece.count;
    stretch.count -= piece.count;
    assert(stretch.count >= 0, "A piece of a disk is longer than the data that was found");
    if (stretch.count === 0) this.#stretches.shift();
    if (!this.#call(() => this.#sink.write(piece, done))) return false;
    this.#waiting.delete(piece.sector);
    return true;
  }
}
