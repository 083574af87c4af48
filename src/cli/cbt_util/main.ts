/**
 * `src/cli/cbt_util`: cbt-util, which makes, reads and changes logs of changed blocks. XenServer's
 * storage manager calls it and parses its output, so output, option letters and exit statuses must not
 * change.
 *
 * @module
 */

import { Errno } from "../../../ffi/errno.ts";
import { STDIN_ARGUMENTS } from "../stdin_arguments.ts";
import type { Subcommand } from "../subcommands/command.ts";
import type { Output } from "../subcommands/output.ts";
import { type Program, programMain } from "../subcommands/program.ts";

/** What cbt-util is. */
export const CBT_UTIL: Program = {
  name: "cbt-util",
  summary: "Make, read and change logs of changed blocks",
  description: "Makes, reads and changes logs of changed blocks. tapdisk writes such a log for a " +
    "disk that is opened with 'tap-ctl open -C FILE'.",
  subcommands: new Map<string, () => Promise<Subcommand>>([
    ["create", async () => (await import("./create.ts")).createCommand],
    ["set", async () => (await import("./set.ts")).setCommand],
    ["get", async () => (await import("./get.ts")).getCommand],
    ["coalesce", async () => (await import("./coalesce.ts")).coalesceCommand],
    ["extents", async () => (await import("./extents.ts")).extentsCommand],
  ]),
  invalid: "Invalid COMMAND",
  missingStatus: Errno.EINVAL,
  usageStatus: Errno.EINVAL,
  notes: "",
  stdinExample: `cbt-util get -s -n ${STDIN_ARGUMENTS}`,
};

/** Runs cbt-util. Returns the exit status; all output goes to `output`. */
export function cbtUtilMain(
  args: readonly string[],
  { output }: { output?: Output } = {},
): Promise<number> {
  return programMain(CBT_UTIL, args, { output });
}
