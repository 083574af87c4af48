import { Errno, SystemError } from "../../../ffi/errno.ts";
import { diffImages } from "../../images/diff.ts";
import { interruptible } from "../interruption.ts";
import { jsonText } from "../json.ts";
import { openProgress } from "../progress.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, JSON_OPTION, operandsOf, QUIET_OPTION } from "./operands.ts";

/** The exit status for disks that differ, as diff(1) has it. */
const DIFFERENT = 1;

/** `td-util diff`. */
export const diffCommand: Subcommand = {
  name: "diff",
  summary: "Compare two disks, and print the ranges in which they differ",
  synopsis: "[--json] [--quiet] IMAGE IMAGE",
  usage: "td-util diff [--json] [--quiet] IMAGE IMAGE",
  options: [JSON_OPTION, { ...QUIET_OPTION, text: "print nothing; only the exit status says it" }],
  operands: true,
  followsParents: true,
  example: `
$ td-util diff vhd:disk.vhd raw:disk.raw
      offset       length
       65536          512
$ echo $?
1`,

  async run(call: CommandCall): Promise<number> {
    const [first, second] = operandsOf(call, "IMAGE", "IMAGE").map(imageOf);
    const isQuiet = call.has("quiet");
    const progress = isQuiet ? null : await openProgress("diff");
    const { sizesBytes, ranges } = await interruptible((signal) =>
      diffImages(first, second, { signal, onProgress: progress?.update })
    ).catch(refuseAsDifferent).finally(() => progress?.stop());
    const [a, b] = sizesBytes;
    if (call.has("json")) call.output.print(jsonText({ sizesBytes, ranges }));
    else if (!isQuiet) {
      if (a !== b) call.output.printLine(`The disks have ${a} and ${b} bytes`);
      if (ranges.length > 0) call.output.printLine("      offset       length");
      for (const { offsetBytes, lengthBytes } of ranges) {
        const length = `${lengthBytes}`.padStart(12);
        call.output.printLine(`${`${offsetBytes}`.padStart(12)} ${length}`);
      }
    }
    return a === b && ranges.length === 0 ? 0 : DIFFERENT;
  },
};

/** The number of EPERM is the status for disks that differ. */
function refuseAsDifferent(error: unknown): never {
  if (!(error instanceof SystemError) || error.errno !== Errno.EPERM) throw error;
  throw new SystemError(Errno.EACCES, error.message, { message: error.message, cause: error });
}
