/**
 * Runs the tests, each file in a process of its own, so that a crash or a hang costs that file
 * only, and ends with one line that says what came of them.
 *
 *     deno run -A scripts/run_tests.ts [--build] [--check] [FILE…] [--OPTION=OF-DENO-TEST…]
 *
 * `--build` and `--check` do those tasks first and count each as a test.
 *
 * @module
 */

import { readJunit, type TestResult } from "./junit.ts";

/** No file of tests may take longer; the slowest boot an emulated machine. */
const FILE_TIMEOUT_MS = 15 * 60_000;

/** Of a failure that is told again at the end; all of it stands where the test ran. */
const REASON_LINES = 12;

const ROOT = new URL("..", import.meta.url).pathname;

interface Plan {
  readonly tasks: string[];
  readonly files: string[];
  readonly testOptions: string[];
}

function plan(args: readonly string[]): Plan {
  const tasks = ["build", "check"].filter((task) => args.includes(`--${task}`));
  const rest = args.filter((arg) => !tasks.includes(arg.slice(2)));
  const named = rest.filter((arg) => !arg.startsWith("-"));
  return {
    tasks,
    files: named.length > 0 ? named : testFilesIn("tests"),
    testOptions: rest.filter((arg) => arg.startsWith("-")),
  };
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

/** Runs Deno on the terminal of this process; returns what went wrong, or nothing. */
async function deno(args: string[], timeoutMs: number): Promise<string | undefined> {
  const child = new Deno.Command(Deno.execPath(), { args, stdin: "null" }).spawn();
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    child.kill("SIGKILL");
  }, timeoutMs);
  const status = await child.status;
  clearTimeout(timer);
  if (timedOut) {
    return `still ran after ${timeoutMs / 1000} s`;
  }
  if (status.signal !== null) {
    return `ended by ${status.signal}`;
  }
  return status.success ? undefined : `exit status ${status.code}`;
}

async function runTask(task: string): Promise<TestResult> {
  console.log(`\n# deno task ${task}`);
  const failure = await deno(["task", "--quiet", task], FILE_TIMEOUT_MS);
  return { file: `deno task ${task}`, name: failure ?? "", outcome: failure ? "failed" : "passed" };
}

async function runFile(file: string, options: string[]): Promise<TestResult[]> {
  const report = Deno.makeTempFileSync({ prefix: "junit-" });
  try {
    // The types are looked at by the task `check`, all at once.
    const args = ["test", "-A", "--no-check", `--junit-path=${report}`, ...options, file];
    const failure = await deno(args, FILE_TIMEOUT_MS);
    const results = readJunit(Deno.readTextFileSync(report));
    if (failure !== undefined && !results.some((result) => result.outcome === "failed")) {
      results.push({ file, name: failure, outcome: "failed" });
    }
    return results;
  } finally {
    Deno.removeSync(report);
  }
}

/** The beginning of a reason, below what it is one for. */
function indented(reason: string): string {
  const lines = reason === "" ? [] : reason.split("\n").slice(0, REASON_LINES);
  return lines.map((line) => `\n      ${line}`).join("");
}

/** Prints those that did not run and those that failed, and the closing line. */
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

async function main(): Promise<number> {
  Deno.chdir(ROOT);
  const { tasks, files, testOptions } = plan(Deno.args);
  const results: TestResult[] = [];
  for (const task of tasks) {
    results.push(await runTask(task));
  }
  for (const file of files) {
    results.push(...await runFile(file, testOptions));
  }
  return summarise(results) ? 0 : 1;
}

Deno.exit(await main());
