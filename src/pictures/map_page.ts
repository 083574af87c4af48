import { plainText } from "../log/plain_text.ts";
import { BucketCounter, type Buckets } from "./buckets.ts";
import { closerLook, type CloserLookData } from "./closer_look.ts";
import type { DiskDescription, LayerExtent } from "./descriptions.ts";
import { MAP_BUCKETS, mapPicture } from "./map_picture.ts";
import { type Markup, markup, NOTHING } from "./markup.ts";
import { htmlPage, table, wide } from "./page.ts";
import { RunGatherer, type Runs } from "./runs.ts";
import { formatShare, formatSize } from "./sizes.ts";
import { LAYER_COLOUR_COUNT } from "./style.ts";

/** How many runs a page carries at most: about a megabyte. */
const MOST_RUNS = 100_000;

/** The controls and the empty drawing of the closer look. Its program fills them. */
function closerSection({ unitBytes, isRounded }: Runs): Markup {
  const rounded = isRounded
    ? markup`<p>The disk has more ranges than this page carries. They are rounded to ${
      formatSize(unitBytes)
    }: what holds data of several images is shown as the one that holds most of it.</p>`
    : NOTHING;
  return markup`<h2>A closer look</h2>
<noscript><p>This part needs JavaScript.</p></noscript>
<div id="look" hidden>
<p>A column shows which images hold its part of the disk, and how much of it. A click on a column zooms in.</p>
${rounded}
<div class="tools">
<button type="button" id="in">Zoom in</button>
<button type="button" id="out">Zoom out</button>
<button type="button" id="back">Back half a view</button>
<button type="button" id="on">On half a view</button>
<button type="button" id="whole">Whole disk</button>
</div>
<form class="tools" id="go"><label for="offset">Go to offset</label>
<input id="offset" autocomplete="off" placeholder="1.5 GiB"><button>Go</button>
<span class="wrong" id="refused" role="alert"></span></form>
<p id="shown" role="status"></p>
<div class="wide"><svg xmlns="http://www.w3.org/2000/svg" id="closer" class="picture closer" width="996" height="120" viewBox="0 0 996 120" role="img" aria-label="The part of the disk that the table below lists">
<g id="bars"></g><text class="soft small" id="from" x="84" y="114"></text><text class="soft small" id="to" x="980" y="114" text-anchor="end"></text>
</svg></div>
<div class="wide" tabindex="0" role="region" aria-label="Ranges of this part"><table>
<caption>Ranges of this part</caption>
<thead><tr><th scope="col" class="number">Offset, bytes</th><th scope="col" class="number">Length, bytes</th><th scope="col">Image</th></tr></thead>
<tbody id="runs"></tbody>
</table></div>
</div>`;
}

function layersTable({ layers, sizeBytes }: DiskDescription, { totals }: Buckets): Markup {
  const none = sizeBytes - totals.reduce((sum, bytes) => sum + bytes, 0);
  return table({
    caption: "What each image holds of the disk",
    head: ["Image", "#Bytes", "#Size", "#Share"],
    rows: [
      ...layers.map((name, layer) => [name, totals[layer]] as const),
      ["no data", none] as const,
    ]
      .map(([name, bytes]) => [name, `${bytes}`, formatSize(bytes), formatShare(bytes, sizeBytes)]),
  });
}

/** The program of the closer look and what it works on. */
function lookScript(
  { sizeBytes, layers }: DiskDescription,
  { unitBytes, runs }: Runs,
): { program: string; data: CloserLookData } {
  const data = {
    sizeBytes,
    unitBytes,
    layers: layers.map(plainText),
    colours: LAYER_COLOUR_COUNT,
    runs: runs.flat(),
  };
  return { program: `(${closerLook})(window);`, data };
}

/**
 * A page with the map of a disk, which can be looked at down to single blocks. It is one file.
 *
 * @param extents Walked once.
 */
export function mapPage(disk: DiskDescription, extents: Iterable<LayerExtent>): string {
  const { name, sizeBytes, layers } = disk;
  const plan = { sizeBytes, layerCount: layers.length };
  const counter = new BucketCounter({ ...plan, most: MAP_BUCKETS });
  const gatherer = new RunGatherer({ ...plan, most: MOST_RUNS });
  for (const extent of extents) {
    counter.add(extent);
    gatherer.add(extent);
  }
  const runs = gatherer.end();
  return htmlPage({
    title: `${name}: which image holds what`,
    body: [
      markup`<h1 class="name">${name}</h1>`,
      markup`<p class="soft">${formatSize(sizeBytes)} (${`${sizeBytes}`} bytes), ${
        layers.length === 1 ? "one image" : `a chain of ${layers.length} images`
      }. What an image above has replaced is not shown.</p>`,
      layersTable(disk, counter.buckets),
      markup`<h2>The whole disk</h2>`,
      wide("Map of the whole disk", mapPicture(disk, counter.buckets, { id: "map" })),
      closerSection(runs),
    ],
    script: lookScript(disk, runs),
  });
}
