/**
 * `deno task soak`: many disks under many clients for a long time, while everything happens to
 * them that happens to disks.
 *
 * @module
 */
import { Command, InvalidArgumentError } from "commander";
import { binaryPath, findTool } from "../../support/tools.ts";
import type { Soak } from "./context.ts";
import { printed } from "./report.ts";
import { runSoak } from "./run.ts";

/** Set in the process that does the work. */
const INNER = "BLKTAP_SOAK_INNER";
const TERMINAL_PROGRESS_MS = 10_000;
const LOG_PROGRESS_MS = 60_000;
const PARENT_MS = 1000;

interface Options {
  readonly minutes: number;
  readonly seed: number;
  readonly rate: number;
  readonly events: number;
  readonly where: string;
  readonly json?: true;
}

function number(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError("Not a number above 0.");
  return value;
}

function commandOf(): Command {
  return new Command("soak")
    .description(
      "Serves some 40 disks of all kinds to verifying clients, while tapdisks are killed, servers\n" +
        "restart, filesystems fill up, and images are snapshot, merged and resized.",
    )
    .option("--minutes <n>", "how long", number, 3)
    .option("--seed <n>", "decides disks and events", number, freshSeed())
    .option("--rate <n>", "requests of all verifying clients in a second", number, 1500)
    .option("--events <n>", "events in a minute", number, 60)
    .option("--where <folder>", "where files are that are not on tmpfs", defaultFolder())
    .option("--json", "print the report as JSON");
}

function freshSeed(): number {
  return 1 + crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000_000;
}

function defaultFolder(): string {
  return Deno.env.get("TMPDIR") ?? "/tmp";
}

/** One line that says how far the soak is. */
function progressOf(soak: Soak, startMs: number, { minutes }: Options): string {
  const seconds = (performance.now() - startMs) / 1000;
  const { counts } = soak.journal;
  const events = Object.entries(counts)
    .filter(([what]) => what.startsWith("events: "))
    .reduce((sum, [, count]) => sum + count, 0);
  return `soak: ${seconds.toFixed(0)} of ${(minutes * 60).toFixed(0)} s, ` +
    `${counts["requests of writers"] ?? 0} requests, ${events} events, ` +
    (soak.finding === null ? "nothing found" : "FOUND SOMETHING");
}

async function inner(options: Options): Promise<number> {
  const isTerminal = Deno.stderr.isTerminal();
  const say = (text: string): void =>
    void Deno.stderr.writeSync(
      new TextEncoder().encode(isTerminal ? `\r\x1b[K${text}` : `${text}\n`),
    );
  say(`soak: seed ${options.seed}`);
  let timer = 0;
  const started = (soak: Soak): void => {
    const startMs = performance.now();
    const everyMs = isTerminal ? TERMINAL_PROGRESS_MS : LOG_PROGRESS_MS;
    timer = setInterval(() => say(progressOf(soak, startMs, options)), everyMs);
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      Deno.addSignalListener(signal, () => {
        say("soak: ends now, and compares everything");
        soak.end();
      });
    }
    watchParent(soak);
  };
  const report = await runSoak({ ...options, started });
  clearInterval(timer);
  if (isTerminal) say("");
  console.log(options.json ? JSON.stringify(report) : printed(report));
  return report.finding === null ? 0 : 1;
}

/** Ends the soak when the program that was started is killed. */
function watchParent(soak: Soak): void {
  const { ppid } = Deno;
  const timer = setInterval(() => {
    if (Deno.ppid !== ppid) soak.end();
    if (soak.isEnding) clearInterval(timer);
  }, PARENT_MS);
}

/**
 * Runs the work in a session of its own: Ctrl-C on a terminal must reach the soak only, not the
 * servers and commands that it has started.
 */
async function outer(args: readonly string[]): Promise<number> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", import.meta.url, ...args],
    env: { [INNER]: "1" },
    detached: true,
  }).spawn();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => child.kill(signal));
  }
  return (await child.status).code;
}

async function main(args: readonly string[]): Promise<number> {
  const options = commandOf().parse(args, { from: "user" }).opts<Options>();
  if (findTool(binaryPath("tapdisk")) === undefined) {
    console.error("soak: there is no dist/tapdisk: run scripts/build");
    return 69;
  }
  return await (Deno.env.has(INNER) ? inner(options) : outer(args));
}

if (import.meta.main) Deno.exit(await main(Deno.args));
