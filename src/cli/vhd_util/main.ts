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

import { raiseDescriptorLimit } from "../../../ffi/process.ts";
import { Errno, messageOf } from "../../../ffi/errno.ts";
import { allowParentsIn } from "../../files/confinement.ts";
import { parseOptions } from "../getopt.ts";
import { Interrupted } from "../interruption.ts";
import { STDIN_ARGUMENTS, STDIN_ARGUMENTS_NOTE } from "../stdin_arguments.ts";
import {
  CommandCall,
  type CommandOption,
  expectedErrno,
  PARENT_ROOT_OPTION,
  type Subcommand,
  UsageError,
} from "./command.ts";
import { helpOf } from "./help.ts";
import { type Output, StandardOutput } from "./output.ts";

/** The subcommands and how to load them, in the order of the overview. */
export const SUBCOMMANDS: ReadonlyMap<string, () => Promise<Subcommand>> = new Map([
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

/** Runs vhd-util. Returns the exit status; all output goes to `output`. */
export async function vhdUtilMain(
  args: readonly string[],
  { output }: { output?: Output } = {},
): Promise<number> {
  if (output !== undefined) return await runCommand(args, output);
  // Each layer of a chain takes a descriptor.
  raiseDescriptorLimit();
  const standard = new StandardOutput();
  const status = await runCommand(args, standard);
  standard.flush();
  return status;
}

async function runCommand(args: readonly string[], output: Output): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === "-h" || name === "--help" || name === "help") {
    await printOverview(output);
    return 0;
  }
  const load = SUBCOMMANDS.get(name);
  if (load === undefined) {
    output.printError(`invalid COMMAND ${name}`);
    printNames(output);
    return Errno.EINVAL;
  }
  return await runSubcommand(await load(), rest.filter((arg) => arg !== "--debug"), output);
}

async function runSubcommand(
  command: Subcommand,
  args: readonly string[],
  output: Output,
): Promise<number> {
  const { options, operands, fault } = parseOptions(specOf(command), args);
  const help = options.find((option) => option.name === "h" || option.name === "help");
  if (help?.name === "help") {
    output.print(helpOf(command));
    return 0;
  }
  if (help !== undefined && fault === null) {
    output.print(`${command.usage}\n`);
    return 0;
  }
  try {
    if (fault !== null) throw new UsageError(`${command.name}: ${fault}`);
    if (operands.length > 0 && command.operands !== true) throw new UsageError(null);
    return await runAllowed(command, new CommandCall(options, operands, output));
  } catch (error) {
    if (error instanceof UsageError) {
      if (error.detail !== null) output.printError(error.detail);
      output.print(`${command.usage}\n`);
      return Errno.EINVAL;
    }
    if (error instanceof Interrupted) {
      output.printError(error.message);
      return error.status;
    }
    const errno = expectedErrno(error);
    output.printError(messageOf(error));
    return errno;
  }
}

/** Runs a subcommand with the folders of `--parent-root` allowed. */
async function runAllowed(command: Subcommand, call: CommandCall): Promise<number> {
  const before = allowParentsIn([]);
  allowParentsIn([...before, ...call.values(PARENT_ROOT_OPTION.name)]);
  try {
    return await command.run(call);
  } finally {
    allowParentsIn(before);
  }
}

function specOf(command: Subcommand): { short: string; long: string[] } {
  const options = [
    ...command.options,
    ...command.ignoredOptions ?? [],
    ...(command.followsParents === true ? [PARENT_ROOT_OPTION] : []),
  ];
  const notation = ({ name, value }: CommandOption): string =>
    value === undefined ? name : `${name}:`;
  const letters = options.filter((option) => option.name.length === 1);
  const long = options.filter((option) => option.name.length > 1);
  return { short: `${letters.map(notation).join("")}h`, long: [...long.map(notation), "help"] };
}

function printNames(output: Output): void {
  output.printLine("usage: vhd-util COMMAND [OPTIONS]");
  output.printLine(`COMMAND := { ${[...SUBCOMMANDS.keys()].join(" | ")} }`);
}

async function printOverview(output: Output): Promise<void> {
  printNames(output);
  output.printLine("");
  for (const [name, load] of SUBCOMMANDS) {
    output.printLine(`  ${name.padEnd(10)} ${(await load()).summary}`);
  }
  output.print(
    "\n'vhd-util COMMAND --help' describes a command.\n" +
      `\n${STDIN_ARGUMENTS_NOTE}:\n\n` +
      `  find . -name '*.vhd' -print0 | vhd-util scan -f ${STDIN_ARGUMENTS}\n` +
      `  printf '%s\\0' "$name" | vhd-util query -v -n ${STDIN_ARGUMENTS}\n`,
  );
}
