import { rebaseImage } from "../../images/rebase.ts";
import { interruptible } from "../interruption.ts";
import { openProgress } from "../progress.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, operandsOf, QUIET_OPTION } from "./operands.ts";

/** `td-util rebase`. */
export const rebaseCommand: Subcommand = {
  name: "rebase",
  summary: "Put another image below an image, which reads the same afterwards",
  synopsis: "[-u] [--quiet] IMAGE PARENT",
  usage: "td-util rebase [-u] [--quiet] IMAGE PARENT",
  options: [
    { name: "u", text: "only change the name: PARENT reads like the image that was below" },
    QUIET_OPTION,
  ],
  operands: true,
  followsParents: true,
  example: `
$ td-util rebase vhd:today.vhd vhd:base.vhd
$ td-util rebase -u qcow:today.qcow raw:/srv/moved/base.raw`,

  async run(call: CommandCall): Promise<number> {
    const [image, parent] = operandsOf(call, "IMAGE", "PARENT").map(imageOf);
    const progress = call.has("quiet") ? null : await openProgress("rebase");
    await interruptible((signal) =>
      rebaseImage(image, parent, { unsafe: call.has("u"), signal, onProgress: progress?.update })
    ).finally(() => progress?.stop());
    return 0;
  },
};
