import { RECEIVING } from "./records.ts";

/** By `TracedKind`. */
const KINDS = ["read", "write", "flush", "discard", "zero", "status", "fill"];

/** What a request or an operation does, in a word. */
export function kindName(kind: number): string {
  return KINDS[kind] ?? `kind ${kind}`;
}

/** By `Stage` in `src/vbd`. */
const STAGES = [
  "none",
  "waits for room in the disk queue",
  "held by a pause",
  "waits for its next try",
  "at the image",
  "held by a rate limit",
];

/** The stage in which a request is at its image. */
export const AT_IMAGE = 4;

/** What a request does in a stage. */
export function stageName(stage: number): string {
  return stage === RECEIVING ? "receives data" : STAGES[stage] ?? `stage ${stage}`;
}
