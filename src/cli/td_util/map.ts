import { type ImageMap, mapImage } from "../../images/map.ts";
import { countBuckets } from "../../pictures/buckets.ts";
import type { DiskDescription } from "../../pictures/descriptions.ts";
import { mapPage } from "../../pictures/map_page.ts";
import { MAP_BUCKETS, mapPicture } from "../../pictures/map_picture.ts";
import { jsonText } from "../json.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { deliverPicture, PICTURE_OPTIONS, pictureWish } from "../subcommands/picture_options.ts";
import { imageOf, JSON_OPTION, operandsOf } from "./operands.ts";

/** `td-util map`. */
export const mapCommand: Subcommand = {
  name: "map",
  summary: "Print which image of a chain holds which part of a disk",
  synopsis: "[--json] IMAGE\n[--svg | --html] [-o FILE] IMAGE",
  usage: "td-util map [--json] [--svg] [--html] [-o FILE] IMAGE",
  options: [JSON_OPTION, ...PICTURE_OPTIONS],
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
    const wish = pictureWish(call);
    const map = await mapImage(imageOf(image));
    const { layers, extents } = map;
    if (wish !== null) {
      deliverPicture(call, wish, wish.kind === "svg" ? drawing(map) : page(map));
      return 0;
    }
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

function diskOf({ layers, extents }: ImageMap): DiskDescription {
  const last = extents.at(-1);
  const sizeBytes = last === undefined ? 0 : last.offsetBytes + last.lengthBytes;
  return { name: layers[0], sizeBytes, layers };
}

function drawing(map: ImageMap): string {
  const disk = diskOf(map);
  const plan = { ...disk, layerCount: map.layers.length, most: MAP_BUCKETS };
  return mapPicture(disk, countBuckets(map.extents, plan));
}

function page(map: ImageMap): string {
  return mapPage(diskOf(map), map.extents);
}
