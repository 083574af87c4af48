/**
 * The binary: finds which command was called and runs it.
 *
 * Only the modules of that command are loaded, so that short-lived commands start fast.
 *
 * @module
 */

import { type Call, calledName, chooseCall } from "./cli/dispatch.ts";
import { QUICK_CALLS } from "./cli/quick_calls.ts";

type CommandCall = Extract<Call, { kind: "command" }>;

/** Options of every command, of which the quick calls know nothing. */
const SPECIAL_OPTIONS = ["--stdin-args", "--debug"];

/** Runs one of the quick calls; null for all others. */
async function runQuickly({ name, args }: CommandCall): Promise<number | null> {
  const key = `${name} ${args[0]}`;
  if (!Object.hasOwn(QUICK_CALLS, key)) return null;
  if (SPECIAL_OPTIONS.some((option) => args.includes(option))) return null;
  return await (await QUICK_CALLS[key]()).run(args.slice(1));
}

async function run(call: Call): Promise<number> {
  if (call.kind !== "command") {
    return (await import("./cli/blktap.ts")).blktapMain(call);
  }
  const status = await runQuickly(call);
  if (status !== null) return status;
  const { argumentsOf } = await import("./cli/arguments.ts");
  const args = argumentsOf(call.name, call.args);
  if (typeof args === "number") return args;
  switch (call.name) {
    case "tapdisk":
      return await (await import("./cli/tapdisk/main.ts")).tapdiskMain(args);
    case "tap-ctl":
      return await (await import("./cli/tap_ctl/main.ts")).tapCtlMain(args);
    case "vhd-util":
      return await (await import("./cli/vhd_util/main.ts")).vhdUtilMain(args);
    case "cbt-util":
      return await (await import("./cli/cbt_util/main.ts")).cbtUtilMain(args);
    case "td-rated":
      return await (await import("./cli/td_rated/main.ts")).tdRatedMain(args);
    case "tapback":
      return await (await import("./cli/tapback/main.ts")).tapbackMain(args);
    case "exporter":
      return await (await import("./cli/exporter/main.ts")).exporterMain(args);
    case "doctor":
      return await (await import("./cli/doctor/main.ts")).doctorMain(args);
    case "td-util":
      return await (await import("./cli/td_util/main.ts")).tdUtilMain(args);
    case "web":
      return await (await import("./cli/web/main.ts")).webMain(args);
    case "img2qcow":
    case "qcow2raw":
    case "qcow-create":
    case "tapdisk-diff":
    case "tapdisk-stream":
      return await (await import("./cli/image_tools/main.ts")).imageToolMain(call.name, args);
  }
}

/** The status that a shell reports for a program that SIGPIPE ended. Deno ignores the signal. */
const STATUS_OF_SIGPIPE = 128 + 13;

/** The status that the runtime reports for an uncaught error. */
const STATUS_OF_FAULT = 1;

async function main(): Promise<number> {
  const argv0 = calledName(Deno.readFileSync("/proc/self/cmdline"));
  try {
    return await run(chooseCall(argv0, Deno.args));
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) {
      return STATUS_OF_SIGPIPE;
    }
    // A fault of the program. Its text may contain file names.
    const { printErrorText } = await import("./cli/print.ts");
    printErrorText(error instanceof Error ? error.stack ?? error.message : String(error));
    return STATUS_OF_FAULT;
  }
}

if (import.meta.main) {
  Deno.exit(await main());
}
