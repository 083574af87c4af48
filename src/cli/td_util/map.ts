import { mapImage } from "../../images/map.ts";
import { jsonText } from "../json.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, JSON_OPTION, operandsOf } from "./operands.ts";

/** `td-util map`. */
export const mapCommand: Subcommand = {
  name: "map",
  summary: "Print which image of a chain holds which part of a disk",
  synopsis: "[--json] IMAGE",
  usage: "td-util map [--json] IMAGE",
  options: [JSON_OPTION],
  operands: true,
  followsParents: true,
  example: `
$ td-util map vhd:today.vhd
      offset       length  image
           0      2097152  vhd:today.vhd
     2097152      2097152  vhd:base.vhd
     4194304     62914560  -`,

  async run(call: CommandCall): Promise<number> {
    const [image] = operandsOf(call, "IMAGE");
    const { layers, extents } = await mapImage(imageOf(image));
    if (call.has("json")) {
      call.output.print(jsonText({ layers, extents }));
      return 0;
    }
    const line = (offset: string | number, length: string | number, name: string): void =>
      call.output.printLine(`${`${offset}`.padStart(12)} ${`${length}`.padStart(12)}  ${name}`);
    line("offset", "length", "image");
    for (const { offsetBytes, lengthBytes, layer } of extents) {
      line(offsetBytes, lengthBytes, layer === null ? "-" : layers[layer]);
    }
    return 0;
  },
};
