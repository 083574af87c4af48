/**
 * The binary: finds which command was called and runs it.
 *
 * Only the modules of that command are loaded, so that short-lived commands start fast. `scripts/build` bundles
 * this file without the whole program (`cli/program.ts`) and the quick calls.
 *
 * @module
 */

import { type Call, calledName, chooseCall } from "./cli/dispatch.ts";
import { QUICK_CALLS } from "./cli/quick_calls.ts";

/** Options of every command, of which the quick calls know nothing. */
const SPECIAL_OPTIONS = ["--stdin-args", "--debug"];

/** Runs one of the quick calls; null for all others. */
async function runQuickly(call: Call): Promise<number | null> {
  // From sources they are not bundled: they would have commander, and not leave to it what they do not know.
  if (call.kind !== "command" || !Deno.build.standalone) return null;
  const { name, args } = call;
  const key = `${name} ${args[0]}`;
  if (!Object.hasOwn(QUICK_CALLS, key)) return null;
  if (SPECIAL_OPTIONS.some((option) => args.includes(option))) return null;
  return await (await QUICK_CALLS[key]()).run(args.slice(1));
}

/** The status that a shell reports for a program that SIGPIPE ended. Deno ignores the signal. */
const STATUS_OF_SIGPIPE = 128 + 13;

/** The status that the runtime reports for an uncaught error. */
const STATUS_OF_FAULT = 1;

async function main(): Promise<number> {
  const argv0 = calledName(Deno.readFileSync("/proc/self/cmdline"));
  try {
    const call = chooseCall(argv0, Deno.args);
    return await runQuickly(call) ?? await (await import("./cli/program.ts")).runProgram(call);
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) {
      return STATUS_OF_SIGPIPE;
    }
    // A fault of the program. Its text may contain file names.
    const { printErrorText } = await import("./cli/program.ts");
    printErrorText(error instanceof Error ? error.stack ?? error.message : String(error));
    return STATUS_OF_FAULT;
  }
}

if (import.meta.main) {
  Deno.exit(await main());
}
