import { firstLayer } from "../../driver/layers.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { convertWithProgress } from "./convert.ts";
import { imageOf, operandsOf, QUIET_OPTION } from "./operands.ts";

/** `td-util copy`. */
export const copyCommand: Subcommand = {
  name: "copy",
  summary: "Copy an image and all images below it into one new image of the same type",
  synopsis: "[--keep-zeros] [--quiet] IMAGE FILE",
  usage: "td-util copy [--keep-zeros] [--quiet] IMAGE FILE",
  options: [
    { name: "keep-zeros", text: "write zeros that the image holds; by default they become holes" },
    QUIET_OPTION,
  ],
  operands: true,
  followsParents: true,
  example: `
$ td-util copy vhd:today.vhd whole.vhd`,

  async run(call: CommandCall): Promise<number> {
    const [image, path] = operandsOf(call, "IMAGE", "FILE");
    const from = imageOf(image);
    await convertWithProgress(call, { from, to: `${firstLayer(from).type}:${path}` });
    return 0;
  },
};
