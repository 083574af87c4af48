import type { Buckets } from "../pictures/buckets.ts";
import { mapPicture } from "../pictures/map_picture.ts";
import { formatSize } from "../pictures/sizes.ts";
import type { Fact, ShownPart } from "./facts.ts";
import { shortName } from "./format.ts";
import { type Html, markup, type Part, picture } from "./html.ts";
import { imageOf, pathOf, type WatchedDisk } from "./watched.ts";
import type { MapFacts } from "./work.ts";

/** Parts into which the shown part is divided for the next look. */
const SECTIONS = 16;
const SECTOR_BYTES = 512;

function bytesIn(text: string | null): number | null {
  const bytes = text !== null && /^\d{1,16}$/.test(text) ? Number(text) : NaN;
  return Number.isSafeInteger(bytes) ? bytes : null;
}

/** Takes the part from the address of a page. What makes no sense is all of the disk. */
export function partOf(query: URLSearchParams): ShownPart {
  const startBytes = bytesIn(query.get("at")) ?? 0;
  const lengthBytes = bytesIn(query.get("length"));
  return { startBytes, lengthBytes: lengthBytes === 0 ? null : lengthBytes };
}

function link(path: string, startBytes: number, lengthBytes: number, text: string): Html {
  return markup`
    <li><a href="${path}/map?at=${startBytes}&amp;length=${lengthBytes}">${text}</a></li>
  `;
}

/** The parts of the shown part, each a link to a closer look. */
function sections(path: string, { startBytes, endBytes }: MapFacts): Html[] {
  const sectors = Math.ceil((endBytes - startBytes) / SECTOR_BYTES);
  const length = Math.ceil(sectors / SECTIONS) * SECTOR_BYTES;
  const found: Html[] = [];
  if (sectors <= SECTIONS) return found;
  for (let at = startBytes; at < endBytes; at += length) {
    const bytes = Math.min(length, endBytes - at);
    found.push(link(path, at, bytes, `${formatSize(at)} to ${formatSize(at + bytes)}`));
  }
  return found;
}

/** Links to what is around the shown part. */
function around(path: string, { startBytes, endBytes, sizeBytes }: MapFacts): Html[] {
  const length = endBytes - startBytes;
  if (length >= sizeBytes) return [];
  const wider = Math.min(sizeBytes, length * SECTIONS);
  const widerStart = Math.max(0, Math.min(startBytes - (wider - length) / 2, sizeBytes - wider));
  const aligned = Math.floor(widerStart / SECTOR_BYTES) * SECTOR_BYTES;
  return [
    markup`
      <li><a href="${path}/map">All of the disk</a></li>
    `,
    link(path, aligned, wider, "Further away"),
    ...startBytes > 0
      ? [link(path, Math.max(0, startBytes - length), length, "The part before")]
      : [],
    ...endBytes < sizeBytes
      ? [link(path, endBytes, Math.min(length, sizeBytes - endBytes), "The part behind")]
      : [],
  ];
}

function drawing(disk: WatchedDisk, facts: MapFacts): Html {
  const { layers, sizeBytes } = facts;
  const buckets: Buckets = {
    ...facts,
    layerCount: layers.length,
    heldBytes: Float64Array.from(facts.heldBytes),
    totals: Float64Array.from(facts.totals),
  };
  const name = imageOf(disk.sample);
  const path = pathOf(disk);
  const closer = sections(path, facts);
  return markup`
    <nav aria-label="Parts of the disk"><ul class="parts">${around(path, facts)}</ul></nav>
    <div class="scroll" role="region" aria-label="The map as a drawing" tabindex="0">
      ${
    picture(
      mapPicture({ name: shortName(name), sizeBytes, layers }, buckets, { id: "map-drawing" }),
    )
  }
    </div>
    ${
    closer.length > 0 &&
    markup`
        <nav aria-labelledby="closer">
          <h2 id="closer">A closer look</h2>
          <ul class="parts">${closer}</ul>
        </nav>
      `
  }
  `;
}

/** The page with the map of a disk. */
export function mapContent(disk: WatchedDisk, map: Fact<MapFacts>): Part {
  const back = markup`
    <p><a href="${pathOf(disk)}">Back to the disk</a></p>
  `;
  if ("isPending" in map) {
    return markup`
      ${back}<p id="map" data-pending>
        The images are being read. The map comes when that is done; without a script, load this page
        again.
      </p>
    `;
  }
  if ("error" in map) {
    return markup`
      ${back}<p class="problem">${map.error}</p>
    `;
  }
  return markup`
    ${back}<div id="map">${drawing(disk, map.value)}</div>
  `;
}
