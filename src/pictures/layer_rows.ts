import type { LayerDescription } from "./descriptions.ts";
import { type Markup, markup, NOTHING } from "./markup.ts";
import { formatShare, formatSize } from "./sizes.ts";
import { layerClass } from "./style.ts";
import { fitName } from "./svg.ts";

/** Height of an image in a drawing. */
export const ROW_PX = 48;
/** Width of the bar that shows how full an image is, with its text. */
const BAR_PX = 160;
const GAP_PX = 24;

/** What is known of an image, in words. */
function factsText(layer: LayerDescription): string {
  const { type, sizeBytes, fileBytes, notes } = layer;
  return [
    type,
    sizeBytes === null ? "" : `${formatSize(sizeBytes)} disk`,
    fileBytes === null ? "" : `${formatSize(fileBytes)} file`,
    ...notes,
  ].filter((text) => text !== "").join(" · ");
}

function fullText({ sizeBytes, heldBytes }: LayerDescription): string {
  if (sizeBytes === null || heldBytes === null) return "";
  return `holds ${formatSize(heldBytes)}, ${formatShare(heldBytes, sizeBytes)}`;
}

/** An image in a sentence. */
export function layerSentence(layer: LayerDescription): string {
  return [layer.name, factsText(layer), fullText(layer), layer.problem ?? ""]
    .filter((text) => text !== "").join(", ");
}

/** An image: a mark, its name, what is known of it, and a bar that shows how full it is. */
export function layerRow(
  layer: LayerDescription,
  { x, y, width, colour }: { x: number; y: number; width: number; colour: number },
): Markup {
  const { name, problem, sizeBytes, heldBytes } = layer;
  const textX = x + 18;
  const barX = width - BAR_PX;
  const textWidth = barX - GAP_PX - textX;
  const share = sizeBytes === null || heldBytes === null || sizeBytes <= 0
    ? null
    : Math.min(1, heldBytes / sizeBytes);
  const facts = factsText(layer);
  const known = problem === null
    ? markup`<text class="soft small" x="${textX}" y="${y + 34}">${facts}</text>`
    : markup`<text class="wrong small" x="${textX}" y="${y + 34}">${
      fitName(facts === "" ? problem : `${facts} · ${problem}`, textWidth)
    }</text>`;
  const bar = share === null ? NOTHING : markup`
<rect class="hollow" x="${barX}" y="${y + 7}" width="${BAR_PX}" height="12" rx="3" fill="#e6eaef"/>
<rect class="${layerClass(colour)}" x="${barX}" y="${y + 7}" width="${
    share > 0 ? Math.max(2, share * BAR_PX) : 0
  }" height="12" rx="3" fill="#0969da"/>
<text class="soft small" x="${barX}" y="${y + 34}">${fullText(layer)}</text>`;
  return markup`<g><title>${layerSentence(layer)}</title>
<rect class="${problem === null ? layerClass(colour) : "wrong"}" x="${x}" y="${
    y + 7
  }" width="11" height="11" rx="2" fill="#0969da"/>
<text class="name" x="${textX}" y="${y + 17}">${fitName(name, textWidth)}</text>
${known}${bar}</g>`;
}
