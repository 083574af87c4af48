/**
 * Runs a search: `deno task sim`, `deno task fuzz`, `deno task enumerate`.
 *
 * Several processes take every n-th seed. A process that finds something ends, and another goes on
 * with its next seed. A process that gives no sign of life, or takes too much memory, is a finding.
 *
 * @module
 */
import { Command, InvalidArgumentError } from "commander";
import { SEARCHES } from "./registry.ts";
import type { Search } from "./search.ts";
import type { WorkerReport, WorkerTask } from "./worker.ts";

const WORKER = new URL("worker.ts", import.meta.url).pathname;
/** A search ends after so many findings. */
const MOST_FAILURES = 10;
const PROGRESS_MS = 500;

interface Options {
  readonly seed?: number;
  readonly from: number;
  readonly fresh?: true;
  readonly count?: number;
  readonly minutes?: number;
  readonly workers: number;
  readonly only?: string;
}

/** What all processes of a search have done. */
class Totals {
  readonly #startMs = performance.now();
  readonly #units: number[] = [];
  readonly #counts = new Map<string, Map<number, number>>();
  seeds = 0;
  failures = 0;

  /** Notes the units of a process; `process` is a number of its own. */
  progress(process: number, { units, counts }: Pick<WorkerProgress, "units" | "counts">): void {
    this.#units[process] = units;
    for (const [what, count] of Object.entries(counts)) {
      const known = this.#counts.get(what) ?? new Map<number, number>();
      this.#counts.set(what, known.set(process, count));
    }
  }

  get units(): number {
    return this.#units.reduce((sum, units) => sum + (units ?? 0), 0);
  }

  get seconds(): number {
    return (performance.now() - this.#startMs) / 1000;
  }

  line(name: string, unit: string): string {
    const seconds = this.seconds.toFixed(0);
    return `${name}: ${this.units} ${unit} of ${this.seeds} seeds in ${seconds} s, ` +
      `${this.failures} findings`;
  }

  details(): string[] {
    return [...this.#counts].sort(([a], [b]) => a < b ? -1 : 1).map(([what, counts]) =>
      `  ${[...counts.values()].reduce((sum, count) => sum + count, 0)} ${what}`
    );
  }
}

type WorkerProgress = Extract<WorkerReport, { kind: "progress" }>;

/** One process of a search. */
class WorkerProcess {
  readonly #child: Deno.ChildProcess;
  readonly #search: Search;
  /** The seed that runs. */
  seed: number;
  units = 0;
  /** Why the process failed; null if it did not. */
  reason: string | null = null;

  constructor(task: WorkerTask, search: Search) {
    this.#search = search;
    this.seed = task.firstSeed;
    this.#child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--no-check", WORKER, JSON.stringify(task)],
      stdin: "null",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
  }

  kill(): void {
    try {
      this.#child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
  }

  #fail(reason: string): void {
    this.reason ??= reason;
    this.kill();
  }

  /** Reads the reports until the process ends. */
  async run(hear: (report: WorkerReport) => void): Promise<void> {
    let alarm = 0;
    const { secondsPerSeed, residentBytes } = this.#search;
    const wind = (): void => {
      clearTimeout(alarm);
      const late = (): void => this.#fail(`Still runs after ${secondsPerSeed} s`);
      alarm = setTimeout(late, secondsPerSeed * 1000);
    };
    wind();
    for await (const line of linesOf(this.#child.stdout)) {
      const report: WorkerReport = JSON.parse(line);
      if (report.kind === "seed") {
        this.seed = report.seed;
        wind();
      } else if (report.kind === "failure") this.reason = report.reason;
      else if (report.kind === "progress") {
        this.units = report.units;
        if (report.residentBytes > residentBytes) {
          this.#fail(`Takes ${report.residentBytes} bytes of memory; ${residentBytes} are allowed`);
        }
      }
      hear(report);
    }
    const status = await this.#child.status;
    clearTimeout(alarm);
    if (!status.success) this.reason ??= `Ended by ${status.signal ?? `status ${status.code}`}`;
  }
}

async function* linesOf(stream: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<string> {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
}

/** A search with its options, from start to report. */
class Run {
  readonly #totals = new Totals();
  readonly #isTerminal = Deno.stderr.isTerminal();
  readonly #processes = new Set<WorkerProcess>();
  #started = 0;
  #lastProgressMs = 0;
  #ended = false;

  constructor(readonly name: string, readonly search: Search, readonly options: Options) {}

  async run(): Promise<boolean> {
    const { seed, workers } = this.options;
    const lanes = seed === undefined ? workers : 1;
    const onSignal = (): void => this.#stop();
    Deno.addSignalListener("SIGINT", onSignal);
    await Promise.all(Array.from({ length: lanes }, (_, lane) => this.#lane(lane, lanes)));
    Deno.removeSignalListener("SIGINT", onSignal);
    this.#clearLine();
    console.log(this.#totals.line(this.name, this.search.unit));
    for (const line of this.#totals.details()) console.log(line);
    return this.#totals.failures === 0;
  }

  #stop(): void {
    this.#ended = true;
    for (const process of this.#processes) process.kill();
  }

  /** Runs processes one after the other until the units of this lane are searched. */
  async #lane(lane: number, lanes: number): Promise<void> {
    const { seed, from, count, minutes, only = null } = this.options;
    let firstSeed = seed ?? from + lane;
    let units = count === undefined ? null : Math.ceil(count / lanes);
    while (!this.#ended) {
      const milliseconds = minutes === undefined
        ? null
        : minutes * 60_000 - this.#totals.seconds * 1000;
      const task = { search: this.name, firstSeed, seedStep: lanes, units, milliseconds, only };
      const process = new WorkerProcess({ ...task, tracing: seed !== undefined }, this.search);
      this.#processes.add(process);
      const place = this.#started++;
      await process.run((report) => this.#hear(place, report));
      this.#processes.delete(process);
      if (this.#ended || process.reason === null) return;
      this.#failed(process);
      if (seed !== undefined) return;
      firstSeed = process.seed + lanes;
      if (units !== null) units = Math.max(1, units - process.units);
    }
  }

  #failed({ seed, reason }: WorkerProcess): void {
    this.#clearLine();
    console.error(`${this.name}: seed ${seed}: ${reason}`);
    const only = this.options.only === undefined ? "" : ` --only ${this.options.only}`;
    if (this.options.seed === undefined) {
      console.error(`Replay it with: deno task ${this.name} --seed ${seed}${only}\n`);
    }
    if (++this.#totals.failures >= MOST_FAILURES) this.#stop();
  }

  #hear(place: number, report: WorkerReport): void {
    if (report.kind === "trace") console.log(report.line);
    if (report.kind !== "progress") return;
    this.#totals.seeds++;
    this.#totals.progress(place, report);
    if (!this.#isTerminal || performance.now() - this.#lastProgressMs < PROGRESS_MS) return;
    this.#lastProgressMs = performance.now();
    Deno.stderr.writeSync(
      new TextEncoder().encode(`\r${this.#totals.line(this.name, this.search.unit)}`),
    );
  }

  #clearLine(): void {
    if (this.#isTerminal) Deno.stderr.writeSync(new TextEncoder().encode("\r\x1b[K"));
  }
}

function number(text: string): number {
  const value = Number(text);
  if (!Number.isFinite(value) || value < 0) throw new InvalidArgumentError("Not a number.");
  return value;
}

/** The whole seeds below 2^31 are all different. */
function freshSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000_000 + 1_000_000_000;
}

function commandOf(name: string): Command {
  return new Command(name)
    .description(`Searches: ${name}. Without --count or --minutes, until Ctrl-C.`)
    .option("--seed <n>", "replay one seed, with its trace", number)
    .option("--from <n>", "the first seed", number, 1)
    .option("--fresh", "begin with a seed that was never used; it is printed")
    .option("--count <n>", "end when so many units are searched", number)
    .option("--minutes <n>", "end after so much time", number)
    .option("--workers <n>", "processes", number, navigator.hardwareConcurrency)
    .option("--only <part>", "search one part only");
}

async function main(args: readonly string[]): Promise<number> {
  const [name = "", ...rest] = args;
  const load = SEARCHES[name];
  if (load === undefined) {
    console.error(`usage: run.ts SEARCH [OPTIONS]; searches: ${Object.keys(SEARCHES).join(", ")}`);
    return 64;
  }
  const options = commandOf(name).parse(rest, { from: "user" }).opts<Options>();
  const from = options.fresh ? freshSeed() : options.from;
  if (options.fresh) console.log(`${name}: the first seed is ${from}`);
  return await new Run(name, await load(), { ...options, from }).run() ? 0 : 1;
}

Deno.exit(await main(Deno.args));
