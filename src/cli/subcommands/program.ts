/**
 * `src/cli/subcommands`: programs whose first argument is a subcommand with options of its own, such as
 * vhd-util: their command lines, help, manual pages and completion. It must not know what a subcommand
 * does.
 *
 * @module
 */

import { raiseDescriptorLimit } from "../../../ffi/process.ts";
import { Errno, messageOf } from "../../../ffi/errno.ts";
import { allowParentsIn } from "../../files/confinement.ts";
import { parseOptions } from "../getopt.ts";
import { Interrupted } from "../interruption.ts";
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

/** A program and its subcommands. */
export interface Program {
  readonly name: string;
  /** One line, without a full stop. */
  readonly summary: string;
  /** What the manual page says first. */
  readonly description: string;
  /** The subcommands and how to load them, in the order of the overview. */
  readonly subcommands: ReadonlyMap<string, () => Promise<Subcommand>>;
  /** What is printed for a subcommand that does not exist, before its name. */
  readonly invalid: string;
  /** The status of a call without arguments. */
  readonly missingStatus: number;
  /** The status of `-h` of a subcommand, which prints its usage. */
  readonly usageStatus: number;
  /** What the overview prints after the subcommands. */
  readonly notes: string;
  /** A call that shows arguments on standard input, for the manual page. */
  readonly stdinExample: string;
}

/** Runs a program. Returns the exit status; all output goes to `output`. */
export async function programMain(
  program: Program,
  args: readonly string[],
  { output }: { output?: Output } = {},
): Promise<number> {
  if (output !== undefined) return await runCommand(program, args, output);
  // Each layer of a chain takes a descriptor.
  raiseDescriptorLimit();
  return await toStandardOutput((standard) => runCommand(program, args, standard));
}

/** Runs a command that prints to standard output. What cannot be printed is an error as others are. */
export async function toStandardOutput(run: (output: Output) => Promise<number>): Promise<number> {
  const output = new StandardOutput();
  try {
    const status = await run(output);
    output.flush();
    return status;
  } catch (error) {
    const errno = expectedErrno(error);
    output.printError(messageOf(error));
    return errno;
  }
}

/**
 * Runs a subcommand, as its program does.
 *
 * @returns The exit status, or null where its program has to print what this function does not know.
 */
export async function subcommandMain(
  program: string,
  command: Subcommand,
  args: readonly string[],
): Promise<number | null> {
  const { fault, options } = parseOptions(specOf(command), args);
  const asksHelp = options.some(({ name }) => name === "h" || name === "help");
  if (fault !== null || asksHelp) return null;
  raiseDescriptorLimit();
  return await toStandardOutput((output) =>
    runSubcommand({ name: program, usageStatus: 0 }, command, { args, output })
  );
}

async function runCommand(
  program: Program,
  args: readonly string[],
  output: Output,
): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === "-h" || name === "--help" || name === "help") {
    await printOverview(program, output);
    return name === undefined ? program.missingStatus : 0;
  }
  const load = program.subcommands.get(name);
  if (load === undefined) {
    output.printError(`${program.invalid} ${name}`);
    printNames(program, output);
    return Errno.EINVAL;
  }
  const command = await load();
  return await runSubcommand(program, command, {
    args: rest.filter((arg) => arg !== "--debug"),
    output,
  });
}

async function runSubcommand(
  program: Pick<Program, "name" | "usageStatus">,
  command: Subcommand,
  { args, output }: { args: readonly string[]; output: Output },
): Promise<number> {
  const { options, operands, fault } = parseOptions(specOf(command), args);
  const help = options.find((option) => option.name === "h" || option.name === "help");
  if (help?.name === "help") {
    output.print(helpOf(program.name, command));
    return 0;
  }
  if (help !== undefined && fault === null) {
    output.printRaw(`${command.usage}\n`);
    return program.usageStatus;
  }
  try {
    if (fault !== null) throw new UsageError(`${command.name}: ${fault}`);
    if (operands.length > 0 && command.operands !== true) throw new UsageError(null);
    return await runAllowed(command, new CommandCall(options, operands, output));
  } catch (error) {
    if (error instanceof UsageError) {
      if (error.detail !== null) output.printError(error.detail);
      output.printRaw(`${command.usage}\n`);
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
  const notation = ({ name, value, optionalValue }: CommandOption): string =>
    optionalValue !== undefined ? `${name}::` : value === undefined ? name : `${name}:`;
  const letters = options.filter((option) => option.name.length === 1);
  const long = options.filter((option) => option.name.length > 1);
  return { short: `${letters.map(notation).join("")}h`, long: [...long.map(notation), "help"] };
}

function printNames({ name, subcommands }: Program, output: Output): void {
  output.printLine(`usage: ${name} COMMAND [OPTIONS]`);
  output.printLine(`COMMAND := { ${[...subcommands.keys()].join(" | ")} }`);
}

async function printOverview(program: Program, output: Output): Promise<void> {
  printNames(program, output);
  output.printLine("");
  for (const [name, load] of program.subcommands) {
    output.printLine(`  ${name.padEnd(10)} ${(await load()).summary}`);
  }
  output.print(`\n'${program.name} COMMAND --help' describes a command.\n${program.notes}`);
}
