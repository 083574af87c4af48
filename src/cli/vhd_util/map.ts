import { openChain, type VhdChain } from "../../vhd/image/chain.ts";
import { openVhd } from "../../vhd/image/image.ts";
import { type ChainExtent, chainExtents } from "../../vhd/image/extents.ts";
import { plainText } from "../../log/plain_text.ts";
import { fileNameOf } from "../../files/paths.ts";
import { VHD_SECTOR_SIZE } from "../../vhd/format/units.ts";
import { jsonText } from "../json.ts";
import { formatSize } from "../../pictures/sizes.ts";
import { countBuckets } from "../../pictures/buckets.ts";
import type { DiskDescription, LayerExtent } from "../../pictures/descriptions.ts";
import { mapPage } from "../../pictures/map_page.ts";
import { MAP_BUCKETS, mapPicture } from "../../pictures/map_picture.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import {
  deliverPicture,
  PICTURE_OPTIONS,
  type PictureWish,
  pictureWish,
} from "../subcommands/picture_options.ts";
import { type CellMap, countCells } from "./map_cells.ts";
import { layerLetter, pngPicture, terminalColour, textPicture } from "./map_picture.ts";

/** `vhd-util map`. */
export const mapCommand: Subcommand = {
  name: "map",
  summary: "Show where a disk has data and which image of the chain holds it",
  synopsis: "-n FILE [-1] [--json]\n-n FILE [-1] [--svg | --html] [-o FILE]",
  usage: "options: <-n name> [-1 the image alone] [--json] [--svg] [--html] [-o file] [-h help]",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "1", text: "show only the data of this image, not that of its parents" },
    { name: "json", text: "print JSON: the extents of the disk and the layer of each" },
    ...PICTURE_OPTIONS,
    { name: "output", value: "FILE", text: "the same as -o, also for a name that ends in .png" },
  ],
  followsParents: true,
  example: `
$ vhd-util map -n child.vhd | sed 3,16d
Aa..............................................BBBBBBBBBBBBBBBB
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB
  A  child.vhd  3.1 MiB
  B  base.vhd   3.0 MiB
each character is 64 KiB of 64 MiB; a capital letter means all data
$ vhd-util map -n child.vhd -o chain.html`,

  run(call: CommandCall): number {
    const path = call.required("n");
    const wish = pictureWish(call, {
      path: call.value("output") ?? call.value("o"),
      kinds: ["svg", "html", "png"],
    });
    const chain = call.has("1") ? loneImage(path) : openChain(path, { ignoreDisabled: true });
    try {
      if (call.has("json")) printJson(call, chain);
      else if (wish !== null) deliverPicture(call, wish, draw(chain, wish));
      else printMap(call, chain);
    } finally {
      chain.close();
    }
    return 0;
  },
};

/** An image as if it had no parent. */
function loneImage(path: string): VhdChain {
  const image = openVhd(path, { ignoreDisabled: true });
  return { images: [image], raw: null, depth: 1, close: () => image.close() };
}

function layerPaths(chain: VhdChain): string[] {
  const paths = chain.images.map(({ path }) => path);
  return chain.raw === null ? paths : [...paths, chain.raw.path];
}

/** The names of the layers as they are printed. */
function layerNames(chain: VhdChain): string[] {
  return layerPaths(chain).map((path) => plainText(fileNameOf(path)));
}

function cellsOf(chain: VhdChain, size: { columns: number; rows: number }): CellMap {
  const sizeSectors = chain.images[0].sizeBytes / VHD_SECTOR_SIZE;
  return countCells(chainExtents(chain), { sizeSectors, layerCount: chain.depth, ...size });
}

function* extentsOf(chain: VhdChain): Generator<LayerExtent> {
  for (const { sector, lengthSectors, layer } of chainExtents(chain)) {
    yield {
      offsetBytes: sector * VHD_SECTOR_SIZE,
      lengthBytes: lengthSectors * VHD_SECTOR_SIZE,
      layer,
    };
  }
}

function draw(chain: VhdChain, { kind }: PictureWish): string | Uint8Array {
  if (kind === "png") return pngPicture(cellsOf(chain, { columns: 128, rows: 64 }));
  const { path, sizeBytes } = chain.images[0];
  const disk: DiskDescription = { name: path, sizeBytes, layers: layerNames(chain) };
  if (kind === "html") return mapPage(disk, extentsOf(chain));
  const plan = { sizeBytes, layerCount: chain.depth, most: MAP_BUCKETS };
  return mapPicture(disk, countBuckets(extentsOf(chain), plan));
}

const PLAIN_COLUMNS = 64;
const MOST_COLUMNS = 128;
const MOST_ROWS = 24;

/** A power of two, as wide as the terminal allows. */
function pictureColumns(): number {
  // Some terminals report a width of 0.
  const width = Deno.stdout.isTerminal() ? Deno.consoleSize().columns : 0;
  if (width === 0) return PLAIN_COLUMNS;
  return Math.min(MOST_COLUMNS, Math.max(8, 2 ** Math.floor(Math.log2(width))));
}

function printMap({ output }: CommandCall, chain: VhdChain): void {
  const colours = Deno.stdout.isTerminal() && Deno.env.get("NO_COLOR") === undefined;
  const map = cellsOf(chain, { columns: pictureColumns(), rows: MOST_ROWS });
  for (const line of textPicture(map, { colours })) output.printRaw(`${line}\n`);
  const names = layerNames(chain);
  const nameWidth = Math.max(...names.map((name) => name.length));
  for (const [layer, name] of names.entries()) {
    const sign = colours ? `${terminalColour(layer)}█\x1b[0m` : layerLetter(layer).toUpperCase();
    const size = formatSize(map.sectorsOfLayer[layer] * VHD_SECTOR_SIZE);
    output.printRaw(`  ${sign}  ${name.padEnd(nameWidth)}  ${size}\n`);
  }
  const cell = formatSize(map.cellSectors * VHD_SECTOR_SIZE);
  output.printLine(
    `each character is ${cell} of ${formatSize(chain.images[0].sizeBytes)}; ` +
      `${colours ? "a full block" : "a capital letter"} means all data`,
  );
}

/** Prints each extent as it is found, because there may be millions. */
function printJson({ output }: CommandCall, chain: VhdChain): void {
  const layers = layerPaths(chain);
  output.print("[");
  let first = true;
  for (const extent of chainExtents(chain)) {
    output.print(`${first ? "\n" : ",\n"}  ${extentJson(extent, layers)}`);
    first = false;
  }
  output.print("\n]\n");
}

function extentJson(
  { sector, lengthSectors, layer }: ChainExtent,
  layers: readonly string[],
): string {
  return jsonText({
    start: sector * VHD_SECTOR_SIZE,
    length: lengthSectors * VHD_SECTOR_SIZE,
    data: layer >= 0,
    depth: layer < 0 ? null : layer,
    file: layer < 0 ? null : layers[layer],
  }, { indent: 0 }).trimEnd();
}
