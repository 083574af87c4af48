import { Errno, SystemError, systemError } from "../../../ffi/errno.ts";
import { pathExists } from "../../../ffi/paths.ts";
import { keepDescriptorsFromChildren } from "../../../ffi/process.ts";
import { becomeNice, niceness, processorsAllowed, runOn } from "../../../ffi/schedule.ts";
import type { ProgramCall } from "../protocol/upgrade.ts";
import { TapdiskError } from "./connection.ts";
import { numberAfter } from "../paths.ts";
import { parseProcessors, tapdiskSettings } from "../settings.ts";

/** How long a new tapdisk may take until it answers. */
const START_TIMEOUT_MS = 120_000;

/**
 * The argument for a tapdisk that was started in a session of its own: it prints its control socket
 * on standard output, and then closes the standard streams.
 */
export const DAEMON_ARGUMENT = "--daemon-child";

/** The argument for a tapdisk that takes disks of several callers. */
export const SHARED_ARGUMENT = "--shared";

/** The command that starts tapdisk: this binary, by its link `tapdisk` if there is one. */
export function tapdiskCommand(): ProgramCall {
  const program = Deno.execPath();
  if (!Deno.build.standalone) {
    const main = decodeURIComponent(new URL("../../main.ts", import.meta.url).pathname);
    return { program, args: ["run", "--allow-all", "--quiet", main, "tapdisk"] };
  }
  const link = program.replace(/[^/]*$/, "tapdisk");
  return pathExists(link) ? { program: link, args: [] } : { program, args: ["tapdisk"] };
}

async function firstLine(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<string> {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (value !== undefined) text += value;
    const end = text.indexOf("\n");
    if (end >= 0 || done) {
      reader.cancel().catch(() => {});
      return end >= 0 ? text.slice(0, end) : text;
    }
  }
}

/** The process number in the path of a control socket; undefined for other text. */
function pidOfSocket(line: string): number | undefined {
  return line.startsWith("/")
    ? numberAfter(line.slice(line.lastIndexOf("/") + 1), "ctl")
    : undefined;
}

async function failure(child: Deno.ChildProcess): Promise<Error> {
  const [reason, status] = await Promise.all([firstLine(child.stderr), child.status]);
  const errno = status.signal !== null ? Errno.EINTR : status.code || Errno.EPROTO;
  const how = status.signal !== null ? `signal ${status.signal} ended it` : "it exited";
  return reason === ""
    ? new SystemError(errno, `Cannot start tapdisk (${how})`)
    : new TapdiskError(errno, reason.replace(/^tapdisk: /, ""));
}

/** Does what this process may lack the right to do. Throws `SystemError` for any other reason. */
function ifPermitted(work: () => void): void {
  try {
    work();
  } catch (error) {
    const errno = error instanceof SystemError ? error.errno : 0;
    if (errno !== Errno.EPERM && errno !== Errno.EACCES) throw error;
  }
}

/**
 * Gives this thread, and so its children, the processors and the niceness of the settings. Without the
 * right to do so a disk is served all the same, and its tapdisk logs `settingsNotInEffect`.
 */
function takeSettings(): void {
  const { processors, niceness: nice } = tapdiskSettings();
  if (processors !== null) ifPermitted(() => runOn(processors));
  if (nice !== null) ifPermitted(() => becomeNice(nice));
}

/** The settings that whoever started this tapdisk could not give it, a line each. */
export function settingsNotInEffect(): string[] {
  const wanted = tapdiskSettings();
  const lines: string[] = [];
  if (wanted.niceness !== null && niceness() !== wanted.niceness) {
    lines.push(`The niceness is ${niceness()}, not ${wanted.niceness} as in the settings`);
  }
  const allowed = new Set(parseProcessors(processorsAllowed()));
  const { processors } = wanted;
  if (processors !== null && !allowed.isSubsetOf(new Set(processors))) {
    lines.push(`The processors are ${[...allowed].join(",")}, not those of the settings`);
  }
  return lines;
}

/**
 * Starts a tapdisk in a session of its own and waits until its control socket takes connections.
 * Throws `SystemError`, `TapdiskError`: the reason why it did not start; ETIMEDOUT.
 *
 * @param options With `shared`, it takes disks of several callers.
 * @returns Its process number.
 */
export async function spawnTapdisk({ shared = false } = {}): Promise<number> {
  const { program, args } = tapdiskCommand();
  let child: Deno.ChildProcess;
  keepDescriptorsFromChildren();
  takeSettings();
  try {
    child = new Deno.Command(program, {
      args: [...args, DAEMON_ARGUMENT, ...(shared ? [SHARED_ARGUMENT] : [])],
      detached: true,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
  } catch (error) {
    throw systemError(error, `Cannot start ${program}`);
  }
  const tooLate = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => tooLate.resolve(undefined), START_TIMEOUT_MS);
  const line = await Promise.race([firstLine(child.stdout), tooLate.promise]);
  clearTimeout(timer);
  if (line === undefined) {
    child.kill("SIGKILL");
    throw new SystemError(Errno.ETIMEDOUT, "Cannot start tapdisk (it does not get ready)");
  }
  const pid = pidOfSocket(line);
  if (pid === undefined) throw await failure(child);
  child.stderr.cancel().catch(() => {});
  child.unref();
  return pid;
}
