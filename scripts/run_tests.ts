/**
 * Runs the tests, each file in its own process, so that a crash or a hang affects only that file.
 * The last line of the output is the result.
 *
 *     deno run -A scripts/run_tests.ts [--build] [--check] [--quick] [FILE…] [--OPTION=OF-DENO-TEST…]
 *
 * `--build` and `--check` run those tasks first and count each as a test. `--quick` skips the tests
 * that need a virtual machine, minutes, or an idle machine.
 *
 * @module
 */

import { readJunit, type TestResult } from "./junit.ts";
import { describeProcesses, killTree, Printed, processes } from "./processes.ts";

/** Time limit of a test file; the slowest files boot an emulated machine. */
const FILE_TIMEOUT_MS = 15 * 60_000;

/** How long a stream is read that a program keeps open after its tests have ended. */
const LEFT_OPEN_MS = 5000;

/**
 * Lines of a failure's reason that the summary repeats; the full reason is in the output of the
 * test.
 */
const REASON_LINES = 12;

const ROOT = new URL("..", import.meta.url).pathname;

/** Files that measure time or memory, or compare with peers; they run alone. */
const MEASURES =
  /^tests\/interop\/|_allocations?_test\.ts$|\/spin_test\.ts$|\/gathering_test\.ts$|\/soak_test\.ts$/;

/** Files of tests/interop to which it does not matter how long anything takes. */
const UNTIMED =
  /\/(?:binary|blktap2_ring|changed_blocks|deep_chain|durability|encrypted|full_disk|image_lock|image_types|keys_in_memory|live_snapshot|local_cache|memory_drivers|migration|mirror|names|nbd_clients|nbd_handover|nbd_options|nbd_protocol|package|parent_roots|qcow2\w*|readme|restore|sbom|sm_\w+|special_files|tap_ctl\w*|tapdisk_new|temporary_files|trusted_files|vhd_images|vhd_limit|vhd_util_merge|vhd_util_offline)_test\.ts$/;

/** Searches take minutes on all processors; they run one at a time, with nothing beside them. */
const SEARCHES = /^tests\/search\//;

/** Virtual machines run one at a time, because each uses a processor for minutes. */
const MACHINES = /^tests\/vm\//;

/** Files of tests/interop that `--quick` runs: the commands, a disk's life, NBD. */
const QUICK_INTEROP = /\/(?:binary|tap_ctl|nbd_protocol|vhd_images)_test\.ts$/;

/** Files that `--quick` leaves out because they take long. */
const SLOW =
  /(?:\/contributing|_allocations?|\/device_in_use|\/io_memory_full|\/local_cache|\/mirror_model|\/nbd_driver|\/qcow|\/qcow_offline_cuts|\/qcow2_bad_input|\/qcow2_compact|\/qcow2_deep_chain|\/qcow2_model|\/qcow2_peers|\/qcow2_power_cut|\/offline_coalesce|\/other_formats_fields|\/qcow2_order|\/tapback_process|\/td_util|\/vhd_resize|\/xenblkif_journal)_test\.ts$/;

/** The name of a task among files. */
const TASK = /^deno task (.*)$/;

/** Files that can run beside all others: they start no tapdisk with the folders of the whole host. */
const MOVABLE = /^tests\/(?:unit|sim)\//;

interface Plan {
  /** Tasks that must have ended before a test starts. */
  readonly tasks: string[];
  /**
   * Lists of files, and of tasks beside which tests can run; the lists run in parallel, the files of a
   * list in order. A list that is through takes files from the other one's end; see `MOVABLE`.
   */
  readonly lanes: string[][];
  /** Files that run after the lanes, one at a time. */
  readonly alone: string[];
  readonly testOptions: string[];
}

function plan(args: readonly string[]): Plan {
  const tasks = args.includes("--build") ? ["build"] : [];
  const check = args.includes("--check") ? ["deno task check"] : [];
  const quick = args.includes("--quick");
  const rest = args.filter((arg) => !["--build", "--check", "--quick"].includes(arg));
  const testOptions = rest.filter((arg) => arg.startsWith("-"));
  const named = rest.filter((arg) => !arg.startsWith("-"));
  if (named.length > 0) return { tasks, lanes: [check], alone: named, testOptions };
  const files = testFilesIn("tests").filter((file) => !quick || isQuick(file));
  const measures = files.filter((file) => MEASURES.test(file) && !UNTIMED.test(file));
  const shared = files.filter((file) => !measures.includes(file) && !MACHINES.test(file));
  const machines = files.filter((file) => MACHINES.test(file));
  const searches = shared.filter((file) => SEARCHES.test(file));
  const quicker = shared.filter((file) => !SEARCHES.test(file));
  const units = quicker.filter((file) => file.startsWith("tests/unit/"));
  const others = quicker.filter((file) => !units.includes(file));
  const lanes = machines.length > 0
    ? [machines, [...check, ...others, ...units]]
    : [[...check, ...units], others];
  const alone = [...searches, ...measures];
  return { tasks, lanes, alone, testOptions };
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
  file: string,
  { options, output }: { options: string[]; output: Output },
): Promise<TestResult[]> {
  const report = Deno.makeTempFileSync({ prefix: "junit-" });
  try {
    // The task `check` checks the types of all files at once.
    const args = ["test", "-A", "--no-check", `--junit-path=${report}`, ...options, file];
    const failure = await deno(args, { timeoutMs: FILE_TIMEOUT_MS, output });
    const results = readJunit(Deno.readTextFileSync(report));
    if (failure !== undefined && !results.some((result) => result.outcome === "failed")) {
      results.push({ file, name: failure, outcome: "failed" });
    }
    return results;
  } finally {
    Deno.removeSync(report);
  }
}

/** The first lines of a reason, indented. */
function indented(reason: string): string {
  const lines = reason === "" ? [] : reason.split("\n").slice(0, REASON_LINES);
  return lines.map((line) => `\n      ${line}`).join("");
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
    if (task === undefined) results.push(...await runFile(file, how));
    else results.push(await runTask(task, how.output));
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
  const { tasks, lanes, alone, testOptions: options } = plan(Deno.args);
  const results: TestResult[] = [];
  for (const task of tasks) {
    results.push(await runTask(task));
  }
  const sideBySide = lanes.map((lane) =>
    runFiles(() => nextOf(lane, lanes), { options, output: "whole" })
  );
  results.push(...(await Promise.all(sideBySide)).flat());
  results.push(...await runFiles(() => alone.shift(), { options, output: "live" }));
  return summarise(results) ? 0 : 1;
}

Deno.exit(await main());
