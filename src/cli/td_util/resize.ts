import { resizeImage } from "../../images/change.ts";
import { openProgress } from "../progress.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, operandsOf, QUIET_OPTION, sizeOf } from "./operands.ts";

/** `td-util resize`. */
export const resizeCommand: Subcommand = {
  name: "resize",
  summary: "Change the size of a disk",
  synopsis: "[--shrink] [--quiet] IMAGE SIZE",
  usage: "td-util resize [--shrink] [--quiet] IMAGE SIZE",
  options: [
    { name: "shrink", text: "allow a smaller size, which cuts data off" },
    QUIET_OPTION,
  ],
  operands: true,
  followsParents: true,
  example: `
$ td-util resize vhd:disk.vhd 20Gi`,

  async run(call: CommandCall): Promise<number> {
    const [image, size] = operandsOf(call, "IMAGE", "SIZE");
    const sizeBytes = sizeOf(size);
    const progress = call.has("quiet") ? null : await openProgress("resize");
    const shrink = call.has("shrink");
    await resizeImage(imageOf(image), { sizeBytes, shrink, onProgress: progress?.update })
      .finally(() => progress?.stop());
    return 0;
  },
};
