/** What became of a test file. */
export interface TestRun {
  readonly outcome: "passed" | "failed" | "timed out" | "broken";
  /** The first test that failed; empty if there is none, or it cannot be told. */
  readonly test: string;
  readonly seconds: number;
  readonly output: string;
}

/** Where and how long a test file runs. */
export interface TestRunOptions {
  readonly tree: string;
  /** A folder for temporary files, which is emptied afterwards. */
  readonly scratch: string;
  readonly timeoutMs: number;
}

/** A patch that makes no program says nothing about the tests. */
const BROKEN = /SyntaxError|could not be parsed|Module not found|does not provide an export/;
const MOST_OUTPUT = 20_000;

/** The process groups of the tests that run. */
const running = new Set<number>();

/** Ends all tests that run, and what they have started. */
export function endTests(): void {
  for (const pid of running) endGroup(pid);
}

async function readAll(stream: ReadableStream<Uint8Array>): Promise<string> {
  return (await new Response(stream).text()).slice(-MOST_OUTPUT);
}

function outcomeOf(success: boolean, output: string): TestRun["outcome"] {
  if (success) return "passed";
  return BROKEN.test(output) ? "broken" : "failed";
}

/** The file of a `Test` of a mutant, and the part of the names of its tests; null for all. */
export function splitTest(test: string): [file: string, names: string | null] {
  const [, file, names = null] = /^(\S+)(?: \((.+)\))?$/.exec(test) ?? ["", test];
  return [file, names];
}

/** Runs a test file, or some of its tests, up to the first failure. */
export async function runTest(
  test: string,
  { tree, scratch, timeoutMs }: TestRunOptions,
): Promise<TestRun> {
  Deno.mkdirSync(scratch, { recursive: true });
  const [file, names] = splitTest(test);
  const filter = names === null ? [] : [`--filter=${names}`];
  const startMs = performance.now();
  const child = new Deno.Command(Deno.execPath(), {
    args: ["test", "-A", "--no-check", "--fail-fast", ...filter, file],
    cwd: tree,
    env: { TMPDIR: scratch, BLKTAP_CONTROL_DIR: `${scratch}/control`, NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    // A process group of its own, so that what a test has started ends with it.
    detached: true,
  }).spawn();
  running.add(child.pid);
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    endGroup(child.pid);
  }, timeoutMs);
  const ended = child.status.finally(() => {
    endGroup(child.pid);
    running.delete(child.pid);
  });
  const texts = await Promise.all([readAll(child.stdout), readAll(child.stderr)]);
  const { success } = await ended;
  clearTimeout(timer);
  Deno.removeSync(scratch, { recursive: true });
  const output = texts.join("\n");
  // The list of failures, at the end of the output.
  const failed = /^(.*) => \.\/\S+$/m.exec(output)?.[1] ?? "";
  const outcome = isLate ? "timed out" : outcomeOf(success, output);
  return { outcome, test: failed, seconds: (performance.now() - startMs) / 1000, output };
}

/** Ends a process and all that it has started. */
function endGroup(pid: number): void {
  try {
    Deno.kill(-pid, "SIGKILL");
  } catch {
    // Nothing of it is left.
  }
}
