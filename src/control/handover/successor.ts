import { systemError } from "../../../ffi/errno.ts";
import { keepDescriptorsFromChildren } from "../../../ffi/process.ts";
import { DAEMON_ARGUMENT } from "../client/spawn.ts";
import { controlFolder } from "../paths.ts";
import type { ProgramCall } from "../protocol/upgrade.ts";

/** The argument for a tapdisk that takes over the disks of a process. */
export const TAKE_OVER_ARGUMENT = "--take-over";
/** The most text of standard error that is kept. */
const MOST_TEXT_BYTES = 4096;

/** The process that is to take over. */
export class Successor {
  readonly pid: number;
  /** How it ended: its last words, or its status. It never fails. */
  readonly ended: Promise<string>;
  readonly #child: Deno.ChildProcess;

  /**
   * Starts it with the environment, the limits and the control group of this process.
   *
   * @param more Further arguments of tapdisk.
   * @throws {SystemError}
   */
  constructor({ program, args }: ProgramCall, more: readonly string[]) {
    keepDescriptorsFromChildren();
    try {
      this.#child = new Deno.Command(program, {
        args: [...args, DAEMON_ARGUMENT, ...more, TAKE_OVER_ARGUMENT, String(Deno.pid)],
        env: { BLKTAP_CONTROL_DIR: controlFolder() },
        detached: true,
        stdin: "null",
        stdout: "null",
        stderr: "piped",
      }).spawn();
    } catch (error) {
      throw systemError(error, `Cannot start ${program}`);
    }
    this.pid = this.#child.pid;
    this.ended = endOf(this.#child);
  }

  /** Ends it at once. */
  kill(): void {
    try {
      this.#child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
  }
}

async function endOf(child: Deno.ChildProcess): Promise<string> {
  const text = lastWords(child.stderr).catch(() => "");
  const { signal, code } = await child.status;
  const how = signal === null ? `it exited with status ${code}` : `${signal} ended it`;
  // A child of its own may keep the stream open.
  const late = new Promise<string>((resolve) => setTimeout(() => resolve(""), 200));
  const words = (await Promise.race([text, late])).trim().split("\n")[0];
  return words === "" ? how : words.replace(/^tapdisk: /, "");
}

async function lastWords(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<string> {
  let text = "";
  for await (const part of stream.pipeThrough(new TextDecoderStream())) {
    if (text.length < MOST_TEXT_BYTES) text += part;
  }
  return text;
}
