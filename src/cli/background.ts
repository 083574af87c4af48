/**
 * Programs that go on in the background: the process that was called starts another one, waits until
 * that one is ready or has failed, and ends.
 *
 * @module
 */
import { Errno } from "../../ffi/errno.ts";
import { detachStandardStreams, keepDescriptorsFromChildren } from "../../ffi/process.ts";
import { printErrorText, printLine } from "./print.ts";

/** The argument of the process that runs in the background. */
export const DAEMON_ARGUMENT = "daemon-child";

const READY = "ready";

/** The command line that starts a command of this program. */
export function ownCommand(name: string): { program: string; first: string[] } {
  const program = Deno.execPath();
  if (Deno.build.standalone) return { program, first: [name] };
  const main = decodeURIComponent(new URL("../main.ts", import.meta.url).pathname);
  return { program, first: ["run", "--allow-all", "--quiet", main, name] };
}

/**
 * Starts a command in the background.
 *
 * @param name The name of the command.
 * @param args Its arguments; `DAEMON_ARGUMENT` comes before them.
 * @returns The exit status, once it is ready or has failed.
 */
export async function startInBackground(name: string, args: readonly string[]): Promise<number> {
  const { program, first } = ownCommand(name);
  keepDescriptorsFromChildren();
  const child = new Deno.Command(program, {
    args: [...first, `--${DAEMON_ARGUMENT}`, ...args],
    detached: true,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (!text.includes("\n")) {
    const { done, value } = await reader.read();
    if (done) break;
    text += value;
  }
  if (text.startsWith(READY)) {
    child.unref();
    return 0;
  }
  const [reason, { code, signal }] = await Promise.all([
    new Response(child.stderr).text(),
    child.status,
  ]);
  printErrorText(reason.trimEnd() || `${name}: It did not start (${signal ?? code})`);
  return code || Errno.EIO;
}

/** In the process in the background: it is ready, and needs no terminal and no folder any more. */
export function goToBackground(): void {
  printLine(READY);
  detachStandardStreams();
  Deno.chdir("/");
}
