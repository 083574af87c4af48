import { MOST_COUNT, NO_SLOT, RecordType } from "./records.ts";
import type { TraceRing } from "./trace_ring.ts";

/** Finds the slot of a request by where its data is. */
export interface SlotFinder {
  /** The slot whose memory this sector of I/O memory is in; `NO_SLOT` for none. */
  slotAt(memorySector: number): number;
}

/** The operations of a disk queue, by number. */
export interface TracedOperations {
  readonly kinds: Uint8Array;
  readonly sectors: Float64Array;
  readonly counts: Int32Array;
  readonly memory: Int32Array;
  /** By the first of a group: when the group was submitted. */
  readonly submittedMs: Float64Array;
}

/** Records the operations of a disk queue on files of disks that are traced. */
export class FileTraces {
  readonly #clock: Float64Array;
  readonly #operations: TracedOperations;
  /** By operation: when it was started. */
  readonly #startedMs: Float64Array;
  /** By file. */
  readonly #rings: (TraceRing | null)[] = [];
  readonly #finders: (SlotFinder | null)[] = [];
  readonly #layers: number[] = [];
  #files = 0;

  /** @param clock The time that the loop read last, milliseconds, at index 0. */
  constructor(clock: Float64Array, operations: TracedOperations) {
    this.#clock = clock;
    this.#operations = operations;
    this.#startedMs = new Float64Array(operations.kinds.length);
  }

  /** Whether no file is traced. */
  get isEmpty(): boolean {
    return this.#files === 0;
  }

  /** Records operations on a file from now on. */
  add(file: number, ring: TraceRing, finder: SlotFinder, layer: number): void {
    this.forget(file);
    while (this.#rings.length <= file) {
      this.#rings.push(null);
      this.#finders.push(null);
      this.#layers.push(0);
    }
    this.#rings[file] = ring;
    this.#finders[file] = finder;
    this.#layers[file] = layer;
    this.#files++;
  }

  /** Records nothing more of a file. */
  forget(file: number): void {
    if (file >= this.#rings.length || this.#rings[file] === null) return;
    this.#rings[file] = null;
    this.#finders[file] = null;
    this.#files--;
  }

  /** Records nothing more in a ring. */
  remove(ring: TraceRing): void {
    this.#rings.forEach((each, file) => {
      if (each === ring) this.forget(file);
    });
  }

  /** An operation was started. */
  started(io: number): void {
    this.#startedMs[io] = this.#clock[0];
  }

  /** An operation of a group ended. */
  ended(file: number, group: number, io: number, errno: number): void {
    const ring = file < this.#rings.length ? this.#rings[file] : null;
    const finder = ring === null ? null : this.#finders[file];
    // One that was started before the trace has no time.
    if (ring === null || finder === null || this.#startedMs[io] === 0) return;
    const { kinds, sectors, counts, memory, submittedMs } = this.#operations;
    ring.put(
      RecordType.Operation,
      kinds[io],
      // A sync has no memory, and may be for many requests.
      counts[io] === 0 ? NO_SLOT : finder.slotAt(memory[io]),
      this.#layers[file],
      Math.min(counts[io], MOST_COUNT),
      errno,
      this.#startedMs,
      io,
      submittedMs,
      group,
      sectors,
      io,
    );
    this.#startedMs[io] = 0;
  }
}
