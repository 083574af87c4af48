/**
 * td-rated and disks with valves for tests.
 *
 * @module
 */
import { commandLine, isRunning, until } from "./control.ts";

/** A td-rated in the foreground. */
export class RunningBridge {
  readonly #child: Deno.ChildProcess;
  readonly #output: Promise<Deno.CommandOutput>;

  private constructor(child: Deno.ChildProcess) {
    this.#child = child;
    this.#output = child.output();
  }

  /** Starts it, and waits for its socket; `args` are those behind the path. */
  static async start(path: string, ...args: string[]): Promise<RunningBridge> {
    const [program, ...rest] = commandLine("td-rated", path, "-D", "1", ...args);
    const child = new Deno.Command(program, {
      args: rest,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const bridge = new RunningBridge(child);
    await until("td-rated listens", () => isListening(path));
    return bridge;
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Sends a signal; with SIGUSR1 it runs on. */
  signal(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  /** Ends it; returns its exit status and log. */
  async end(signal: Deno.Signal = "SIGTERM"): Promise<{ code: number; log: string }> {
    if (isRunning(this.pid)) this.#child.kill(signal);
    const { code, stderr } = await this.#output;
    return { code, log: new TextDecoder().decode(stderr) };
  }
}

/** Whether somebody listens at a socket, as /proc/net/unix has it. */
export function isListening(path: string): boolean {
  // Flag 0x10000 is that of a socket that listens.
  return Deno.readTextFileSync("/proc/net/unix").split("\n")
    .some((line) => line.endsWith(` ${path}`) && line.split(" ")[3] === "00010000");
}
