import { Errno, SystemError, systemError } from "../../ffi/errno.ts";

/** Processes that work at the same time. */
const MOST_RUNNING = 3;
/** Work that waits for one of them. */
const MOST_WAITING = 16;
/** The longest answer. */
const MOST_ANSWER_BYTES = 16 << 20;

/** What a process is started with. */
export interface WorkerCommand {
  readonly program: string;
  readonly args: readonly string[];
}

/** One piece of work. */
export interface Job {
  /** The work, as its process takes it. */
  readonly request: unknown;
  /** After this time its process is killed. It waits as long for its place at most. */
  readonly timeoutMs: number;
}

/**
 * Work that may wait for a disk or a server: each piece is done by a process of its own, so that a
 * filesystem that hangs holds up that piece and nothing else. A process that cannot be killed, because
 * the kernel waits for a server, keeps its place until it ends.
 */
export class Jobs {
  readonly #command: WorkerCommand;
  readonly #waiting: (() => void)[] = [];
  readonly #children = new Set<Deno.ChildProcess>();
  #running = 0;

  constructor(command: WorkerCommand) {
    this.#command = command;
  }

  /**
   * Has a piece of work done; returns what its process answered.
   *
   * @throws {SystemError} EBUSY when too much waits, ETIMEDOUT.
   */
  async run(job: Job): Promise<unknown> {
    // A place that becomes free goes to the first who waits.
    if (this.#running >= MOST_RUNNING) await this.#place(job.timeoutMs);
    else this.#running++;
    return await this.#work(job);
  }

  #place(timeoutMs: number): Promise<void> {
    if (this.#waiting.length >= MOST_WAITING) {
      throw new SystemError(Errno.EBUSY, "Cannot look at the image now (too much waits already)");
    }
    return new Promise((resolve, reject) => {
      const begin = (): void => {
        clearTimeout(timer);
        resolve();
      };
      const timer = setTimeout(() => {
        this.#waiting.splice(this.#waiting.indexOf(begin), 1);
        reject(tooLate(timeoutMs));
      }, timeoutMs);
      this.#waiting.push(begin);
    });
  }

  #ended(child: Deno.ChildProcess | null): void {
    if (child !== null) this.#children.delete(child);
    const next = this.#waiting.shift();
    if (next === undefined) this.#running--;
    else next();
  }

  #start(): Deno.ChildProcess {
    const { program, args } = this.#command;
    const options = { stdin: "piped", stdout: "piped", stderr: "null" } as const;
    try {
      const child = new Deno.Command(program, { args: [...args], ...options }).spawn();
      this.#children.add(child);
      child.status.then(() => this.#ended(child), () => this.#ended(child));
      return child;
    } catch (error) {
      this.#ended(null);
      throw systemError(error, `Cannot start ${program}`);
    }
  }

  async #work({ request, timeoutMs }: Job): Promise<unknown> {
    const child = this.#start();
    let timer: number | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        kill(child);
        reject(tooLate(timeoutMs));
      }, timeoutMs);
    });
    const answer = exchange(child, request);
    try {
      return answerIn(await Promise.race([answer, late]));
    } finally {
      clearTimeout(timer);
      answer.catch(() => {});
    }
  }

  /** Kills all that works, and waits until it has ended. */
  async close(): Promise<void> {
    const children = [...this.#children];
    for (const child of children) kill(child);
    await Promise.allSettled(children.map(({ status }) => status));
  }
}

function tooLate(timeoutMs: number): SystemError {
  return new SystemError(Errno.ETIMEDOUT, `Cannot wait longer than ${timeoutMs / 1000} s`);
}

function kill(child: Deno.ChildProcess): void {
  try {
    child.kill("SIGKILL");
  } catch {
    // It has ended.
  }
}

async function exchange(child: Deno.ChildProcess, request: unknown): Promise<string> {
  const writer = child.stdin.getWriter();
  const feed = writer.write(new TextEncoder().encode(JSON.stringify(request)))
    .then(() => writer.close());
  // A process that ends early says why by its answer, or by having none.
  feed.catch(() => {});
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of child.stdout) {
    text += decoder.decode(chunk, { stream: true });
    if (text.length <= MOST_ANSWER_BYTES) continue;
    kill(child);
    throw new SystemError(Errno.EFBIG, "Cannot show so much");
  }
  return text;
}

/** What a process answered: a result, or an error. */
export type Answer =
  | { readonly result: unknown }
  | { readonly errno: number; readonly error: string };

function isAnswer(value: unknown): value is Answer {
  return typeof value === "object" && value !== null && ("result" in value || "error" in value);
}

function answerIn(text: string): unknown {
  let answer: unknown;
  try {
    answer = JSON.parse(text);
  } catch {
    answer = null;
  }
  if (!isAnswer(answer)) {
    throw new SystemError(
      Errno.EIO,
      "Cannot get an answer (the process that works ended without one)",
    );
  }
  if ("result" in answer) return answer.result;
  throw new SystemError(answer.errno, answer.error, { message: answer.error });
}
