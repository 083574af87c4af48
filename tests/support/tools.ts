/**
 * Helpers for tests: find a tool, run it, create a temporary folder.
 *
 * @module
 */

import { describeProcesses, isLate, killTree, Printed, treeOf } from "../../scripts/processes.ts";

const ROOT = new URL("../../", import.meta.url).pathname;

/**
 * The folders where Debian installs programs for tests, also when PATH is that of an ordinary user.
 */
const FOLDERS = [...(Deno.env.get("PATH") ?? "").split(":"), "/usr/sbin", "/sbin"];

/** Options of {@linkcode run}. */
export interface RunOptions {
  readonly cwd?: string;
  /** Added to the environment of this process. */
  readonly env?: Record<string, string>;
  readonly stdin?: string | Uint8Array<ArrayBuffer>;
  /** The program is killed after this time; 60,000 by default. */
  readonly timeoutMs?: number;
  /** The program is killed when this is aborted. */
  readonly signal?: AbortSignal;
}

/** The result of a program; `code` is 128 + n when signal n ended it. */
export interface RunResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** The parts of a test definition that depend on its requirements; see {@linkcode needs}. */
export interface Needs {
  /** Whether the test must be skipped. */
  readonly ignore: boolean;
  /** Appended to the name of the test: empty, or the reason why it is skipped. */
  readonly suffix: string;
}

/** The path of a program; undefined when it is not installed. A path is returned unchanged. */
export function findTool(name: string): string | undefined {
  if (name.includes("/")) {
    return isFile(name) ? name : undefined;
  }
  return FOLDERS.map((folder) => `${folder}/${name}`).find(isFile);
}

export function hasTool(name: string): boolean {
  return findTool(name) !== undefined;
}

/** The path of the binary under one of its names, built by `scripts/build`. */
export function binaryPath(
  name:
    | "blktap"
    | "tapdisk"
    | "tap-ctl"
    | "vhd-util"
    | "cbt-util"
    | "td-util"
    | "tapdisk-diff"
    | "tapdisk-stream",
): string {
  return `${ROOT}dist/${name}`;
}

/**
 * The requirements of a test: names of programs, `dist/NAME` for the built binary, `root`, or a
 * path such as `/dev/fuse`.
 *
 * ```ts
 * import { needs } from "./tools.ts";
 *
 * const { ignore, suffix } = needs("dist/vhd-util", "qemu-img");
 * Deno.test({ name: `qemu-img reads what create makes${suffix}`, ignore, fn() {} });
 * ```
 */
export function needs(...requirements: string[]): Needs {
  const missing = requirements.filter((requirement) => !isThere(requirement));
  return missing.length === 0
    ? { ignore: false, suffix: "" }
    : { ignore: true, suffix: ` (skipped: needs ${missing.join(", ")})` };
}

/** How long the output of a program that was killed is waited for. */
const KILLED_OUTPUT_MS = 2000;

/**
 * Runs a program to its end.
 *
 * @throws {Error} When it does not end in time. It is killed then, with all that it started. The
 * message has its processes, and what each waited for.
 */
export async function run(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  const timeoutMs = options.timeoutMs ?? 60_000;
  const child = new Deno.Command(findTool(command) ?? command, {
    args: [...args],
    cwd: options.cwd,
    env: options.env,
    stdin: options.stdin === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const abort = (): void => killTree(child.pid);
  options.signal?.addEventListener("abort", abort);
  const printed = [new Printed(child.stdout), new Printed(child.stderr)];
  const fed = options.stdin === undefined ? undefined : feed(child.stdin, options.stdin);
  const late = await isLate(
    Promise.all([child.status, ...printed.map(({ done }) => done)]),
    timeoutMs,
  );
  const stuck = late ? describeProcesses(treeOf(child.pid)) : "";
  if (late) killTree(child.pid);
  // A program that is no child of it any more may have its output open for ever.
  await Promise.all(printed.map((stream) => stream.end(KILLED_OUTPUT_MS)));
  options.signal?.removeEventListener("abort", abort);
  await fed;
  const { code } = await child.status;
  const result = { code, stdout: printed[0].text, stderr: printed[1].text };
  if (late) {
    const what = `Stopped ${describe(command, args)} after ${timeoutMs} ms`;
    throw new Error(`${what}\n${stuck}\n${output(result)}`);
  }
  return result;
}

/**
 * Runs a program that must succeed; returns its standard output.
 *
 * @throws {Error} When its exit status is not 0; the message contains its output.
 */
export async function runOk(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const result = await run(command, args, options);
  if (result.code !== 0) {
    throw new Error(
      `${describe(command, args)} ended with status ${result.code}\n${output(result)}`,
    );
  }
  return result.stdout;
}

/** Calls `body` with the path of a new folder, which is removed afterwards. */
export async function withTempDir<T>(body: (folder: string) => T | Promise<T>): Promise<T> {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
  try {
    return await body(folder);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

function isThere(requirement: string): boolean {
  if (requirement === "root") {
    return Deno.uid() === 0;
  }
  if (requirement.startsWith("/")) {
    return exists(requirement);
  }
  if (requirement.startsWith("dist/")) {
    return exists(ROOT + requirement);
  }
  return hasTool(requirement);
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

async function feed(
  stdin: WritableStream<Uint8Array<ArrayBuffer>>,
  input: string | Uint8Array<ArrayBuffer>,
): Promise<void> {
  const writer = stdin.getWriter();
  try {
    await writer.write(typeof input === "string" ? new TextEncoder().encode(input) : input);
    await writer.close();
  } catch (error) {
    // A program may end before it has read everything.
    if (!(error instanceof Deno.errors.BrokenPipe)) {
      throw error;
    }
  }
}

function describe(command: string, args: readonly string[]): string {
  return [command, ...args].join(" ");
}

function output(result: RunResult): string {
  return `${result.stdout}${result.stderr}`.trimEnd();
}
