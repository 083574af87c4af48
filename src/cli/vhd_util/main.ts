/**
 * `src/cli/vhd_util`: vhd-util, which makes, examines and changes VHD images that no tapdisk writes.
 *
 * Each subcommand has a file, which is loaded when the subcommand is called. A subcommand parses its
 * options, calls `src/vhd` or `src/bulk`, and prints. It must not read or write an image's structures
 * itself. XenServer's storage manager parses the output, so output, option letters and exit statuses
 * (error numbers) must not change.
 *
 * @module
 */

import { STDIN_ARGUMENTS, STDIN_ARGUMENTS_NOTE } from "../stdin_arguments.ts";
import type { Subcommand } from "../subcommands/command.ts";
import type { Output } from "../subcommands/output.ts";
import { type Program, programMain } from "../subcommands/program.ts";

const SUBCOMMANDS: ReadonlyMap<string, () => Promise<Subcommand>> = new Map([
  ["create", async () => (await import("./create.ts")).createCommand],
  ["snapshot", async () => (await import("./snapshot.ts")).snapshotCommand],
  ["query", async () => (await import("./query.ts")).queryCommand],
  ["read", async () => (await import("./read.ts")).readCommand],
  ["set", async () => (await import("./set.ts")).setCommand],
  ["repair", async () => (await import("./repair.ts")).repairCommand],
  ["resize", async () => (await import("./resize.ts")).resizeCommand],
  ["fill", async () => (await import("./fill.ts")).fillCommand],
  ["coalesce", async () => (await import("./coalesce.ts")).coalesceCommand],
  ["modify", async () => (await import("./modify.ts")).modifyCommand],
  ["scan", async () => (await import("./scan.ts")).scanCommand],
  ["check", async () => (await import("./check.ts")).checkCommand],
  ["revert", async () => (await import("./revert.ts")).revertCommand],
  ["key", async () => (await import("./key.ts")).keyCommand],
  ["copy", async () => (await import("./copy.ts")).copyCommand],
  ["tree", async () => (await import("./tree.ts")).treeCommand],
  ["map", async () => (await import("./map.ts")).mapCommand],
]);

/** What vhd-util is. */
export const VHD_UTIL: Program = {
  name: "vhd-util",
  summary: "Make, examine and change VHD images",
  description: "Makes, examines and changes VHD images while no tapdisk writes them.",
  subcommands: SUBCOMMANDS,
  invalid: "invalid COMMAND",
  missingStatus: 0,
  usageStatus: 0,
  notes: `\n${STDIN_ARGUMENTS_NOTE}:\n\n` +
    `  find . -name '*.vhd' -print0 | vhd-util scan -f ${STDIN_ARGUMENTS}\n` +
    `  printf '%s\\0' "$name" | vhd-util query -v -n ${STDIN_ARGUMENTS}\n`,
  stdinExample: `vhd-util query -v -n ${STDIN_ARGUMENTS}`,
};

/** Runs vhd-util. Returns the exit status; all output goes to `output`. */
export function vhdUtilMain(
  args: readonly string[],
  { output }: { output?: Output } = {},
): Promise<number> {
  return programMain(VHD_UTIL, args, { output });
}
