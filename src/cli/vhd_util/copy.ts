import { Errno } from "../../../ffi/errno.ts";
import { copyImage } from "../../offline/copy.ts";
import { openVhd } from "../../vhd/image.ts";
import { osStorage } from "../../vhd/storage.ts";
import { openProgress } from "../progress.ts";
import { type CommandCall, errnoOf, type Subcommand, UsageError } from "./command.ts";

/** `vhd-util copy`. */
export const copyCommand: Subcommand = {
  name: "copy",
  summary: "Copy an image and all that it builds on into one new image",
  synopsis: "-n FILE -N NEW",
  usage: "options: -n <name> -N <new VHD name> " +
    "[-k <keyfile> | -E (pass encryption key on stdin)] " +
    "[-h help] ",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "N", value: "NEW", text: "the image to make" },
  ],
  example: `
$ vhd-util copy -n today.vhd -N whole.vhd
$ vhd-util query -p -n whole.vhd
whole.vhd has no parent`,

  async run(call: CommandCall): Promise<number> {
    const path = call.value("n");
    const output = call.value("N");
    if (path === null || output === null) {
      throw new UsageError("Must supply both existing and new VHD names");
    }
    try {
      openVhd(path).close();
    } catch (error) {
      call.output.print(`error opening ${path}: ${-errnoOf(error)}\n`);
      throw error;
    }
    if (osStorage.exists(output) && osStorage.status(output).kind !== "block") {
      call.output.print(`VHD file ${output} already exists, chose a different name\n`);
      return Errno.EINVAL;
    }
    const progress = await openProgress("copy");
    try {
      await copyImage(path, output, { onProgress: progress.update });
    } finally {
      progress.stop();
    }
    return 0;
  },
};
