import { type ImageInfo, imageInfo, type LayerInfo } from "../../images/info.ts";
import { jsonText } from "../json.ts";
import { formatSize } from "../../pictures/sizes.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, JSON_OPTION, operandsOf } from "./operands.ts";

/** `td-util info`. */
export const infoCommand: Subcommand = {
  name: "info",
  summary: "Describe an image and the images below it",
  synopsis: "[--json] IMAGE",
  usage: "td-util info [--json] IMAGE",
  options: [JSON_OPTION],
  operands: true,
  followsParents: true,
  example: `
$ td-util info vhd:disk.vhd
vhd:disk.vhd
  disk: 10 GiB (10737418240 bytes)
  file: 2.1 MiB, of which 40 KiB take room
  kind: dynamic`,

  async run(call: CommandCall): Promise<number> {
    const [image] = operandsOf(call, "IMAGE");
    const info = await imageInfo(imageOf(image));
    if (call.has("json")) call.output.print(jsonText(info));
    else for (const line of linesOf(info)) call.output.printLine(line);
    return 0;
  },
};

function linesOf({ layers, chainError }: ImageInfo): string[] {
  const lines = layers.flatMap((layer, depth) => layerLines(layer, depth));
  return chainError === null ? lines : [...lines, `  chain: ${chainError}`];
}

function layerLines(
  { name, sizeBytes, fileBytes, roomBytes, facts }: LayerInfo,
  depth: number,
): string[] {
  const lines = [depth === 0 ? name : `below it: ${name}`];
  if (sizeBytes !== null) lines.push(`  disk: ${formatSize(sizeBytes)} (${sizeBytes} bytes)`);
  if (fileBytes !== null) {
    const room = roomBytes === null ? "" : `, of which ${formatSize(roomBytes)} take room`;
    lines.push(`  file: ${formatSize(fileBytes)}${room}`);
  }
  for (const [fact, value] of Object.entries(facts)) {
    if (value !== null && value !== false) lines.push(`  ${wordsOf(fact)}: ${value}`);
  }
  return lines;
}

/** `blockSizeBytes` as words. */
function wordsOf(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
}
