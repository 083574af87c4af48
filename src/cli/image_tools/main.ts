/**
 * `src/cli/image_tools`: programs of the first blktap with the arguments that they had there: img2qcow,
 * qcow2raw, qcow-create, tapdisk-diff, tapdisk-stream. td-util does the same work on images of every
 * type. A tool parses its arguments, calls `src/images`, and prints. It must not know the bytes of an
 * image.
 *
 * @module
 */
import { Errno, messageOf } from "../../../ffi/errno.ts";
import { raiseDescriptorLimit } from "../../../ffi/process.ts";
import { parseOptions } from "../getopt.ts";
import { Interrupted } from "../interruption.ts";
import { expectedErrno } from "../subcommands/command.ts";
import type { Output } from "../subcommands/output.ts";
import { toStandardOutput } from "../subcommands/program.ts";
import { diffTool } from "./diff.ts";
import { createTool, fromRawTool, toRawTool } from "./qcow.ts";
import { streamTool } from "./stream.ts";
import type { ImageTool } from "./tool.ts";

/** The tools. */
export const IMAGE_TOOLS: readonly ImageTool[] = [
  fromRawTool,
  toRawTool,
  createTool,
  diffTool,
  streamTool,
];

/**
 * Runs a tool by its name.
 *
 * @returns The exit status: 0, or an error number.
 */
export async function imageToolMain(
  name: string,
  args: readonly string[],
  { output }: { output?: Output } = {},
): Promise<number> {
  const tool = IMAGE_TOOLS.find((known) => known.name === name);
  if (tool === undefined) return Errno.EINVAL;
  if (output !== undefined) return await runTool(tool, args, output);
  raiseDescriptorLimit();
  return await toStandardOutput((standard) => runTool(tool, args, standard));
}

async function runTool(tool: ImageTool, args: readonly string[], output: Output): Promise<number> {
  const parsed = parseOptions({ short: `${tool.letters}h`, long: ["help"] }, args);
  const { options, operands, fault } = parsed;
  if (fault !== null) output.printError(`${tool.name}: ${fault}`);
  const asksForHelp = options.some(({ name }) => name === "h" || name === "help");
  const [least, most] = tool.operands;
  const isRight = fault === null && operands.length >= least && operands.length <= most;
  if (asksForHelp && fault === null) {
    output.print(`usage: ${tool.name} ${tool.synopsis}\n\n${tool.summary}.\n${tool.text}\n`);
    return 0;
  }
  try {
    const status = isRight ? await tool.run({ options, operands, output }) : null;
    if (status !== null) return status;
    output.printError(`usage: ${tool.name} ${tool.synopsis}`);
    return Errno.EINVAL;
  } catch (error) {
    if (error instanceof Interrupted) {
      output.printError(error.message);
      return error.status;
    }
    const errno = expectedErrno(error);
    output.printError(messageOf(error));
    return errno;
  }
}
