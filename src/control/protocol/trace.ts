import { RECORD_BYTES } from "../../trace/records.ts";
import { MessageType, startMessage, viewOf } from "./message.ts";

/** What precedes the frames of a trace. */
export interface TraceHead {
  /** Bytes of a record. */
  readonly recordBytes: number;
  /** When it began: by the clock of the records, and by that of the machine since 1970. */
  readonly startMs: number;
  readonly epochMs: number;
}

/** The answer to `trace`; frames follow it (src/trace/records.ts). */
export function encodeTraceHead(
  cookie: number,
  { startMs, epochMs }: Omit<TraceHead, "recordBytes">,
): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.TRACE_RSP, cookie);
  view.setUint32(8, RECORD_BYTES, true);
  view.setFloat64(16, startMs, true);
  view.setFloat64(24, epochMs, true);
  return message;
}

/** What is in the answer to `trace`. */
export function decodeTraceHead(message: Uint8Array): TraceHead {
  const view = viewOf(message);
  return {
    recordBytes: view.getUint32(8, true),
    startMs: view.getFloat64(16, true),
    epochMs: view.getFloat64(24, true),
  };
}
