/**
 * Tapdisks for tests. They have a control folder of their own, tap-ctl controls them, and they are
 * ended with the test.
 *
 * @module
 */
import assert from "node:assert/strict";
import { run, type RunOptions, type RunResult } from "./tools.ts";

const MAIN = new URL("../../src/main.ts", import.meta.url).pathname;

/** The command line that runs a command of the project from its sources. */
export function commandLine(name: string, ...args: string[]): string[] {
  return [Deno.execPath(), "run", "--quiet", "--allow-all", MAIN, name, ...args];
}

/** Waits until `condition` holds; fails after a minute. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const untilMs = performance.now() + 60_000;
  while (!condition()) {
    if (performance.now() > untilMs) throw new Error(`Waited too long until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Whether a process exists and has not ended. */
export function isRunning(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/.test(Deno.readTextFileSync(`/proc/${pid}/stat`));
  } catch {
    return false;
  }
}

/** A control folder, and a folder for images. */
export class ControlBench {
  readonly folder: string;
  readonly control: string;
  readonly env: Record<string, string>;

  constructor(folder: string, control = `${folder}/control`) {
    this.folder = folder;
    this.control = control;
    this.env = { BLKTAP_CONTROL_DIR: this.control, BLKTAP_LOG_DIR: "", BLKTAP_DEVICE: "none" };
  }

  async tapCtl(args: string, options: RunOptions = {}): Promise<RunResult> {
    const [program, ...rest] = commandLine("tap-ctl", ...args.split(" "));
    return await run(program, rest, { env: this.env, timeoutMs: 60_000, ...options });
  }

  /** Runs tap-ctl, which must succeed; returns its output without the last newline. */
  async ok(args: string): Promise<string> {
    const { code, stdout, stderr } = await this.tapCtl(args);
    if (code !== 0) throw new Error(`tap-ctl ${args} ended with status ${code}: ${stderr}`);
    return stdout.replace(/\n$/, "");
  }

  /** The lines that `tap-ctl list` prints. */
  async list(args = ""): Promise<string[]> {
    const text = await this.ok(`list ${args}`.trim());
    return text === "" ? [] : text.split("\n");
  }

  /** Starts a tapdisk and returns its process number. */
  async spawn(): Promise<number> {
    return Number(await this.ok("spawn"));
  }

  /** Creates a raw image of zeros; returns its path. */
  rawImage(name: string, sizeBytes = 1 << 20): string {
    const path = `${this.folder}/${name}`;
    Deno.writeFileSync(path, new Uint8Array());
    Deno.truncateSync(path, sizeBytes);
    return path;
  }

  /** The files in the control folder, apart from the log and the minors. */
  sockets(): string[] {
    const names = Array.from(Deno.readDirSync(this.control), (entry) => entry.name);
    return names.filter((name) => name !== "log" && name !== "tapdisk").sort();
  }

  /** The names of the sockets of a tapdisk with these minors open. */
  socketsOf(pid: number, ...minors: number[]): string[] {
    const ofDisks = ["nbd", "nbd-old", "nbdserver", "nbdserver-new"].flatMap((stem) =>
      minors.map((minor) => `${stem}${pid}.${minor}`)
    );
    return [`ctl${pid}`, `nbdclient${pid}`, ...ofDisks].sort();
  }

  /** The log of the tapdisks of this bench. */
  log(): string {
    return Deno.readTextFileSync(`${this.control}/log/tapdisk.log`);
  }

  async end(): Promise<void> {
    let names: string[] = [];
    try {
      names = this.sockets();
    } catch {
      return;
    }
    for (const name of names) {
      const pid = Number(/^ctl(\d+)$/.exec(name)?.[1] ?? 0);
      if (pid === 0 || !isRunning(pid)) continue;
      Deno.kill(pid, "SIGKILL");
      await until(`${pid} is gone`, () => !isRunning(pid));
    }
  }
}

/** Runs a tapdisk in the foreground; `ended` has its exit status and output. */
export async function foreground(
  bench: ControlBench,
): Promise<{ pid: number; kill: (signal: Deno.Signal) => void; ended: Promise<string> }> {
  const [program, ...args] = commandLine("tapdisk", "-D");
  const child = new Deno.Command(program, {
    args,
    env: bench.env,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const ended = child.output().then(({ code, signal, stdout, stderr }) => {
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    return `${signal ?? code}\n${text(stdout)}${text(stderr)}`;
  });
  const socket = `${bench.control}/ctl${child.pid}`;
  await until("tapdisk listens", () => {
    try {
      return bench.log().includes(`Ready on ${socket}`);
    } catch {
      return false;
    }
  });
  return { pid: child.pid, kill: (signal) => child.kill(signal), ended };
}

/** Calls `body` with a bench and cleans up afterwards. */
export async function withControlBench(
  body: (bench: ControlBench) => Promise<void>,
): Promise<void> {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
  const bench = new ControlBench(folder);
  try {
    await body(bench);
  } finally {
    await bench.end();
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Runs tap-ctl, which must fail with this status and message. */
export async function refused(
  bench: ControlBench,
  args: string,
  status: number,
  reason: RegExp,
): Promise<void> {
  const { code, stdout, stderr } = await bench.tapCtl(args);
  assert.equal(code, status, `${args}: ${stderr}`);
  assert.match(stderr, reason, args);
  assert.equal(stdout, "", args);
}
