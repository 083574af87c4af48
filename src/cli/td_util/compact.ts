import { type CompactedImage, compactImage } from "../../images/compact.ts";
import { jsonText } from "../json.ts";
import { openProgress } from "../progress.ts";
import { formatSize } from "../../pictures/sizes.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, JSON_OPTION, operandsOf, QUIET_OPTION } from "./operands.ts";

/** `td-util compact`. */
export const compactCommand: Subcommand = {
  name: "compact",
  summary: "Give back the room of what holds only zeros",
  synopsis: "[--json] [--quiet] IMAGE",
  usage: "td-util compact [--json] [--quiet] IMAGE",
  options: [JSON_OPTION, { ...QUIET_OPTION, text: "print nothing" }],
  operands: true,
  example: `
$ td-util compact vhd:disk.vhd
The file has 2.1 GiB, 640 MiB less than before; it takes 2.1 GiB, 640 MiB less than before`,

  async run(call: CommandCall): Promise<number> {
    const [image] = operandsOf(call, "IMAGE");
    const progress = call.has("quiet") ? null : await openProgress("compact");
    let won: CompactedImage;
    try {
      won = compactImage(imageOf(image), { onProgress: progress?.update });
    } finally {
      progress?.stop();
    }
    if (call.has("json")) call.output.print(jsonText(won));
    else if (!call.has("quiet")) call.output.printLine(textOf(won));
    return 0;
  },
};

function textOf(
  { beforeBytes, afterBytes, roomBeforeBytes, roomAfterBytes }: CompactedImage,
): string {
  const less = (before: number, after: number): string =>
    `${formatSize(after)}, ${formatSize(Math.max(0, before - after))} less than before`;
  const length = `The file has ${less(beforeBytes, afterBytes)}`;
  if (roomBeforeBytes === null || roomAfterBytes === null) return length;
  return `${length}; it takes ${less(roomBeforeBytes, roomAfterBytes)}`;
}
