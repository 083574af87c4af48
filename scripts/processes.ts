/**
 * Processes of this machine, as /proc has them: what a program that hangs has started, and what each
 * of these waits for.
 *
 * @module
 */

/** A process. */
export interface Process {
  readonly pid: number;
  readonly parent: number;
  /** One letter, see proc(5): R, S, D, Z, T. */
  readonly state: string;
  /** The command line, with spaces between its arguments; empty for threads of the kernel. */
  readonly command: string;
}

/** All processes. */
export function processes(): Process[] {
  const pids = Array.from(Deno.readDirSync("/proc"), ({ name }) => Number(name));
  return pids.filter((pid) => pid > 0).flatMap((pid) => processOf(pid));
}

function processOf(pid: number): Process[] {
  // The name in parentheses may contain anything.
  const stat = /^.*\) (\S) (\d+)/s.exec(contentOf(pid, "stat"));
  if (stat === null) return [];
  const command = contentOf(pid, "cmdline").replaceAll("\0", " ").trim();
  return [{ pid, parent: Number(stat[2]), state: stat[1], command }];
}

/** A file of a process; empty when the process has ended. */
function contentOf(pid: number, file: string): string {
  try {
    return Deno.readTextFileSync(`/proc/${pid}/${file}`);
  } catch {
    return "";
  }
}

/** A process and all that it started, as far as these were not left to another parent. */
export function treeOf(pid: number, all: readonly Process[] = processes()): Process[] {
  const own = all.filter((process) => process.pid === pid);
  const children = all.filter((process) => process.parent === pid);
  return [...own, ...children.flatMap((child) => treeOf(child.pid, all))];
}

/** Kills a process and all that it started, with SIGKILL. Nothing happens when it has ended. */
export function killTree(pid: number): void {
  for (const process of treeOf(pid)) {
    try {
      Deno.kill(process.pid, "SIGKILL");
    } catch {
      // It has ended by itself.
    }
  }
}

/** A line about each process: its state, and the function and system call in which it waits. */
export function describeProcesses(some: readonly Process[]): string {
  return some.map(({ pid, parent, state, command }) => {
    const at = contentOf(pid, "wchan") || "?";
    const call = contentOf(pid, "syscall").trim().split(" ").slice(0, 4).join(" ") || "?";
    return `  ${pid} of ${parent} ${state} in ${at} (${call}): ${command.slice(0, 300)}`;
  }).join("\n");
}

/** What a program prints to one of its streams; it may be passed on as it comes. */
export class Printed {
  /** What was printed so far. */
  text = "";
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  /** Settles with the end of the stream. */
  readonly done: Promise<void>;

  /** @param to Where it is passed on to as well. */
  constructor(
    stream: ReadableStream<Uint8Array>,
    to: { writeSync(bytes: Uint8Array): number } | null = null,
  ) {
    this.#reader = stream.getReader();
    this.done = this.#collect(to);
  }

  async #collect(to: { writeSync(bytes: Uint8Array): number } | null): Promise<void> {
    const decoder = new TextDecoder();
    for (;;) {
      const { value } = await this.#reader.read();
      if (value === undefined) break;
      for (let at = 0; to !== null && at < value.length;) at += to.writeSync(value.subarray(at));
      this.text += decoder.decode(value, { stream: true });
    }
    this.text += decoder.decode();
  }

  /** Waits for the end of the stream, which a daemon of the program may keep open: at most `ms`. */
  async end(ms: number): Promise<void> {
    if (await isLate(this.done, ms)) await this.#reader.cancel();
    await this.done;
  }
}

/** Whether a promise takes longer than `ms`. */
export async function isLate(promise: Promise<unknown>, ms: number): Promise<boolean> {
  let timer = 0;
  const timeOut = new Promise<boolean>((resolve) => timer = setTimeout(() => resolve(true), ms));
  try {
    return await Promise.race([promise.then(() => false), timeOut]);
  } finally {
    clearTimeout(timer);
  }
}
