import {
  FRAME_HEAD_BYTES,
  FrameType,
  MOST_LAYERS,
  RECORD_BYTES,
  type TraceEnd,
} from "../../trace/records.ts";
import { encodePlain, MessageType } from "../protocol/message.ts";
import { decodeTraceHead, type TraceHead } from "../protocol/trace.ts";
import type { DeviceAddress } from "./client.ts";
import { brokenAnswer, Connection } from "./connection.ts";
import { QUESTION_TIMEOUT_MS } from "./questions.ts";

/** The longest frame: those of records are no longer than the ring, those of names mostly short. */
const MOST_FRAME_BYTES = 16 << 20;

/** What came of a trace. */
export type TraceFrame =
  | { readonly type: "records"; readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly type: "layers"; readonly names: readonly (readonly [number, string])[] }
  | { readonly type: "end"; readonly end: TraceEnd };

/** The records of a disk's requests, as its tapdisk sends them. */
export class TraceFeed {
  readonly head: TraceHead;
  readonly #what: string;
  readonly #connection: Connection;
  #buffer = new Uint8Array(1 << 16);
  #received = 0;

  /** Begins a trace. Throws `SystemError`, `TapdiskError`: EBUSY when the disk is traced already. */
  constructor({ pid, minor }: DeviceAddress) {
    this.#what = `Cannot trace minor ${minor} of tapdisk ${pid}`;
    // A trace may go on for as long as its user likes; only its beginning has a limit.
    this.#connection = new Connection(pid, Infinity);
    try {
      this.#connection.send(encodePlain(MessageType.TRACE, minor));
      this.#connection.requireInput(QUESTION_TIMEOUT_MS);
      this.head = decodeTraceHead(this.#connection.expect(MessageType.TRACE_RSP, this.#what));
      if (this.head.recordBytes !== RECORD_BYTES) {
        throw brokenAnswer(this.#what, "it is of another version: its records are others");
      }
    } catch (error) {
      this.#connection.close();
      throw error;
    }
  }

  /**
   * What comes within so many milliseconds; null for nothing, or when the tapdisk hangs up. Bytes of
   * records are valid until the next call. Throws `SystemError` (EPROTO).
   */
  next(withinMs: number): TraceFrame | "hung up" | null {
    const untilMs = performance.now() + withinMs;
    for (;;) {
      const wanted = this.#wanted();
      if (this.#received === wanted && wanted > FRAME_HEAD_BYTES) return this.#frame(wanted);
      if (!this.#connection.hasInput(Math.max(0, untilMs - performance.now()))) return null;
      const missing = wanted - this.#received;
      const got = this.#connection.receiveSome(this.#buffer, this.#received, missing);
      if (got < 0) return "hung up";
      this.#received += got;
    }
  }

  /** How many bytes are needed next. */
  #wanted(): number {
    if (this.#received < FRAME_HEAD_BYTES) return FRAME_HEAD_BYTES;
    const lengthBytes = new DataView(this.#buffer.buffer).getUint32(4, true);
    if (lengthBytes === 0 || lengthBytes > MOST_FRAME_BYTES) {
      throw brokenAnswer(this.#what, `a part has ${lengthBytes} bytes`);
    }
    const wanted = FRAME_HEAD_BYTES + lengthBytes;
    if (wanted > this.#buffer.length) {
      const larger = new Uint8Array(wanted);
      larger.set(this.#buffer.subarray(0, this.#received));
      this.#buffer = larger;
    }
    return wanted;
  }

  #frame(lengthBytes: number): TraceFrame {
    this.#received = 0;
    const type = new DataView(this.#buffer.buffer).getUint32(0, true);
    const bytes = this.#buffer.subarray(FRAME_HEAD_BYTES, lengthBytes);
    switch (type) {
      case FrameType.Records:
        if (bytes.length % RECORD_BYTES === 0) return { type: "records", bytes };
        break;
      case FrameType.Layers: {
        const names = this.#json(bytes);
        if (Array.isArray(names) && names.every(isName)) return { type: "layers", names };
        break;
      }
      case FrameType.End: {
        const end = this.#json(bytes);
        if (isEnd(end)) return { type: "end", end };
      }
    }
    throw brokenAnswer(this.#what, `a part of type ${type} makes no sense`);
  }

  #json(bytes: Uint8Array): unknown {
    try {
      return JSON.parse(new TextDecoder().decode(bytes));
    } catch {
      return null;
    }
  }

  /** Asks the tapdisk to end the trace; what it has still comes, and then the end. */
  stop(): void {
    this.#connection.send(new Uint8Array(1));
  }

  /** Hangs up. */
  close(): void {
    this.#connection.close();
  }
}

function isName(value: unknown): value is [number, string] {
  return Array.isArray(value) && value.length === 2 && Number.isInteger(value[0]) &&
    value[0] > 0 && value[0] <= MOST_LAYERS && typeof value[1] === "string";
}

function isEnd(value: unknown): value is TraceEnd {
  if (typeof value !== "object" || value === null) return false;
  const { why, lost }: { why?: unknown; lost?: unknown } = value;
  return typeof why === "string" && typeof lost === "number";
}
