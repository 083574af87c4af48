import { type Markup, markup } from "./markup.ts";
import { formatShare } from "./sizes.ts";
import { layerClass } from "./style.ts";
import { fitName, type PicturePlace, svgElement } from "./svg.ts";

/** A part of a whole. */
export interface Share {
  readonly name: string;
  readonly value: number;
  /** The value as it is shown: `3.2 s`. */
  readonly text: string;
}

const WIDTH_PX = 880;
const MARGIN_PX = 16;
const HEAD_PX = 40;
const BAR_PX = 22;
const BAR_WIDTH = WIDTH_PX - 2 * MARGIN_PX;
const LINE_PX = 22;
/** A part that is not nothing stays visible. */
const LEAST_PX = 2;

/** Parts of a whole as SVG: one bar, and what its parts are. */
export function sharesPicture(
  { title, shares }: { title: string; shares: readonly Share[] },
  place?: PicturePlace,
): string {
  const whole = shares.reduce((sum, { value }) => sum + Math.max(0, value), 0);
  const legendY = HEAD_PX + BAR_PX + 14;
  const bars: Markup[] = [];
  let x = MARGIN_PX;
  shares.forEach(({ name, value, text }, index) => {
    if (!(value > 0)) return;
    const left = MARGIN_PX + BAR_WIDTH - x;
    const width = Math.min(left, Math.max(LEAST_PX, BAR_WIDTH * value / whole));
    bars.push(
      markup`<rect class="${
        layerClass(index)
      }" x="${x}" y="${HEAD_PX}" width="${width}" height="${BAR_PX}" fill="#0969da"><title>${name}: ${text}</title></rect>`,
    );
    x += width;
  });
  const legend = shares.map(({ name, value, text }, index) => {
    const y = legendY + index * LINE_PX;
    return markup`<rect class="${
      layerClass(index)
    }" x="${MARGIN_PX}" y="${y}" width="11" height="11" rx="2" fill="#0969da"/>
<text x="${MARGIN_PX + 18}" y="${y + 10}">${fitName(name, BAR_WIDTH / 2)}: ${text}, ${
      formatShare(value, whole)
    }</text>`;
  });
  const said = shares.map(({ name, value, text }) =>
    `${name}: ${text}, ${formatShare(value, whole)}.`
  );
  return svgElement({
    width: WIDTH_PX,
    height: legendY + shares.length * LINE_PX + MARGIN_PX / 2,
    title,
    description: said.join(" "),
    body: [
      markup`<text class="head" x="${MARGIN_PX}" y="26">${title}</text>`,
      markup`<rect class="hollow" x="${MARGIN_PX}" y="${HEAD_PX}" width="${BAR_WIDTH}" height="${BAR_PX}" fill="#e6eaef"/>`,
      ...bars,
      ...legend,
    ],
  }, place).text;
}
