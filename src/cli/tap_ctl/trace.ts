import { type Command, InvalidArgumentError } from "commander";
import type { DeviceAddress } from "../../control/client/client.ts";
import { TraceFeed } from "../../control/client/trace_feed.ts";
import { plainText } from "../../log/plain_text.ts";
import { ChromeJson } from "../../trace/chrome_json.ts";
import { TraceCollector, type TraceSink } from "../../trace/collector.ts";
import { RECORD_BYTES, type TraceEnd } from "../../trace/records.ts";
import { TextLines } from "../../trace/text_lines.ts";
import { interruptible } from "../interruption.ts";
import { printErrorLine } from "../print.ts";
import { StandardOutput } from "../subcommands/output.ts";
import { deviceOptions, parseSeconds } from "./options.ts";
import { Spool, WholeFile } from "./trace_file.ts";

/** Records after which a trace ends by itself: 512 MiB of them. */
const MOST_RECORDS = 1 << 24;
/** How long a tapdisk may take to send the rest of a trace. */
const END_MS = 10_000;
/** How often signals are looked at. */
const LOOK_MS = 50;
const PIECE_BYTES = RECORD_BYTES << 12;

interface TraceChoices extends DeviceAddress {
  readonly output: string;
  readonly seconds?: number;
  readonly slowerThan?: number;
  readonly text?: boolean;
}

/** Where the text of a trace goes. */
interface TraceOutput {
  write(text: string): void;
  finish(): void;
  abandon(): void;
}

/** What a trace is written by. */
interface TraceWriter extends TraceSink {
  layer(layer: number, name: string): void;
}

const NOTES = `
Records what becomes of each request, until Ctrl-C or for --seconds: when it came, what it waited for,
when it was sent to the disk and came back, when it was answered. FILE is JSON that https://ui.perfetto.dev
and chrome://tracing open: a track for each slot of the disk, and the operations of each image of its
chain. FILE appears when it is whole; - is standard output.

--text prints lines in the manner of blkparse: minor, slot, number of the request, seconds since the trace
began, action, kind of request (R, W, F flush, D discard, Z zeros, I zeros with room, S status), first sector
+ sectors. Actions: Q came; G its data came; S waits; I goes to the image, once for each part and try; D sent to
the disk; B back from the disk; C ended; A answered; U not ended yet. The lines of a request follow each other.

Records that are not taken in time are lost, and counted. A disk has one trace at a time. A trace ends with the
disk, with its tapdisk, and after 16 million records.`;

function parseMilliseconds(text: string): number {
  const value = Number(text);
  if (/^\d+(\.\d+)?$/.test(text) && value <= 1e9) return value;
  throw new InvalidArgumentError("It must be a number of milliseconds, such as 20 or 0.5.");
}

/** `tap-ctl trace`. */
export function defineTrace(command: Command): Command {
  return deviceOptions(command)
    .requiredOption("-o, --output <file>", "where the trace goes, - for standard output")
    .option("--seconds <seconds>", "end after so many seconds", parseSeconds)
    .option("--slower-than <ms>", "only requests that took at least so long", parseMilliseconds)
    .option("--text", "print lines instead of JSON")
    .addHelpText("after", NOTES)
    .action(async (choices: TraceChoices) => {
      await interruptible((signal) => trace(choices, signal));
    });
}

function standardOutput(): TraceOutput {
  const output = new StandardOutput();
  return {
    write: (text) => output.printRaw(text),
    finish: () => output.flush(),
    abandon: () => {},
  };
}

async function trace(choices: TraceChoices, signal: AbortSignal): Promise<void> {
  const { output, ...device } = choices;
  const feed = new TraceFeed(device);
  try {
    const file = output === "-" ? standardOutput() : new WholeFile(output);
    try {
      await new Tracer(feed, file, choices).run(signal);
      file.finish();
    } catch (error) {
      file.abandon();
      throw error;
    }
  } finally {
    feed.close();
  }
}

/** Takes a trace in, and writes it. */
class Tracer {
  readonly #feed: TraceFeed;
  readonly #output: TraceOutput;
  readonly #choices: TraceChoices;
  readonly #writer: TraceWriter;
  readonly #json: ChromeJson | null;
  readonly #collector: TraceCollector;
  /** Records that become text later, as that takes longer than to keep them; null without. */
  readonly #spool: Spool | null;
  #records = 0;

  constructor(feed: TraceFeed, output: TraceOutput, choices: TraceChoices) {
    const { pid, minor, slowerThan = 0, text = false, output: path } = choices;
    this.#feed = feed;
    this.#output = output;
    this.#choices = choices;
    const write = (part: string): void => output.write(part);
    const { startMs } = feed.head;
    if (text) {
      const print = (line: string): void => write(`${plainText(line)}\n`);
      this.#writer = new TextLines({ minor, startMs }, print);
      this.#json = null;
    } else {
      this.#json = new ChromeJson(`minor ${minor} of tapdisk ${pid}`, write);
      this.#writer = this.#json;
    }
    this.#collector = new TraceCollector(this.#writer, slowerThan);
    const isLive = slowerThan > 0 || (text && path === "-");
    this.#spool = isLive ? null : new Spool(folderOf(path));
  }

  async run(signal: AbortSignal): Promise<void> {
    try {
      const end = await this.#take(signal);
      if (this.#spool !== null) {
        for (const piece of this.#spool.pieces(PIECE_BYTES)) this.#collector.take(piece);
      }
      this.#finish(end);
    } finally {
      this.#spool?.close();
    }
  }

  /** Takes records until the end; null when the tapdisk went away before it. */
  async #take(signal: AbortSignal): Promise<TraceEnd | null> {
    const { seconds = Infinity } = this.#choices;
    let untilMs = performance.now() + seconds * 1000;
    let isEnding = false;
    for (let lookMs = 0;;) {
      const nowMs = performance.now();
      if (nowMs >= lookMs) {
        lookMs = nowMs + LOOK_MS;
        // Listeners of signals are called meanwhile.
        await new Promise((resolve) => setTimeout(resolve, 0));
      }
      if (isEnding && nowMs > untilMs) return null;
      if (!isEnding && (signal.aborted || nowMs >= untilMs || this.#records >= MOST_RECORDS)) {
        if (!this.#stop()) return null;
        isEnding = true;
        untilMs = nowMs + END_MS;
      }
      const frame = this.#feed.next(Math.max(0, Math.min(LOOK_MS, untilMs - nowMs)));
      if (frame === "hung up") return null;
      if (frame === null) {
        // What is there is of use to whoever watches.
        if (this.#spool === null && this.#choices.output === "-") this.#output.finish();
        continue;
      }
      if (frame.type === "end") return frame.end;
      if (frame.type === "records") this.#keep(frame.bytes);
      else for (const [layer, name] of frame.names) this.#writer.layer(layer, name);
    }
  }

  /** Asks for the end; false when nobody is there any more. */
  #stop(): boolean {
    try {
      this.#feed.stop();
      return true;
    } catch {
      return false;
    }
  }

  #keep(bytes: Uint8Array<ArrayBuffer>): void {
    this.#records += bytes.length / RECORD_BYTES;
    if (this.#spool === null) this.#collector.take(bytes);
    else this.#spool.add(bytes);
  }

  #finish(end: TraceEnd | null): void {
    const { pid, minor, slowerThan = 0 } = this.#choices;
    const { startMs, epochMs } = this.#feed.head;
    const lost = (end?.lost ?? 0) + this.#collector.leftOut;
    const why = end?.why ?? "the tapdisk went away";
    const { requests, unfinished, failed, shown } = this.#collector.totals;
    this.#json?.end({
      tapdisk: pid,
      minor,
      began: new Date(epochMs).toISOString(),
      began_us: startMs * 1000,
      ended: why,
      requests,
      unfinished,
      failed,
      shown,
      slower_than_ms: slowerThan,
      lost_records: lost,
    });
    const told = (text: string): void => printErrorLine(`tap-ctl trace: ${text}`);
    if (end === null || end.why !== "it was told to end") told(`Ended early: ${why}`);
    if (this.#records >= MOST_RECORDS) told(`Ended after ${this.#records} records`);
    if (lost > 0) told(`${lost} records were lost: this machine did not take them in time`);
  }
}

function folderOf(path: string): string {
  if (path === "-") return Deno.env.get("TMPDIR") || "/tmp";
  const at = path.lastIndexOf("/");
  return at < 0 ? "." : path.slice(0, at) || "/";
}
