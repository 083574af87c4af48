import { NO_SLOT, RECORD_BYTES, RecordType } from "./records.ts";

/** A time that a request spent in a stage. */
export interface TracedStage {
  readonly stage: number;
  readonly startMs: number;
  readonly endMs: number;
  /** The error of a try at the image; 0 without one. */
  readonly errno: number;
  /** Sectors of the request that had ended then. */
  readonly doneSectors: number;
}

/** An operation of a disk or a server. */
export interface TracedOperation {
  /** The number of the image; 0 for one that is not known. */
  readonly layer: number;
  /** One of `TracedKind`. */
  readonly kind: number;
  /** The slot of its request; null for what belongs to none, such as metadata, or to several. */
  readonly slot: number | null;
  readonly startMs: number;
  /** When the disk or server had it. */
  readonly submittedMs: number;
  readonly endMs: number;
  readonly sector: number;
  readonly count: number;
  readonly errno: number;
}

/** A request, from when it came to its end. */
export interface TracedRequest {
  /** From 1, in the order in which requests end. */
  readonly number: number;
  readonly slot: number;
  /** One of `TracedKind`. */
  readonly kind: number;
  readonly sector: number;
  readonly count: number;
  readonly startMs: number;
  readonly endMs: number;
  readonly errno: number;
  /** Whether the trace ended before it. */
  readonly isUnfinished: boolean;
  /** In the order in which they ended. */
  readonly stages: readonly TracedStage[];
  readonly operations: readonly TracedOperation[];
}

/** Takes what was traced. */
export interface TraceSink {
  request(request: TracedRequest): void;
  /** The answer to a request was handed over. */
  reply(slot: number, startMs: number, endMs: number): void;
  /** An operation of no single request ended. */
  operation(operation: TracedOperation): void;
  /** Clients waited for slots. */
  slotWait(startMs: number, endMs: number): void;
}

/** Counts of a trace. */
export interface TraceTotals {
  /** Requests that ended, and those that had not when the trace did. */
  requests: number;
  unfinished: number;
  /** Of those that ended: requests that failed, and that were passed on. */
  failed: number;
  shown: number;
}

const SLOTS = NO_SLOT;
/** The most records of one request that are kept until it ends. */
const MOST_RECORDS = 4096;

/**
 * Puts the records of each request together, and passes requests on when they end. It holds no more than
 * the requests that have not ended.
 */
export class TraceCollector {
  readonly totals: TraceTotals = { requests: 0, unfinished: 0, failed: 0, shown: 0 };
  /** Records that were left out, because a request had too many. */
  leftOut = 0;
  readonly #sink: TraceSink;
  readonly #slowerThanMs: number;
  readonly #stages: TracedStage[][] = Array.from({ length: SLOTS }, () => []);
  readonly #operations: TracedOperation[][] = Array.from({ length: SLOTS }, () => []);
  /** Whether the last request of a slot was passed on. */
  readonly #wasShown: boolean[] = new Array(SLOTS).fill(false);

  /** @param slowerThanMs What took less is left out. */
  constructor(sink: TraceSink, slowerThanMs = 0) {
    this.#sink = sink;
    this.#slowerThanMs = slowerThanMs;
  }

  /** Takes whole records. */
  take(bytes: Uint8Array<ArrayBuffer>): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = 0; at + RECORD_BYTES <= bytes.length; at += RECORD_BYTES) this.#record(view, at);
  }

  #record(view: DataView, at: number): void {
    const startMs = view.getFloat64(at, true);
    const endMs = startMs + view.getFloat32(at + 20, true);
    const word = view.getUint8(at + 28);
    const kind = word >> 4;
    const slot = view.getUint8(at + 29);
    switch (word & 15) {
      case RecordType.Stage:
        return this.#stage(view, at, { stage: kind, startMs, endMs, slot });
      case RecordType.Operation:
        return this.#operation(view, at, { kind, startMs, endMs, slot });
      case RecordType.Request:
        return this.#request(view, at, { kind, startMs, endMs, slot });
      case RecordType.Reply:
        if (slot < SLOTS && this.#wasShown[slot]) this.#sink.reply(slot, startMs, endMs);
        return;
      case RecordType.SlotWait:
        if (endMs - startMs >= this.#slowerThanMs) this.#sink.slotWait(startMs, endMs);
    }
  }

  #stage(
    view: DataView,
    at: number,
    { slot, ...stage }: { stage: number; startMs: number; endMs: number; slot: number },
  ): void {
    const errno = view.getUint8(at + 27);
    const doneSectors = view.getFloat64(at + 8, true);
    if (slot < SLOTS) this.#keep(this.#stages[slot], { ...stage, errno, doneSectors });
  }

  #keep<T>(list: T[], entry: T): void {
    if (list.length < MOST_RECORDS) list.push(entry);
    else this.leftOut++;
  }

  #operation(
    view: DataView,
    at: number,
    { slot, ...times }: { kind: number; startMs: number; endMs: number; slot: number },
  ): void {
    const operation: TracedOperation = {
      ...times,
      slot: slot < SLOTS ? slot : null,
      layer: view.getUint16(at + 30, true),
      submittedMs: times.startMs + view.getFloat32(at + 16, true),
      sector: view.getFloat64(at + 8, true),
      count: countAt(view, at),
      errno: view.getUint8(at + 27),
    };
    if (slot < SLOTS) this.#keep(this.#operations[slot], operation);
    else if (times.endMs - times.startMs >= this.#slowerThanMs) this.#sink.operation(operation);
  }

  #request(
    view: DataView,
    at: number,
    times: { kind: number; startMs: number; endMs: number; slot: number },
  ): void {
    const { slot, startMs, endMs } = times;
    if (slot >= SLOTS) return;
    // The records of a request before this one, whose own record was lost, are older.
    const stages = this.#stages[slot].filter((stage) => stage.startMs >= startMs);
    const operations = this.#operations[slot].filter((operation) => operation.startMs >= startMs);
    this.#stages[slot] = [];
    this.#operations[slot] = [];
    const isUnfinished = view.getUint16(at + 30, true) === 1;
    const errno = view.getUint8(at + 27);
    if (isUnfinished) this.totals.unfinished++;
    else this.totals.requests++;
    if (errno !== 0) this.totals.failed++;
    this.#wasShown[slot] = endMs - startMs >= this.#slowerThanMs;
    if (!this.#wasShown[slot]) return;
    this.totals.shown++;
    const number = this.totals.requests + this.totals.unfinished;
    const [sector, count] = [view.getFloat64(at + 8, true), countAt(view, at)];
    this.#sink.request({
      ...times,
      ...{ number, sector, count, errno, isUnfinished, stages, operations },
    });
  }
}

function countAt(view: DataView, at: number): number {
  return view.getUint32(at + 24, true) & 0xff_ffff;
}
