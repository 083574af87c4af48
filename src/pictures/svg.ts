import { Markup, markup, NOTHING } from "./markup.ts";
import { PICTURE_STYLE } from "./style.ts";

/** Where a picture is put. */
export interface PicturePlace {
  /**
   * Begins the ids in the picture, so that a page can have several. Letters, digits and hyphens. Without
   * it, the picture is a file of its own and has its style and its ground inside.
   */
  readonly id?: string;
}

/** A drawing without its frame. */
export interface Drawing {
  readonly width: number;
  readonly height: number;
  /** What a screen reader reads first, and what is the name of the picture. */
  readonly title: string;
  /** The picture in sentences. */
  readonly description: string;
  readonly body: readonly Markup[];
}

const STYLE = new Markup(`<style>\n${PICTURE_STYLE}</style>\n`);
const GROUND = new Markup('<rect class="paper" width="100%" height="100%"/>\n');

/** A picture as an SVG element. Attributes stand for the style where it cannot be read. */
export function svgElement(
  { width, height, title, description, body }: Drawing,
  { id }: PicturePlace = {},
): Markup {
  const own = id === undefined;
  const prefix = id ?? "picture";
  return markup`<svg xmlns="http://www.w3.org/2000/svg" class="picture" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-labelledby="${prefix}-title ${prefix}-desc" font-family="sans-serif" font-size="13">
<title id="${prefix}-title">${title}</title>
<desc id="${prefix}-desc">${description}</desc>
${own ? STYLE : NOTHING}${own ? GROUND : NOTHING}${body}
</svg>
`;
}

/** A character of the font of names, as a share of its size. */
const CHARACTER_WIDTH = 0.61;
const NAME_PX = 13;

/** Characters that are as wide as two. */
const WIDE =
  /[\u1100-\u115f\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u;

function widthOf(character: string): number {
  return (WIDE.test(character) ? 2 : 1) * CHARACTER_WIDTH * NAME_PX;
}

/** Shortens a name in its middle, so that its ends can be read. */
export function fitName(name: string, widthPx: number): string {
  // No name is so long that its ends are not seen; one that is very long is not measured.
  const characters = [...name.length > 4096 ? name.slice(0, 2048) + name.slice(-2048) : name];
  const widths = characters.map(widthOf);
  let left = widthPx;
  if (name.length <= 4096 && widths.reduce((sum, width) => sum + width, 0) <= left) return name;
  left -= widthOf("…");
  let [head, tail] = [0, characters.length];
  while (head < tail) {
    // The end of a name tells more than its beginning.
    const atTail = (characters.length - tail) <= head * 2;
    const width = widths[atTail ? tail - 1 : head];
    if (width > left) break;
    left -= width;
    if (atTail) tail--;
    else head++;
  }
  return `${characters.slice(0, head).join("")}…${characters.slice(tail).join("")}`;
}
