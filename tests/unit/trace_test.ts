import assert from "node:assert/strict";
import { plainLines } from "../../src/log/plain_text.ts";
import { ChromeJson } from "../../src/trace/chrome_json.ts";
import { TraceCollector, type TracedRequest, type TraceSink } from "../../src/trace/collector.ts";
import {
  NO_SLOT,
  RECEIVING,
  RECORD_BYTES,
  RecordType,
  TracedKind,
} from "../../src/trace/records.ts";
import { TextLines } from "../../src/trace/text_lines.ts";
import { TraceRing } from "../../src/trace/trace_ring.ts";
import { namesOf, readChromeTrace } from "../support/chrome_trace.ts";

const AT_IMAGE = 4;
const WAITS = 5;

/** A ring, and a clock that the test sets. */
class Recorder {
  readonly clock = new Float64Array(1);
  readonly ring: TraceRing;

  constructor(size = 64) {
    this.ring = new TraceRing(this.clock, size);
  }

  put(
    type: number,
    {
      kind = 0,
      slot = 0,
      layer = 0,
      count = 8,
      errno = 0,
      sector = 0,
      from = 0,
      middle = from,
      to,
    }: {
      kind?: number;
      slot?: number;
      layer?: number;
      count?: number;
      errno?: number;
      sector?: number;
      from?: number;
      middle?: number;
      to: number;
    },
  ): void {
    this.clock[0] = to;
    const numbers = Float64Array.of(from, middle, sector);
    this.ring.put(type, kind, slot, layer, count, errno, numbers, 0, numbers, 1, numbers, 2);
  }

  /** Takes all records out. */
  take(): Uint8Array<ArrayBuffer> {
    const parts: Uint8Array[] = [];
    while (this.ring.run > 0) {
      parts.push(this.ring.bytes.slice());
      this.ring.drop(this.ring.run);
    }
    const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const part of parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }

  /** A write that was received for 1 ms, held back for 2, and at the image for 4. */
  write(slot: number, from: number): void {
    const { Stage, Operation, Request, Reply } = RecordType;
    this.put(Stage, { kind: RECEIVING, slot, from, to: from + 1 });
    this.put(Stage, { kind: WAITS, slot, from: from + 1, to: from + 3 });
    const place = { slot, layer: 1, sector: 640, from: from + 3 };
    this.put(Operation, { kind: TracedKind.Write, ...place, middle: from + 4, to: from + 7 });
    this.put(Stage, { kind: AT_IMAGE, slot, from: from + 3, to: from + 7 });
    this.put(Request, {
      kind: TracedKind.Write,
      slot,
      sector: 64,
      from,
      middle: from + 1,
      to: from + 7,
    });
    this.put(Reply, { slot, from: from + 7, to: from + 8 });
  }
}

function collect(bytes: Uint8Array<ArrayBuffer>, slowerThanMs = 0): {
  requests: TracedRequest[];
  others: string[];
  collector: TraceCollector;
} {
  const requests: TracedRequest[] = [];
  const others: string[] = [];
  const sink: TraceSink = {
    request: (request) => requests.push(request),
    reply: (slot) => others.push(`reply ${slot}`),
    operation: ({ layer }) => others.push(`operation ${layer}`),
    slotWait: (from, to) => others.push(`slots ${from} ${to}`),
  };
  const collector = new TraceCollector(sink, slowerThanMs);
  collector.take(bytes);
  return { requests, others, collector };
}

Deno.test("a ring that is full loses what is new, counts it, and goes round", () => {
  const recorder = new Recorder(4);
  for (let i = 0; i < 6; i++) recorder.put(RecordType.Request, { slot: i, from: i, to: i + 1 });
  assert.deepEqual([recorder.ring.run, recorder.ring.lost], [4, 2]);
  recorder.ring.drop(3);
  for (let i = 6; i < 9; i++) recorder.put(RecordType.Request, { slot: i, from: i, to: i + 1 });
  const { requests } = collect(recorder.take());
  assert.deepEqual(requests.map(({ slot }) => slot), [3, 6, 7, 8]);
  assert.equal(recorder.ring.lost, 2);
  recorder.ring.release();
});

Deno.test("a record keeps all of its fields", () => {
  const recorder = new Recorder();
  const place = { slot: 127, layer: 0x3fff, sector: 2 ** 40 + 1, count: 0xff_ffff, errno: 133 };
  const times = { from: 1e9 + 0.25, middle: 1e9 + 0.5, to: 1e9 + 1000.25 };
  recorder.put(RecordType.Operation, { kind: TracedKind.Fill, ...place, ...times });
  recorder.put(RecordType.Request, { kind: TracedKind.Fill, ...place, layer: 0, ...times });
  const [{ operations: [operation], ...request }] = collect(recorder.take()).requests;
  const { slot, sector, count, errno } = place;
  const { from, to } = times;
  const same = { kind: TracedKind.Fill, sector, count, errno, slot, startMs: from, endMs: to };
  assert.deepEqual(operation, { ...same, layer: 0x3fff, submittedMs: from + 0.25 });
  assert.deepEqual(request, { ...same, number: 1, isUnfinished: false, stages: [] });
  recorder.ring.release();
});

Deno.test("what ends when another thing begins does not end behind it, in a record", () => {
  const recorder = new Recorder();
  for (let i = 1; i < 2000; i++) {
    const [from, to] = [123_456.789, 123_456.789 + i * 7.000_001 + 1 / i];
    recorder.put(RecordType.Request, { from, to });
    const [{ endMs }] = collect(recorder.take()).requests;
    assert.ok(endMs <= to && to - endMs <= (to - from) * 2.4e-7, `${endMs}, ${to}`);
  }
  recorder.ring.release();
});

Deno.test("the records of requests whose own record was lost are not those of the next", () => {
  const recorder = new Recorder();
  recorder.write(3, 100);
  const whole = recorder.take();
  const lost = whole.slice(0, 4 * RECORD_BYTES);
  recorder.write(3, 200);
  const { requests } = collect(new Uint8Array([...lost, ...recorder.take()]));
  assert.equal(requests.length, 1);
  assert.deepEqual(requests[0].stages.map(({ startMs }) => startMs), [200, 201, 203]);
  assert.deepEqual(requests[0].operations.map(({ startMs }) => startMs), [203]);
  recorder.ring.release();
});

Deno.test("what was faster than asked for is left out, and counted", () => {
  const recorder = new Recorder();
  recorder.write(0, 100);
  recorder.put(RecordType.Request, { slot: 1, from: 110, to: 130, errno: 5 });
  recorder.put(RecordType.Reply, { slot: 0, from: 130, to: 131 });
  recorder.put(RecordType.Reply, { slot: 1, from: 130, to: 131 });
  recorder.put(RecordType.Operation, { slot: NO_SLOT, layer: 7, from: 131, to: 132 });
  recorder.put(RecordType.Operation, { slot: NO_SLOT, layer: 8, from: 132, to: 162 });
  const { requests, others, collector } = collect(recorder.take(), 20);
  assert.deepEqual(requests.map(({ slot }) => slot), [1]);
  assert.deepEqual(others, ["reply 1", "operation 8"]);
  assert.deepEqual(collector.totals, { requests: 2, unfinished: 0, failed: 1, shown: 1 });
  recorder.ring.release();
});

Deno.test("a request with too many records loses some, and no memory", () => {
  const recorder = new Recorder(1);
  const { collector } = collect(recorder.take());
  for (let i = 0; i < 5000; i++) {
    recorder.put(RecordType.Stage, { kind: AT_IMAGE, from: i, to: i + 1 });
    collector.take(recorder.take());
  }
  assert.equal(collector.leftOut, 5000 - 4096);
  recorder.ring.release();
});

Deno.test("a trace as JSON keeps the rules of its format, and names what it shows", () => {
  const recorder = new Recorder();
  recorder.write(0, 100);
  recorder.write(0, 110.123456);
  // Two operations of a request that are under way at once, and one that is nobody's.
  const place = { slot: 5, layer: 2, count: 3 };
  recorder.put(RecordType.Operation, { ...place, from: 120, middle: 121, to: 124 });
  recorder.put(RecordType.Operation, { ...place, from: 120.5, middle: 121, to: 125 });
  recorder.put(RecordType.Operation, { slot: NO_SLOT, layer: 9, from: 120, to: 122 });
  recorder.put(RecordType.Request, { slot: 5, from: 120, to: 125, errno: 5, layer: 1 });
  recorder.put(RecordType.SlotWait, { slot: NO_SLOT, from: 90, to: 99 });
  let text = "";
  const json = new ChromeJson("minor 3", (part) => text += part);
  json.layer(1, 'vhd:/leaf "one".vhd');
  json.layer(2, "vhd:/base\u009b\u202e.vhd");
  new TraceCollector(json).take(recorder.take());
  json.end({ requests: 3 });
  recorder.ring.release();
  const trace = readChromeTrace(text);
  // It may go to a terminal.
  assert.equal(plainLines(text), text);
  assert.deepEqual(trace.otherData, { requests: 3 });
  assert.deepEqual(Object.fromEntries(namesOf(trace, "process_name")), {
    1: "minor 3: requests by slot",
    101: '1: vhd:/leaf "one".vhd',
    102: "2: vhd:/base\u009b\u202e.vhd",
    109: "9: an image that is not known",
  });
  assert.equal(namesOf(trace, "thread_name").get("1.1"), "slot 0");
  assert.equal(namesOf(trace, "thread_name").get("102.134"), "slot 5, at the same time 2");
  const shown = trace.slices.filter(({ pid, ts }) => pid === 1 && ts < 109_000)
    .map(({ name, ts, dur }) => [name, ts, dur]);
  assert.deepEqual(shown, [
    ["write 4 KiB", 100_000, 7000],
    ["receives data", 100_000, 1000],
    ["held by a rate limit", 101_000, 2000],
    ["at the image", 103_000, 4000],
    ["is answered", 107_000, 1000],
    ["clients wait for slots", 90_000, 9000],
  ]);
  const [operation, gathered, atDisk] = trace.slices.filter(({ pid }) => pid === 101);
  assert.deepEqual([operation.name, operation.args.sector], ["write 4 KiB", 640]);
  assert.deepEqual([gathered.dur, atDisk.dur], [1000, 3000]);
  const failed = trace.slices.find(({ cat, args }) => cat === "request" && args.error === "EIO");
  assert.deepEqual([failed?.name, failed?.args.unfinished], ["read 4 KiB (unfinished)", true]);
});

Deno.test("the check of the format finds slices that overlap", () => {
  const slice = (ts: number, dur: number): unknown => ({
    ...{ name: "a", ph: "X", pid: 1, tid: 1 },
    ...{ ts, dur },
  });
  const text = (...traceEvents: unknown[]): string => JSON.stringify({ traceEvents });
  readChromeTrace(text(slice(0, 10), slice(2, 8), slice(10, 5)));
  assert.throws(() => readChromeTrace(text(slice(0, 10), slice(2, 9))), /ends behind/);
  const begun = { name: "a", cat: "b", ph: "b", id: "1", pid: 1, tid: 0, ts: 1 };
  assert.throws(() => readChromeTrace(text(begun)), /has an end/);
});

Deno.test("a trace as text has a line for each step of a request, in order", () => {
  const recorder = new Recorder();
  recorder.write(7, 1100);
  recorder.put(RecordType.Stage, { kind: AT_IMAGE, slot: 7, from: 1200, to: 1201, errno: 5 });
  recorder.put(RecordType.Stage, { kind: 3, slot: 7, from: 1201, to: 1202 });
  recorder.put(RecordType.Request, { slot: 7, from: 1200, to: 1202, layer: 1 });
  const lines: string[] = [];
  const text = new TextLines({ minor: 3, startMs: 1000 }, (line) => lines.push(line));
  text.layer(1, "vhd:/a.vhd");
  new TraceCollector(text).take(recorder.take());
  recorder.ring.release();
  assert.deepEqual(lines.map((line) => line.replaceAll(/ +/g, " ").trim()), [
    "3 7 1 0.100000000 Q W 64 + 8",
    "3 7 1 0.100000000 G W 64 + 8 [receives data, 1.000 ms]",
    "3 7 1 0.101000000 S W 64 + 8 [held by a rate limit, 2.000 ms]",
    "3 7 1 0.103000000 I W 64 + 8",
    "3 7 1 0.104000000 D W 640 + 8 [vhd:/a.vhd]",
    "3 7 1 0.107000000 B W 640 + 8 [vhd:/a.vhd, 3.000 ms]",
    "3 7 1 0.107000000 C W 64 + 8 [7.000 ms]",
    "3 7 1 0.108000000 A [answered, 1.000 ms]",
    "3 7 2 0.200000000 Q R 0 + 8",
    "3 7 2 0.200000000 I R 0 + 8 [failed, EIO]",
    "3 7 2 0.201000000 S R 0 + 8 [waits for its next try, 1.000 ms]",
    "3 7 2 0.202000000 U R 0 + 8 [not ended]",
  ]);
});
