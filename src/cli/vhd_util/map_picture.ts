import { crc32, deflateSync } from "node:zlib";
import type { CellMap } from "./map_cells.ts";

/** Colours of layers, the topmost first. They repeat when there are more layers. */
const PALETTE = [
  [0x1f, 0x77, 0xb4],
  [0xff, 0x7f, 0x0e],
  [0x2c, 0xa0, 0x2c],
  [0xd6, 0x27, 0x28],
  [0x94, 0x67, 0xbd],
  [0x8c, 0x56, 0x4b],
  [0xe3, 0x77, 0xc2],
  [0x17, 0xbe, 0xcf],
] as const;
const EMPTY = [0xee, 0xee, 0xee] as const;
/** Cells with little data stay visible. */
const FAINTEST = 0.25;

function colourOf(map: CellMap, cell: number): readonly number[] {
  const layer = map.layers[cell];
  if (layer < 0) return EMPTY;
  const strength = FAINTEST + (1 - FAINTEST) * map.fullness[cell];
  return PALETTE[layer % PALETTE.length].map((part, index) =>
    Math.round(EMPTY[index] + (part - EMPTY[index]) * strength)
  );
}

const CELL_PX = 8;

const PNG_SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

function pngChunk(type: string, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

/** The map as PNG: a square for each cell, without text. */
export function pngPicture(map: CellMap): Uint8Array {
  const width = map.columns * CELL_PX;
  const height = map.rows * CELL_PX;
  const rowBytes = 1 + width * 3;
  const pixels = new Uint8Array(rowBytes * height);
  for (let row = 0; row < map.rows; row++) {
    const line = pixels.subarray(row * CELL_PX * rowBytes, (row * CELL_PX + 1) * rowBytes);
    for (let column = 0; column < map.columns; column++) {
      const cell = row * map.columns + column;
      const colour = cell < map.layers.length ? colourOf(map, cell) : [0xff, 0xff, 0xff];
      for (let x = 0; x < CELL_PX; x++) line.set(colour, 1 + (column * CELL_PX + x) * 3);
    }
    for (let y = 1; y < CELL_PX; y++) pixels.set(line, (row * CELL_PX + y) * rowBytes);
  }
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  // Eight bits a sample, red, green and blue.
  header.set([8, 2], 8);
  const parts = [
    new Uint8Array(PNG_SIGNATURE),
    pngChunk("IHDR", header),
    pngChunk("IDAT", deflateSync(pixels)),
    pngChunk("IEND", new Uint8Array(0)),
  ];
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Characters for the fullness of a cell, from almost empty to full. */
const SHADES = ["░", "▒", "▓", "█"];

/**
 * The map as lines of text: coloured shades on a terminal, otherwise the letter of each cell's layer,
 * `a` for the topmost, a capital where the cell is full.
 */
export function textPicture(map: CellMap, { colours }: { colours: boolean }): string[] {
  const lines: string[] = [];
  for (let row = 0; row < map.rows; row++) {
    let line = "";
    const end = Math.min(map.layers.length, (row + 1) * map.columns);
    for (let cell = row * map.columns; cell < end; cell++) line += sign(map, cell, colours);
    lines.push(line);
  }
  return lines;
}

function sign(map: CellMap, cell: number, colours: boolean): string {
  const layer = map.layers[cell];
  const full = map.fullness[cell];
  if (layer < 0) return colours ? "·" : ".";
  if (!colours) {
    const letter = layerLetter(layer);
    return full >= 1 ? letter.toUpperCase() : letter;
  }
  const shade = SHADES[Math.min(SHADES.length - 1, Math.floor(full * SHADES.length))];
  return `${terminalColour(layer)}${shade}\x1b[0m`;
}

/** The letter of a layer in a picture without colours. */
export function layerLetter(layer: number): string {
  return "abcdefghijklmnopqrstuvwxyz"[Math.min(layer, 25)];
}

/** The escape sequence that switches a terminal to a layer's colour. */
export function terminalColour(layer: number): string {
  const [red, green, blue] = PALETTE[layer % PALETTE.length];
  return `\x1b[38;2;${red};${green};${blue}m`;
}
