import { commitImage } from "../../images/change.ts";
import { interruptible } from "../interruption.ts";
import { openProgress } from "../progress.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, operandsOf, QUIET_OPTION } from "./operands.ts";

/** `td-util commit`. */
export const commitCommand: Subcommand = {
  name: "commit",
  summary: "Write what an image holds into the image below it",
  synopsis: "[--quiet] IMAGE",
  usage: "td-util commit [--quiet] IMAGE",
  options: [{ ...QUIET_OPTION, text: "print nothing" }],
  operands: true,
  followsParents: true,
  example: `
$ td-util commit qcow:today.qcow
Wrote 4096 sectors`,

  async run(call: CommandCall): Promise<number> {
    const [image] = operandsOf(call, "IMAGE");
    const progress = call.has("quiet") ? null : await openProgress("commit");
    const sectors = await interruptible((signal) =>
      commitImage(imageOf(image), { signal, onProgress: progress?.update })
    ).finally(() => progress?.stop());
    if (!call.has("quiet")) call.output.printLine(`Wrote ${sectors} sectors`);
    return 0;
  },
};
