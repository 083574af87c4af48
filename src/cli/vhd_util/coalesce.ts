import { messageOf } from "../../../ffi/errno.ts";
import { coalesce } from "../../bulk/coalesce.ts";
import { openVhd } from "../../vhd/image/image.ts";
import { Interrupted, interruptible } from "../interruption.ts";
import { openProgress, percentProgress } from "../progress.ts";
import { warnOfConfinement } from "./confined.ts";
import {
  type CommandCall,
  expectedErrno,
  type Subcommand,
  UsageError,
} from "../subcommands/command.ts";

/** `vhd-util coalesce`. */
export const coalesceCommand: Subcommand = {
  name: "coalesce",
  summary: "Merge an image's data into its parent",
  synopsis: "-n FILE [-a ANCESTOR | -o OUTPUT [-x OLDEST]] [-s] [-p]",
  usage: "options: <-n name> [-a ancestor] [-o output] [-x oldest] " +
    "[-s sparse] [-p progress] " +
    "[-h help]",
  options: [
    { name: "n", value: "FILE", text: "the image to merge; it is not changed" },
    { name: "a", value: "ANCESTOR", text: "merge into this ancestor, with all images between" },
    { name: "o", value: "OUTPUT", text: "write a new image that replaces the merged ones" },
    {
      name: "x",
      value: "OLDEST",
      text: "with -o: the last image to merge; default: the whole chain",
    },
    { name: "s", text: "do not write zeros where no older data lies under them" },
    { name: "p", text: "print progress in percent" },
  ],
  followsParents: true,
  example: `
$ vhd-util coalesce -n today.vhd
Coalesced 6272 sectors
$ vhd-util coalesce -n today.vhd -a monday.vhd
Coalesced 81920 sectors`,

  async run(call: CommandCall): Promise<number> {
    const path = call.required("n");
    const ancestor = call.value("a") ?? undefined;
    const output = call.value("o") ?? undefined;
    const oldest = call.value("x") ?? undefined;
    if (ancestor !== undefined && output !== undefined) {
      throw new UsageError("Give -a (an ancestor) or -o (a new image), not both");
    }
    if (oldest !== undefined && output === undefined) {
      throw new UsageError("-x needs -o: it names the last image to merge");
    }
    try {
      if (output === undefined) refuseOther(call, path);
      const progress = call.has("p")
        ? percentProgress((text) => call.output.printRaw(text))
        : await openProgress("coalesce");
      try {
        const sparse = call.has("s");
        const onProgress = progress.update;
        const sectors = await interruptible((signal) =>
          coalesce(path, { ancestor, output, oldest, sparse, onProgress, signal })
        );
        call.output.printLine(`Coalesced ${sectors} sectors`);
        if (output !== undefined) warnOfConfinement(call, output);
      } finally {
        progress.stop();
      }
      return 0;
    } catch (error) {
      if (error instanceof Interrupted) throw error;
      const errno = expectedErrno(error);
      call.output.printLine(`error coalescing: ${-errno}`);
      call.output.printError(messageOf(error));
      return errno;
    }
  },
};

/** Prints the original's words for an image that cannot be coalesced. The engine reports the rest. */
function refuseOther({ output }: CommandCall, path: string): void {
  let type: string;
  try {
    const image = openVhd(path);
    image.close();
    type = image.type;
  } catch (error) {
    output.printLine(`error opening ${path}: ${-expectedErrno(error)}`);
    throw error;
  }
  if (type === "differencing") return;
  output.printLine("coalescing of non-differencing disks is not supported");
}
