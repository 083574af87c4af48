/**
 * The rules of the JSON format of Chrome's traces, as far as Perfetto depends on them.
 *
 * @module
 */
import assert from "node:assert/strict";

/** An event of a trace. */
export interface ChromeEvent {
  readonly name: string;
  readonly ph: string;
  readonly cat?: string;
  readonly pid: number;
  readonly tid: number;
  readonly ts?: number;
  readonly dur?: number;
  readonly id?: string;
  readonly args?: Readonly<Record<string, string | number | boolean>>;
}

/** A slice with its times. */
export interface ChromeSlice extends ChromeEvent {
  readonly ts: number;
  readonly dur: number;
  readonly args: Readonly<Record<string, string | number | boolean>>;
}

/** A trace, which keeps the rules. */
export interface ChromeTrace {
  readonly traceEvents: readonly ChromeEvent[];
  readonly otherData: Readonly<Record<string, string | number | boolean>>;
  readonly slices: readonly ChromeSlice[];
}

function isSlice(event: ChromeEvent): event is ChromeSlice {
  return event.ph === "X";
}

/** Slices of a track are one behind the other, or one within the other. */
function assertNested(slices: readonly ChromeSlice[]): void {
  const open: number[] = [];
  // Of two that begin at once, the longer one is the outer one.
  const sorted = [...slices].sort((a, b) => a.ts - b.ts || b.dur - a.dur);
  for (const { name, ts, dur } of sorted) {
    // Times have three places.
    const [start, end] = [Math.round(ts * 1000), Math.round((ts + dur) * 1000)];
    while (open.length > 0 && open[open.length - 1] <= start) open.pop();
    const outer = open.at(-1);
    assert.ok(outer === undefined || end <= outer, `${name} at ${ts} ends behind what it is in`);
    open.push(end);
  }
}

/** Reads a trace. Throws for one that breaks the rules. */
export function readChromeTrace(text: string): ChromeTrace {
  const trace: Pick<ChromeTrace, "traceEvents" | "otherData"> = JSON.parse(text);
  const open = new Map<string, number>();
  for (const event of trace.traceEvents) {
    const what = JSON.stringify(event);
    assert.ok(["X", "M", "b", "e"].includes(event.ph), what);
    assert.ok(event.name.length > 0 && Number.isInteger(event.pid) && Number.isInteger(event.tid));
    if (event.ph === "M") assert.ok(event.args !== undefined, what);
    else assert.ok(event.ts !== undefined && event.ts >= 0, what);
    if (event.ph === "X") assert.ok(event.dur !== undefined && event.dur >= 0, what);
    if (event.ph !== "b" && event.ph !== "e") continue;
    const key = `${event.pid} ${event.cat} ${event.id} ${event.name}`;
    open.set(key, (open.get(key) ?? 0) + (event.ph === "b" ? 1 : -1));
  }
  assert.ok([...open.values()].every((count) => count === 0), "each beginning has an end");
  const slices = trace.traceEvents.filter(isSlice);
  for (const track of Object.values(Object.groupBy(slices, ({ pid, tid }) => `${pid} ${tid}`))) {
    assertNested(track ?? []);
  }
  return { ...trace, slices };
}

/** The names of processes or threads by their numbers, `PID` or `PID.TID`. */
export function namesOf(
  { traceEvents }: ChromeTrace,
  what: "process_name" | "thread_name",
): Map<string, string> {
  return new Map(
    traceEvents.filter(({ name }) => name === what).map(({ pid, tid, args }) => [
      what === "process_name" ? `${pid}` : `${pid}.${tid}`,
      String(args?.name),
    ]),
  );
}
