/**
 * Runs the tests. A process runs several small files, which saves the time to start it and to read modules;
 * every other file has its own, so that a crash or a hang affects only that file.
 * The last line of the output is the result.
 *
 *     deno run -A scripts/run_tests.ts [--build] [--check] [--quick] [FILE…] [--OPTION=OF-DENO-TEST…]
 *
 * `--build` and `--check` run those tasks first and count each as a test. `--quick` skips the tests
 * that need a virtual machine, minutes, or an idle machine.
 *
 * @module
 */

import { readJunit, type TestResult, withLost } from "./junit.ts";
import { describeProcesses, killTree, Printed, processes } from "./processes.ts";

/** Time limit of a test file; the slowest files boot an emulated machine. */
const FILE_TIMEOUT_MS = 30 * 60_000;

/** How long a stream is read that a program keeps open after its tests have ended. */
const LEFT_OPEN_MS = 5000;

/**
 * Lines of a failure's reason that the summary repeats; the full reason is in the output of the
 * test.
 */
const REASON_LINES = 12;

const ROOT = new URL("..", import.meta.url).pathname;

/** Files that measure time, or compare with peers; they run alone. */
const MEASURES =
  /^tests\/interop\/(?:hung_disk|hung_tapdisk|rate_limits|valve)_test\.ts$|\/(?:gathering|spin)_test\.ts$/;

/** Files that measure memory, to which other programs make no difference. */
const MEMORY = /_allocations?_test\.ts$|^tests\/unit\/soak_test\.ts$/;

/** Searches that leave a processor idle. */
const SOAK = "tests/search/soak_test.ts";
const MUTANTS = "tests/search/mutants_test.ts";

/** Other searches take minutes on all processors; they run one at a time, with nothing beside them. */
const SEARCHES = /^tests\/search\//;

/** Virtual machines run one at a time, because each uses a processor for minutes. */
const MACHINES = /^tests\/vm\//;

/** Files of tests/interop that `--quick` runs: the commands, a disk's life. */
const QUICK_INTEROP = /\/(?:tap_ctl|vhd_images)_test\.ts$/;

/** Small files that one process runs. */
const BATCH = 12;

/** Parts the files of one process. */
const AND = "\n";

/** Files that take long: `--quick` leaves them out, and each has a process of its own. */
const SLOW =
  /(?:\/bystanders|\/chain_walk|\/contributing|\/device_in_use|\/doctor|\/encrypted_model|\/fuzz_wire_corpus|\/io_memory_full|\/library_driver|\/local_cache|\/made_images|\/memory_drivers|\/mirror|\/mirror_model|\/mutants|\/names|\/nbd_driver|\/nbd_links|\/nbd_order|\/nbd_port|\/nbd_tls_noise|\/offline_coalesce|\/other_formats_fields|\/processes|\/qcow|\/qcow2_bad_input|\/qcow2_compact|\/qcow2_damaged|\/qcow2_deep_chain|\/qcow2_late_errors|\/qcow2_model|\/qcow2_offline|\/qcow2_order|\/qcow2_peers|\/qcow2_power_cut|\/qcow2_reserve|\/qcow2_sequential|\/qcow_late_errors|\/qcow_offline_cuts|\/rate_limits_random|\/retry|\/tapback_process|\/tapback_seeds|\/td_util|\/vhd_late_errors|\/vhd_resize|\/vhd_sequential|\/vhd_util_options|\/vhdx|\/vhdx_log|\/xenblkif_journal|\/xenblkif_order|\/xenblkif_ring|_allocations?)_test\.ts$/;

/** Files that the end of the output names as the slowest. */
const SLOWEST = 25;

/** The name of a task among files. */
const TASK = /^deno task (.*)$/;

/** Files that can run beside all others: they start no tapdisk with the folders of the whole host. */
const MOVABLE = /^tests\/(?:unit|sim)\//;

/** What runs side by side: lists of files and tasks, in order. An entry may name several files. */
interface Stage {
  /** A list that is through takes files from another one's end; see `MOVABLE`. */
  readonly lanes: string[][];
  readonly output: Output;
}

interface Plan {
  /** Tasks that must have ended before a test starts. */
  readonly tasks: string[];
  /** One after the other. */
  readonly stages: Stage[];
  readonly testOptions: string[];
}

function plan(args: readonly string[]): Plan {
  const tasks = args.includes("--build") ? ["build"] : [];
  const check = args.includes("--check") ? ["deno task check"] : [];
  const quick = args.includes("--quick");
  const rest = args.filter((arg) => !["--build", "--check", "--quick"].includes(arg));
  const testOptions = rest.filter((arg) => arg.startsWith("-"));
  const named = rest.filter((arg) => !arg.startsWith("-"));
  if (named.length > 0) return { tasks, stages: oneByOne([check, named]), testOptions };
  const files = testFilesIn("tests").filter((file) => !quick || isQuick(file));
  const take = (wanted: RegExp): string[] => {
    const taken = files.filter((file) => wanted.test(file));
    for (const file of taken) files.splice(files.indexOf(file), 1);
    return taken;
  };
  const [measures, machines, searches] = [take(MEASURES), take(MACHINES), take(SEARCHES)];
  const memory = take(MEMORY);
  const units = take(/^tests\/unit\//);
  if (quick) {
    const [inter, sims] = [take(/^tests\/interop\//), files];
    const lanes = [[...check, ...batches(units)], [...inter, ...batches(sims)]];
    return {
      tasks,
      stages: [{ lanes, output: "whole" }, ...oneByOne([memory, measures])],
      testOptions,
    };
  }
  const alone = [
    ...take(/^tests\/interop\//),
    ...[...units, ...files].filter((file) => SLOW.test(file)),
  ];
  const together = batches([...units, ...files].filter((file) => !SLOW.test(file)));
  const stages: Stage[] = [
    { lanes: [machines, [...check, ...alone, ...together]], output: "whole" },
    ...oneByOne([searches.filter((file) => file !== SOAK && file !== MUTANTS)]),
    { lanes: [[SOAK], [MUTANTS, ...memory]], output: "whole" },
    ...oneByOne([measures]),
  ];
  return { tasks, stages, testOptions };
}

/** Stages of one list each. */
function oneByOne(lists: string[][]): Stage[] {
  return lists.map((list) => ({ lanes: [list], output: "live" }));
}

/** Files that are run by one process each, at most `BATCH` together. */
function batches(files: readonly string[]): string[] {
  const count = Math.ceil(files.length / BATCH);
  // Neighbours by name are alike. So that no process has all slow ones, they are dealt out.
  return Array.from(
    { length: count },
    (_, i) => files.filter((_, at) => at % count === i).join(AND),
  );
}

function isQuick(file: string): boolean {
  if (SLOW.test(file) || MACHINES.test(file) || SEARCHES.test(file)) return false;
  return !file.startsWith("tests/interop/") || QUICK_INTEROP.test(file);
}

function testFilesIn(folder: string): string[] {
  const found: string[] = [];
  for (const entry of Deno.readDirSync(folder)) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory) {
      found.push(...testFilesIn(path));
    } else if (entry.name.endsWith("_test.ts")) {
      found.push(path);
    }
  }
  return found.sort();
}

/** How a test's output is printed: at once, or as a whole when the test ends. */
type Output = "live" | "whole";

/** Runs Deno; returns the reason of a failure, or nothing. */
async function deno(
  args: string[],
  { timeoutMs, output }: { timeoutMs: number; output: Output },
): Promise<string | undefined> {
  const before = new Set(processes().map(({ pid }) => pid));
  const command = { args, stdin: "null", stdout: "piped", stderr: "piped" } as const;
  const child = new Deno.Command(Deno.execPath(), command).spawn();
  let stuck = "";
  const timer = setTimeout(() => {
    // What the tests left to another parent, as daemons are, is among the new ones.
    stuck = describeProcesses(processes().filter(({ pid }) => !before.has(pid)));
    killTree(child.pid);
  }, timeoutMs);
  const printed = new Printed(child.stdout, output === "live" ? Deno.stdout : null);
  const errors = new Printed(child.stderr, output === "live" ? Deno.stderr : null);
  const status = await child.status;
  clearTimeout(timer);
  await Promise.all([printed.end(LEFT_OPEN_MS), errors.end(LEFT_OPEN_MS)]);
  if (output === "whole") console.log(`${printed.text}${errors.text}`);
  if (stuck !== "") {
    const last = printed.text.trimEnd().split("\n").at(-1) ?? "";
    return `still ran after ${timeoutMs / 1000} s; its last line: ${last}\n${stuck}`;
  }
  if (status.signal !== null) {
    return `ended by ${status.signal}`;
  }
  return status.success ? undefined : `exit status ${status.code}`;
}

async function runTask(task: string, output: Output = "live"): Promise<TestResult> {
  console.log(`\n# deno task ${task}`);
  const failure = await deno(["task", "--quiet", task], { timeoutMs: FILE_TIMEOUT_MS, output });
  return { file: `deno task ${task}`, name: failure ?? "", outcome: failure ? "failed" : "passed" };
}

async function runFile(
  entry: string,
  { options, output }: { options: string[]; output: Output },
): Promise<TestResult[]> {
  const files = entry.split(AND);
  const report = Deno.makeTempFileSync({ prefix: "junit-" });
  try {
    // The task `check` checks the types of all files at once.
    const args = [
      "test",
      "-A",
      "--no-check",
      `--junit-path=${report}`,
      ...options,
      ...files,
    ];
    const failure = await deno(args, { timeoutMs: FILE_TIMEOUT_MS, output });
    const isFiltered = options.some((option) => option.startsWith("--filter"));
    return withLost(readJunit(Deno.readTextFileSync(report)), { files, failure, isFiltered });
  } finally {
    Deno.removeSync(report);
  }
}

/** The first lines of a reason, indented. */
function indented(reason: string): string {
  const lines = reason === "" ? [] : reason.split("\n").slice(0, REASON_LINES);
  return lines.map((line) => `\n      ${line}`).join("");
}

/** How long files and tasks took, seconds. */
const took: { file: string; seconds: number }[] = [];

function named(entry: string): string {
  const [first, ...others] = TASK.test(entry) ? [entry] : entry.split(AND);
  return others.length === 0 ? first : `${first} and ${others.length} others`;
}

/** Prints those that took longest, so that somebody can make them shorter. */
function tellSlowest(): void {
  const slowest = took.sort((a, b) => b.seconds - a.seconds).slice(0, SLOWEST);
  if (slowest.length < SLOWEST) return;
  const lines = slowest.map(({ file, seconds }) => `  ${seconds.toFixed(0)} s ${named(file)}`);
  console.log(`\nSlowest files:\n${lines.join("\n")}`);
}

/** Prints the skipped and failed tests, and the last line. */
function summarise(results: readonly TestResult[]): boolean {
  const of = (outcome: TestResult["outcome"]): TestResult[] =>
    results.filter((result) => result.outcome === outcome);
  const list = (title: string, some: readonly TestResult[]): void => {
    if (some.length > 0) {
      const lines = some.map(({ file, name, reason = "" }) =>
        `  ${file.replace(/^\.\//, "")}: ${name}${indented(reason)}`
      );
      console.log(`\n${title}:\n${lines.join("\n")}`);
    }
  };
  const failed = of("failed");
  const skipped = of("skipped");
  list("Skipped", skipped);
  list("Failed", failed);
  if (skipped.length > 0) console.log(`\n${skipped.length} skipped`);
  console.log(`\n${of("passed").length} passed, ${failed.length} failed`);
  return failed.length === 0;
}

type How = Parameters<typeof runFile>[1];

async function runFiles(next: () => string | undefined, how: How): Promise<TestResult[]> {
  const results: TestResult[] = [];
  for (let file = next(); file !== undefined; file = next()) {
    const [, task] = TASK.exec(file) ?? [];
    const startMs = performance.now();
    if (task === undefined) results.push(...await runFile(file, how));
    else results.push(await runTask(task, how.output));
    took.push({ file, seconds: (performance.now() - startMs) / 1000 });
  }
  return results;
}

/** Takes the next file of a lane; when it is through, the last one of another lane that can be moved. */
function nextOf(lane: string[], lanes: readonly string[][]): string | undefined {
  const own = lane.shift();
  if (own !== undefined) return own;
  return lanes.find((other) => MOVABLE.test(other.at(-1) ?? ""))?.pop();
}

async function main(): Promise<number> {
  Deno.chdir(ROOT);
  const { tasks, stages, testOptions: options } = plan(Deno.args);
  const results: TestResult[] = [];
  for (const task of tasks) {
    results.push(await runTask(task));
  }
  for (const { lanes, output } of stages) {
    const sideBySide = lanes.map((lane) =>
      runFiles(() => nextOf(lane, lanes), { options, output })
    );
    results.push(...(await Promise.all(sideBySide)).flat());
  }
  tellSlowest();
  return summarise(results) ? 0 : 1;
}

Deno.exit(await main());
