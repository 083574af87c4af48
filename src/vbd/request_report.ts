import { errnoName } from "../../ffi/errno.ts";
import { type RequestTimes, Stage } from "./request_times.ts";
import type { RetryQueue } from "./retry.ts";
import { RequestKind, SLOTS, type SlotTable } from "./slots.ts";
import type { VbdPhase } from "./vbd_phase.ts";

/** By `RequestKind`. */
const KINDS = Object.keys(RequestKind).map((name) => name.toLowerCase());

function stageWords(stage: number): string {
  switch (stage) {
    case Stage.Room:
      return "waits for room";
    case Stage.Paused:
      return "held by a pause";
    case Stage.Retry:
      return "to be tried again";
    case Stage.Limit:
      return "held by a rate limit";
    default:
      return "at the disk";
  }
}

function seconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(3)} s`;
}

/**
 * One line for each open request, the oldest first: kind, range, stage, times and failures.
 */
export function reportRequests(
  slots: SlotTable,
  { times, retries, nowMs }: { times: RequestTimes; retries: RetryQueue; nowMs: number },
): string[] {
  const { stage, sinceMs, cameMs } = times;
  const open = Array.from({ length: SLOTS }, (_, slot) => slot)
    .filter((slot) => stage[slot] !== Stage.None)
    .sort((a, b) => cameMs[a] - cameMs[b]);
  return open.map((slot) => {
    const what = `slot ${slot}: ${KINDS[slots.kind[slot]]}, sector ${slots.sector[slot]}, ` +
      `${slots.count[slot]} sectors`;
    const where = `${stageWords(stage[slot])} for ${seconds(nowMs - sinceMs[slot])}`;
    const errno = retries.lastError(slot);
    const last = errno === 0 ? "no error" : `last error ${errnoName(errno)}`;
    const age = seconds(nowMs - cameMs[slot]);
    return `${what}, ${where}, age ${age}, failed ${retries.failures(slot)} times, ${last}`;
  });
}

/** A device, as its report describes it. */
export interface ReportedDevice {
  /** Name of its image; empty without one. */
  readonly name: string;
  readonly phase: VbdPhase;
  readonly state: number;
  readonly requests: { readonly outstanding: number; report(): string[] };
}

/** How a device is, and where each of its requests is, a line each. */
export function reportDevice({ name, phase, state, requests }: ReportedDevice): string[] {
  const { outstanding } = requests;
  const how = phase === "open" ? "runs" : `state 0x${state.toString(16)}`;
  const left = `${outstanding} request${outstanding === 1 ? " has" : "s have"} not ended`;
  return [`${name || "no image"}, ${how}, ${left}`, ...requests.report()];
}
