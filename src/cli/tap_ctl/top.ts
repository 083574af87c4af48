import { type Command, InvalidArgumentError, Option } from "commander";
import { Gatherer } from "../../observe/gather.ts";
import type { HostSample } from "../../observe/sample.ts";
import { printJson, printLine } from "../print.ts";
import { imageOf, rowsOf, SORT_KEYS, type SortKey } from "../top/rows.ts";
import { canDraw, Screen } from "../top/screen.ts";
import { rowLine, summaryLine, titleLine, troubleLines } from "../top/table.ts";
import { FIRST_VIEW, rowsIn, type Samples, type View } from "../top/view.ts";
import { filterOptions, parseCount } from "./options.ts";

interface TopOptions {
  readonly pid?: number;
  readonly minor?: number;
  readonly interval: number;
  readonly count?: number;
  readonly sort: SortKey;
  readonly reverse?: boolean;
  readonly filter?: string;
  readonly json?: boolean;
}

/** The width of a table that is no terminal's. */
const PRINTED_COLUMNS = 80;

/** A number of seconds, fractions included. */
function parseInterval(text: string): number {
  const seconds = Number(text);
  if (/^\d+(\.\d+)?$/.test(text) && seconds >= 0.1 && seconds <= 3600) return seconds;
  throw new InvalidArgumentError("It must be a number of seconds from 0.1 to 3600.");
}

/** A sample without the disks, and the trouble, that are not wanted. */
export function wanted(
  sample: HostSample,
  { pid, minor }: Pick<TopOptions, "pid" | "minor">,
): HostSample {
  const isWanted = (disk: { readonly pid: number; readonly minor: number }): boolean =>
    (pid === undefined || disk.pid === pid) && (minor === undefined || disk.minor === minor);
  const { disks, silent, dead, unserved } = sample;
  return {
    ...sample,
    disks: disks.filter(isWanted),
    silent: silent.filter((tapdisk) =>
      (pid === undefined || tapdisk.pid === pid) &&
      (minor === undefined || tapdisk.minors.includes(minor))
    ),
    // It is not known which minors a process had that has died, nor which process had a minor.
    dead: minor === undefined ? dead.filter((each) => pid === undefined || each === pid) : [],
    unserved: pid === undefined
      ? unserved.filter((each) => minor === undefined || each.minor === minor)
      : [],
  };
}

function viewOf({ sort, reverse = false, filter = "" }: TopOptions): View {
  return { ...FIRST_VIEW, sort, isReversed: reverse, filter };
}

function jsonOf(view: View, samples: Samples): unknown {
  const { timeMs, silent, dead, unserved } = samples.now;
  const disks = rowsIn(view, samples).map(({ disk, state, rates }) => ({
    ...disk,
    image: imageOf(disk),
    stateName: state,
    rates,
  }));
  return { time: new Date(timeMs).toISOString(), disks, silent, dead, unserved };
}

function printTable(view: View, samples: Samples): void {
  const { before, now } = samples;
  const columns = Deno.stdout.isTerminal() ? new Screen().size.columns : PRINTED_COLUMNS;
  const seconds = before === null ? null : (now.atMs - before.atMs) / 1000;
  printLine(summaryLine(rowsOf(before, now), seconds));
  printLine(titleLine(columns).trimEnd());
  for (const row of rowsIn(view, samples)) printLine(rowLine(row, columns).trimEnd());
  for (const line of troubleLines(now)) printLine(line);
}

/** Prints what disks did, so many times; each time for as long as an interval. */
async function print(options: TopOptions, gather: () => Promise<HostSample>): Promise<void> {
  const view = viewOf(options);
  let before = await gather();
  for (let left = options.count ?? 1; left > 0; left--) {
    await new Promise((resolve) => setTimeout(resolve, options.interval * 1000));
    const now = await gather();
    if (options.json) printJson(jsonOf(view, { before, now }), { indent: 0 });
    else printTable(view, { before, now });
    before = now;
  }
}

async function top(options: TopOptions): Promise<void> {
  const gatherer = new Gatherer();
  const gather = async (): Promise<HostSample> => wanted(await gatherer.gather(), options);
  if (options.json || options.count !== undefined || !canDraw()) {
    return await print(options, gather);
  }
  const { runLive } = await import("../top/live.ts");
  const intervalMs = options.interval * 1000;
  const status = await runLive(new Screen(), { intervalMs, view: viewOf(options), gather });
  if (status !== 0) Deno.exit(status);
}

/** `tap-ctl top`. */
export function defineTop(command: Command): Command {
  return filterOptions(command)
    .option("-i, --interval <seconds>", "time between two looks", parseInterval, 1)
    .option("-n, --count <number>", "print so many tables, and end", parseCount)
    .addOption(
      new Option("-s, --sort <key>", "the order of disks").choices(SORT_KEYS).default("iops"),
    )
    .option("-r, --reverse", "the other way round")
    .option("--filter <word>", "only disks with this word in image, device or state")
    .option("--json", "print JSON on one line, with all that is known of each disk")
    .addHelpText(
      "after",
      "\nOn a terminal, the table is drawn anew until q or Ctrl-C; ? explains the keys and the columns.\n" +
        "Enter shows one disk with its chain and the histograms of its requests. Where the output is no\n" +
        "terminal, one table of what disks did in an interval is printed, and the command ends.\n" +
        "NO_COLOR in the environment takes the colours away.",
    )
    .action(top);
}
