import { type Buckets, shareOf } from "./buckets.ts";
import type { DiskDescription } from "./descriptions.ts";
import { type Markup, markup } from "./markup.ts";
import { formatShare, formatSize } from "./sizes.ts";
import { layerClass } from "./style.ts";
import { fitName, type PicturePlace, svgElement } from "./svg.ts";

/** How many buckets a map of a disk has at most. */
export const MAP_BUCKETS = 8192;

const COLUMNS = 128;
const CELL_PX = 7;
const GRID_PX = COLUMNS * CELL_PX;
const LEFT_PX = 84;
const MARGIN_PX = 16;
const HEAD_PX = 60;
const WIDTH_PX = LEFT_PX + GRID_PX + MARGIN_PX;
/** Rows between two offsets at the side. */
const ROWS_OF_LABEL = 4;
const STRIP_CELLS = 256;
const STRIP_ROW_PX = 42;
const STRIP_PX = 12;
/** More images are added up in a sentence. */
const MOST_STRIPS = 64;
/** Buckets with little data stay visible. */
const FAINTEST = 0.25;
const SHADES = 8;

/** How opaque a bucket is: few different values, so that neighbours can be drawn as one. */
function shadeOf(share: number): number {
  return share <= 0 ? 0 : FAINTEST + (1 - FAINTEST) * Math.ceil(share * SHADES) / SHADES;
}

/** What is drawn alike: a run of cells. */
interface CellRun {
  readonly from: number;
  readonly to: number;
  readonly layer: number;
  readonly shade: number;
}

/** Neighbours of one layer and shade, joined. Cells without data are left out. */
function cellRuns(
  count: number,
  share: (cell: number) => { layer: number; share: number },
): CellRun[] {
  const runs: CellRun[] = [];
  let pending = null as CellRun | null;
  for (let cell = 0; cell < count; cell++) {
    const found = share(cell);
    const shade = shadeOf(found.share);
    if (pending !== null && pending.layer === found.layer && pending.shade === shade) {
      pending = { ...pending, to: cell + 1 };
      continue;
    }
    if (pending !== null && pending.layer >= 0) runs.push(pending);
    pending = { from: cell, to: cell + 1, layer: found.layer, shade };
  }
  if (pending !== null && pending.layer >= 0) runs.push(pending);
  return runs;
}

/** The ground of a grid: whole rows, and a last one that may be shorter. */
function gridGround({ count }: Buckets, y: number): Markup[] {
  const rows = Math.floor(count / COLUMNS);
  const rest = count % COLUMNS;
  const part = (top: number, width: number, height: number): Markup =>
    markup`<rect class="hollow" x="${LEFT_PX}" y="${top}" width="${width}" height="${height}" fill="#e6eaef"/>`;
  return [
    ...rows > 0 ? [part(y, GRID_PX, rows * CELL_PX)] : [],
    ...rest > 0 ? [part(y + rows * CELL_PX, rest * CELL_PX, CELL_PX)] : [],
  ];
}

function grid(buckets: Buckets, y: number): Markup[] {
  const parts = gridGround(buckets, y);
  for (let row = 0; row * COLUMNS < buckets.count; row++) {
    const first = row * COLUMNS;
    const top = y + row * CELL_PX;
    if (row % ROWS_OF_LABEL === 0) {
      const offset = formatSize(buckets.startBytes + first * buckets.bucketBytes);
      parts.push(
        markup`<text class="soft small" x="${LEFT_PX - 8}" y="${
          top + CELL_PX
        }" text-anchor="end" font-size="12">${offset}</text>`,
      );
    }
    const count = Math.min(COLUMNS, buckets.count - first);
    const runs = cellRuns(count, (cell) => shareOf(buckets, { bucket: first + cell }));
    for (const { from, to, layer, shade } of runs) {
      parts.push(
        markup`<rect class="${layerClass(layer)}" x="${
          LEFT_PX + from * CELL_PX
        }" y="${top}" width="${
          (to - from) * CELL_PX
        }" height="${CELL_PX}" fill="#0969da" fill-opacity="${shade}"/>`,
      );
    }
  }
  return parts;
}

/** Where in the disk one image's data is. */
function strip(
  buckets: Buckets,
  { layer, name, y }: { layer: number; name: string; y: number },
): Markup {
  const together = Math.max(1, Math.ceil(buckets.count / STRIP_CELLS));
  const cells = Math.ceil(buckets.count / together);
  const cellPx = GRID_PX / Math.max(1, cells);
  const held = buckets.totals[layer];
  const whole = buckets.endBytes - buckets.startBytes;
  const text = `${formatSize(held)}, ${formatShare(held, whole)}`;
  const top = y + 22;
  const runs = cellRuns(
    cells,
    (cell) => shareOf(buckets, { bucket: cell * together, count: together, only: layer }),
  );
  return markup`<g><title>${name}: ${text}</title>
<rect class="${layerClass(layer)}" x="${LEFT_PX}" y="${
    y + 6
  }" width="10" height="10" rx="2" fill="#0969da"/>
<text class="name" x="${LEFT_PX + 16}" y="${y + 16}">${fitName(name, GRID_PX - 190)}</text>
<text class="soft" x="${LEFT_PX + GRID_PX}" y="${y + 16}" text-anchor="end">${text}</text>
<rect class="hollow" x="${LEFT_PX}" y="${top}" width="${GRID_PX}" height="${STRIP_PX}" fill="#e6eaef"/>
${
    runs.map(({ from, to, shade }) =>
      markup`<rect class="${layerClass(layer)}" x="${LEFT_PX + from * cellPx}" y="${top}" width="${
        (to - from) * cellPx
      }" height="${STRIP_PX}" fill="#0969da" fill-opacity="${shade}"/>`
    )
  }</g>`;
}

/** What a map shows, in sentences. */
function mapSentences({ layers }: DiskDescription, buckets: Buckets): string {
  const whole = buckets.endBytes - buckets.startBytes;
  const held = layers.slice(0, MOST_STRIPS).map((name, layer) =>
    `${name} holds ${formatSize(buckets.totals[layer])}, ${
      formatShare(buckets.totals[layer], whole)
    }.`
  );
  const none = whole - buckets.totals.reduce((sum, bytes) => sum + bytes, 0);
  return `${held.join(" ")} ${formatSize(none)} hold no data.`;
}

/** Which part of a disk a map shows, and what a square of it is. */
function partText({ sizeBytes }: DiskDescription, buckets: Buckets): string {
  const { startBytes, endBytes, bucketBytes } = buckets;
  const isWhole = startBytes === 0 && endBytes === sizeBytes;
  const part = isWhole
    ? formatSize(sizeBytes)
    : `${formatSize(startBytes)} to ${formatSize(endBytes)} of ${formatSize(sizeBytes)}`;
  return `${part}; a square is ${formatSize(bucketBytes)}, in the colour of the image that holds ` +
    "most of it, fainter where less holds data";
}

/**
 * Which image of a chain holds which part of a disk, as SVG: the disk as a grid of buckets, then a strip for
 * each image. What an image above has replaced is not shown.
 *
 * @param buckets What the images hold, in {@linkcode MAP_BUCKETS} or fewer.
 */
export function mapPicture(
  disk: DiskDescription,
  buckets: Buckets,
  place?: PicturePlace,
): string {
  const { name, layers } = disk;
  const rows = Math.ceil(buckets.count / COLUMNS);
  const stripsY = HEAD_PX + rows * CELL_PX + 18;
  const strips = layers.slice(0, MOST_STRIPS);
  const endY = stripsY + strips.length * STRIP_ROW_PX;
  const rest = buckets.totals.slice(MOST_STRIPS).reduce((sum, bytes) => sum + bytes, 0);
  const part = partText(disk, buckets);
  return svgElement({
    width: WIDTH_PX,
    height: endY + (layers.length > strips.length ? 40 : MARGIN_PX),
    title: `${name}: which image holds what`,
    description: `${part}. ${mapSentences(disk, buckets)}`,
    body: [
      markup`<text class="head" x="${MARGIN_PX}" y="26">${
        fitName(name, WIDTH_PX - 2 * MARGIN_PX - 120)
      }</text>`,
      markup`<text class="soft" x="${MARGIN_PX}" y="46">${part}</text>`,
      ...grid(buckets, HEAD_PX),
      ...strips.map((layer, index) =>
        strip(buckets, { layer: index, name: layer, y: stripsY + index * STRIP_ROW_PX })
      ),
      ...layers.length > strips.length
        ? [
          markup`<text class="soft" x="${LEFT_PX}" y="${endY + 18}">${
            layers.length - strips.length
          } more images hold ${formatSize(rest)}</text>`,
        ]
        : [],
    ],
  }, place).text;
}
