/**
 * `src/cli/td_util`: td-util, which works on images of every type that tapdisk serves, while no tapdisk
 * writes them. An image is named as for tapdisk, `vhd:/disk.vhd`.
 *
 * Each subcommand has a file. It parses its options, calls `src/images`, and prints. It must not know
 * the bytes of an image.
 *
 * @module
 */
import { Errno } from "../../../ffi/errno.ts";
import { STDIN_ARGUMENTS, STDIN_ARGUMENTS_NOTE } from "../stdin_arguments.ts";
import type { Subcommand } from "../subcommands/command.ts";
import type { Output } from "../subcommands/output.ts";
import { type Program, programMain } from "../subcommands/program.ts";

/** What td-util is. */
export const TD_UTIL: Program = {
  name: "td-util",
  summary: "Make, inspect, convert and compare images of every type",
  description:
    "Works on images of every type that tapdisk serves, while no tapdisk writes them. An " +
    "image is named TYPE:PATH, such as vhd:/srv/disk.vhd; 'raw:' stands for 'aio:'.",
  subcommands: new Map<string, () => Promise<Subcommand>>([
    ["create", async () => (await import("./create.ts")).createCommand],
    ["info", async () => (await import("./info.ts")).infoCommand],
    ["convert", async () => (await import("./convert.ts")).convertCommand],
    ["copy", async () => (await import("./copy.ts")).copyCommand],
    ["map", async () => (await import("./map.ts")).mapCommand],
    ["diff", async () => (await import("./diff.ts")).diffCommand],
    ["stream", async () => (await import("./stream.ts")).streamCommand],
    ["check", async () => (await import("./check.ts")).checkCommand],
    ["snapshot", async () => (await import("./snapshot.ts")).snapshotCommand],
    ["resize", async () => (await import("./resize.ts")).resizeCommand],
    ["rebase", async () => (await import("./rebase.ts")).rebaseCommand],
    ["commit", async () => (await import("./commit.ts")).commitCommand],
    ["compact", async () => (await import("./compact.ts")).compactCommand],
  ]),
  invalid: "There is no command",
  missingStatus: Errno.EINVAL,
  usageStatus: 0,
  notes: `\n${STDIN_ARGUMENTS_NOTE}:\n\n` +
    `  printf '%s\\0' "vhd:$path" | td-util info ${STDIN_ARGUMENTS}\n`,
  stdinExample: `td-util info ${STDIN_ARGUMENTS}`,
};

/** Runs td-util. Returns the exit status; all output goes to `output`. */
export function tdUtilMain(
  args: readonly string[],
  { output }: { output?: Output } = {},
): Promise<number> {
  return programMain(TD_UTIL, args, { output });
}
