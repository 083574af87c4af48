import { errnoName } from "../../ffi/errno.ts";
import { plainJson } from "../log/plain_text.ts";
import type { TracedOperation, TracedRequest, TracedStage, TraceSink } from "./collector.ts";
import { kindName, stageName } from "./names.ts";

/** The process that stands for the disk; that of an image has the image's number behind this. */
const DISK = 1;
const IMAGES = 100;
/** The tracks of images that are not known, and of what belongs to no slot. */
const SLOT_WAITS = 0;
/** Slots of a disk. A second operation of a request at the same time has a track further down. */
const TRACKS = 128;

/** What else a trace tells of itself. */
export type TraceNotes = Readonly<Record<string, string | number | boolean>>;

/**
 * Writes a trace in the JSON format of Chrome's traces, which Perfetto opens
 * (https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). The disk is a
 * process with a thread for each slot, whose requests follow each other; each image is a process with
 * threads for the operations of the same slots. Times are those of the tapdisk's clock.
 */
export class ChromeJson implements TraceSink {
  readonly #write: (text: string) => void;
  readonly #names = new Map<number, string>();
  /** Processes and threads that have been named. */
  readonly #named = new Set<string>();
  #isFirst = true;
  #metadata = 0;

  /**
   * @param title The disk.
   * @param write Takes the text, a part at a time.
   */
  constructor(title: string, write: (text: string) => void) {
    this.#write = write;
    write('{"displayTimeUnit":"ns","traceEvents":[');
    this.#process(DISK, `${title}: requests by slot`);
  }

  /** The name of an image. */
  layer(layer: number, name: string): void {
    this.#names.set(layer, name);
  }

  request(request: TracedRequest): void {
    const { slot, kind, sector, count, number, startMs, endMs, errno, isUnfinished } = request;
    const tid = slot + 1;
    this.#thread(DISK, tid, `slot ${slot}`);
    const args = {
      request: number,
      ...placeOf(kind, sector, count),
      ...errorOf(errno),
      ...(isUnfinished ? { unfinished: true } : {}),
    };
    const name = `${kindName(kind)}${sizeText(count)}${isUnfinished ? " (unfinished)" : ""}`;
    this.#slice(DISK, tid, { name, cat: "request", startMs, endMs, args });
    for (const stage of request.stages) this.#stage(tid, request, stage);
    this.#operations(request);
  }

  #stage(tid: number, { startMs, endMs }: TracedRequest, stage: TracedStage): void {
    this.#slice(DISK, tid, {
      name: stageName(stage.stage),
      cat: "stage",
      ...within(stage, startMs, endMs),
      args: { done_sectors: stage.doneSectors, ...errorOf(stage.errno) },
    });
  }

  /** Those of a request that are under way at the same time have tracks below each other. */
  #operations({ number, slot, operations, startMs, endMs }: TracedRequest): void {
    const busyUntilMs = new Map<string, number>();
    for (const operation of [...operations].sort((a, b) => a.startMs - b.startMs)) {
      const times = within(operation, startMs, endMs);
      let lane = 0;
      const key = (): string => `${operation.layer}.${lane}`;
      while ((busyUntilMs.get(key()) ?? -Infinity) > times.startMs) lane++;
      busyUntilMs.set(key(), times.endMs);
      const tid = slot + 1 + lane * TRACKS;
      const more = lane === 0 ? "" : `, at the same time ${lane + 1}`;
      const pid = this.#image(operation.layer);
      this.#thread(pid, tid, `slot ${slot}${more}`);
      const name = `${kindName(operation.kind)}${sizeText(operation.count)}`;
      const args = { request: number, ...operationArgs(operation) };
      this.#slice(pid, tid, { name, cat: "operation", ...times, args });
      this.#submission(pid, tid, operation, times);
    }
  }

  /** The two parts of an operation: until the disk has it, and until it has ended it. */
  #submission(
    pid: number,
    tid: number,
    { submittedMs }: TracedOperation,
    { startMs, endMs }: { startMs: number; endMs: number },
  ): void {
    const middleMs = Math.min(Math.max(submittedMs, startMs), endMs);
    if (middleMs === startMs) return;
    const [cat, args] = ["submission", {}];
    this.#slice(pid, tid, { name: "gathered", cat, startMs, endMs: middleMs, args });
    this.#slice(pid, tid, { name: "at the disk", cat, startMs: middleMs, endMs, args });
  }

  reply(slot: number, startMs: number, endMs: number): void {
    this.#slice(DISK, slot + 1, { name: "is answered", cat: "reply", startMs, endMs, args: {} });
  }

  operation(operation: TracedOperation): void {
    const pid = this.#image(operation.layer);
    const { kind, count, startMs, endMs } = operation;
    const name = `${kindName(kind)}${sizeText(count)}, of no single request`;
    const common = {
      name,
      cat: "metadata",
      pid,
      tid: 0,
      id: `0x${(++this.#metadata).toString(16)}`,
    };
    this.#event({ ...common, ph: "b", ts: micros(startMs), args: operationArgs(operation) });
    this.#event({ ...common, ph: "e", ts: micros(endMs) });
  }

  slotWait(startMs: number, endMs: number): void {
    this.#thread(DISK, SLOT_WAITS, "clients without a slot");
    const name = "clients wait for slots";
    this.#slice(DISK, SLOT_WAITS, { name, cat: "slots", startMs, endMs, args: {} });
  }

  /** Writes the end. */
  end(notes: TraceNotes): void {
    this.#write(`\n],"otherData":${plainJson(JSON.stringify(notes))}}\n`);
  }

  /** The process of an image. */
  #image(layer: number): number {
    const pid = IMAGES + layer;
    const name = this.#names.get(layer) ?? "an image that is not known";
    this.#process(pid, `${layer}: ${name}`);
    return pid;
  }

  #process(pid: number, name: string): void {
    if (this.#isNamed(`${pid}`)) return;
    this.#event({ name: "process_name", ph: "M", pid, tid: 0, args: { name } });
    this.#event({ name: "process_sort_index", ph: "M", pid, tid: 0, args: { sort_index: pid } });
  }

  #thread(pid: number, tid: number, name: string): void {
    if (this.#isNamed(`${pid}.${tid}`)) return;
    this.#event({ name: "thread_name", ph: "M", pid, tid, args: { name } });
    this.#event({ name: "thread_sort_index", ph: "M", pid, tid, args: { sort_index: tid } });
  }

  #isNamed(key: string): boolean {
    if (this.#named.has(key)) return true;
    this.#named.add(key);
    return false;
  }

  #slice(
    pid: number,
    tid: number,
    { name, cat, startMs, endMs, args }: {
      name: string;
      cat: string;
      startMs: number;
      endMs: number;
      args: Readonly<Record<string, unknown>>;
    },
  ): void {
    const ts = micros(startMs);
    // Of the rounded ends, so that slices within another stay within it.
    const dur = Number((micros(endMs) - ts).toFixed(3));
    this.#event({ name, cat, ph: "X", pid, tid, ts, dur, args });
  }

  #event(event: Readonly<Record<string, unknown>>): void {
    this.#write(`${this.#isFirst ? "" : ","}\n${plainJson(JSON.stringify(event))}`);
    this.#isFirst = false;
  }
}

/** Microseconds with three places. */
function micros(ms: number): number {
  return Math.round(ms * 1e6) / 1e3;
}

/** A time within that of a request: records have durations with 24 bits. */
function within(
  { startMs, endMs }: { startMs: number; endMs: number },
  firstMs: number,
  lastMs: number,
): { startMs: number; endMs: number } {
  const from = Math.min(Math.max(startMs, firstMs), lastMs);
  return { startMs: from, endMs: Math.min(Math.max(endMs, from), lastMs) };
}

function sizeText(sectors: number): string {
  if (sectors === 0) return "";
  return sectors % 2 === 0 ? ` ${sectors / 2} KiB` : ` ${sectors * 512} bytes`;
}

function placeOf(
  kind: number,
  sector: number,
  sectors: number,
): { sector?: number; sectors?: number } {
  return kindName(kind) === "flush" ? {} : { sector, sectors };
}

function errorOf(errno: number): { error?: string } {
  return errno === 0 ? {} : { error: errnoName(errno) };
}

function operationArgs(
  { kind, sector, count, errno }: TracedOperation,
): { sector?: number; sectors?: number; error?: string } {
  return { ...placeOf(kind, sector, count), ...errorOf(errno) };
}
