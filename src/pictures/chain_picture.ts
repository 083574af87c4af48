import type { LayerDescription, TreeDescription } from "./descriptions.ts";
import { layerRow, layerSentence, ROW_PX } from "./layer_rows.ts";
import { type Markup, markup } from "./markup.ts";
import { fitName, type PicturePlace, svgElement } from "./svg.ts";

const MARGIN_PX = 16;
const HEAD_PX = 36;
const WIDTH_PX = 880;
/** More images are counted, and not drawn. */
const MOST_ROWS = 2000;
const MOST_INDENT_PX = 24;
/** All of the indentation of the deepest image. */
const MOST_INDENTS_PX = 300;
const MOST_SENTENCES = 100;

/** Images in sentences, for readers who do not see. */
function sentences(layers: readonly LayerDescription[], count: number): string {
  const said = layers.slice(0, MOST_SENTENCES).map((layer) => `${layerSentence(layer)}.`);
  if (count > said.length) said.push(`And ${count - said.length} more.`);
  return said.join(" ");
}

function headline(title: string): Markup {
  return markup`<text class="head" x="${MARGIN_PX}" y="${MARGIN_PX + 12}">${
    fitName(title, WIDTH_PX - 2 * MARGIN_PX)
  }</text>`;
}

function footline(hidden: number, y: number): Markup[] {
  if (hidden <= 0) return [];
  return [
    markup`<text class="soft" x="${MARGIN_PX}" y="${y + 14}">and ${hidden} more images</text>`,
  ];
}

/**
 * A chain as SVG: the image that is written on top, each image above the one that it is made on.
 *
 * @param layers The topmost image first.
 */
export function chainPicture(
  { title, layers }: { title: string; layers: readonly LayerDescription[] },
  place?: PicturePlace,
): string {
  const shown = layers.slice(0, MOST_ROWS);
  const y = (row: number): number => HEAD_PX + MARGIN_PX + row * ROW_PX;
  const arrows = shown.slice(1).map((_layer, row) =>
    markup`<path class="line" d="M${MARGIN_PX + 5.5} ${y(row) + 20}V${
      y(row + 1) + 4
    }m-3.5 -4l3.5 4l3.5 -4" stroke="#818b98" fill="none"/>`
  );
  const rows = shown.map((layer, row) =>
    layerRow(layer, { x: MARGIN_PX, y: y(row), width: WIDTH_PX - MARGIN_PX, colour: row })
  );
  const hidden = layers.length - shown.length;
  return svgElement({
    width: WIDTH_PX,
    height: y(shown.length) + (hidden > 0 ? ROW_PX / 2 : 0),
    title,
    description: `A chain of ${layers.length} images, the topmost first. ` +
      sentences(layers, layers.length),
    body: [headline(title), ...arrows, ...rows, ...footline(hidden, y(shown.length))],
  }, place).text;
}

/** An image in the order in which a tree is drawn. */
interface Branch {
  readonly node: TreeDescription;
  readonly depth: number;
  /** The row of the image below; -1 for a root. */
  readonly parentRow: number;
}

/** The images in the order of rows, at most so many, and how many there are. */
function branchesOf(roots: readonly TreeDescription[], most: number): [Branch[], number] {
  const branches: Branch[] = [];
  let count = 0;
  // A chain may be deeper than calls may be.
  const open: Branch[] = roots.toReversed().map((node) => ({ node, depth: 0, parentRow: -1 }));
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    const row = count++;
    if (row < most) branches.push(next);
    const { node, depth } = next;
    for (const child of node.children.toReversed()) {
      open.push({ node: child, depth: depth + 1, parentRow: row });
    }
  }
  return [branches, count];
}

/** Images and what is made on them as SVG: each image under the one that it is made on. */
export function treePicture(
  { title, roots }: { title: string; roots: readonly TreeDescription[] },
  place?: PicturePlace,
): string {
  const [branches, count] = branchesOf(roots, MOST_ROWS);
  const deepest = branches.reduce((most, { depth }) => Math.max(most, depth), 0);
  const indent = Math.min(MOST_INDENT_PX, MOST_INDENTS_PX / Math.max(1, deepest));
  const x = (depth: number): number => MARGIN_PX + depth * indent;
  const y = (row: number): number => HEAD_PX + MARGIN_PX + row * ROW_PX;
  const lines = branches.flatMap(({ depth, parentRow }, row) =>
    parentRow < 0 ? [] : [
      markup`<path class="line" d="M${x(depth - 1) + 5.5} ${y(parentRow) + 20}V${y(row) + 12.5}H${
        x(depth) - 3
      }" stroke="#818b98" fill="none"/>`,
    ]
  );
  const rows = branches.map(({ node, depth }, row) =>
    layerRow(node, { x: x(depth), y: y(row), width: WIDTH_PX - MARGIN_PX, colour: depth })
  );
  const hidden = count - branches.length;
  return svgElement({
    width: WIDTH_PX,
    height: y(branches.length) + (hidden > 0 ? ROW_PX / 2 : 0),
    title,
    description: `${count} images, each after the one that it is made on. ` +
      sentences(branches.map(({ node }) => node), count),
    body: [headline(title), ...lines, ...rows, ...footline(hidden, y(branches.length))],
  }, place).text;
}
