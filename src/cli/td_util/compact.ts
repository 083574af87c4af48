import { compactImage } from "../../images/change.ts";
import { openProgress } from "../progress.ts";
import { formatSize } from "../sizes.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, operandsOf, QUIET_OPTION } from "./operands.ts";

/** `td-util compact`. */
export const compactCommand: Subcommand = {
  name: "compact",
  summary: "Give back the room of blocks that hold only zeros",
  synopsis: "[--quiet] IMAGE",
  usage: "td-util compact [--quiet] IMAGE",
  options: [QUIET_OPTION],
  operands: true,
  example: `
$ td-util compact vhd:disk.vhd
The file has 2.1 GiB, 640 MiB less than before`,

  async run(call: CommandCall): Promise<number> {
    const [image] = operandsOf(call, "IMAGE");
    const progress = call.has("quiet") ? null : await openProgress("compact");
    let won: { beforeBytes: number; afterBytes: number };
    try {
      won = compactImage(imageOf(image), { onProgress: progress?.update });
    } finally {
      progress?.stop();
    }
    if (call.has("quiet")) return 0;
    const less = formatSize(won.beforeBytes - won.afterBytes);
    call.output.printLine(`The file has ${formatSize(won.afterBytes)}, ${less} less than before`);
    return 0;
  },
};
