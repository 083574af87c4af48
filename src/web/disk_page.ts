import { chainPicture } from "../pictures/chain_picture.ts";
import { formatSize } from "../pictures/sizes.ts";
import { SECTOR_BYTES } from "../driver/driver.ts";
import { failedRequests } from "../observe/rates.ts";
import type { LayerSample, TimesSample } from "../observe/sample.ts";
import { cellsOf, charts } from "./disk_list.ts";
import type { DiskEvent } from "./events.ts";
import type { Fact } from "./facts.ts";
import { latencyText, shortName, timeText } from "./format.ts";
import { HEAT_BOUNDS_US, type History } from "./history.ts";
import { type Html, markup, type Part, picture } from "./html.ts";
import { imageOf, pathOf, type WatchedDisk } from "./watched.ts";
import type { ChainFacts } from "./work.ts";

/** Events that a page of a disk shows. */
const SHOWN_EVENTS = 20;

/** What is shown of a disk beside what the monitor has. */
export interface DiskPageParts {
  readonly history: History | null;
  /** The figures beside the charts. */
  readonly now: Readonly<Record<string, string>>;
  readonly chain: Fact<ChainFacts>;
  /** The oldest open requests; null when the tapdisk does not say. */
  readonly requests: readonly string[] | null;
  /** What it waits for; null when the tapdisk does not say. */
  readonly findings: readonly string[] | null;
  /** Those of this disk, the newest first. */
  readonly events: readonly DiskEvent[];
  readonly allowsChanges: boolean;
}

const WAITS: Readonly<Record<keyof TimesSample, string>> = {
  diskMs: "at the images and disks",
  queueMs: "for room in the disk queue",
  pauseMs: "for the end of a pause",
  retryMs: "for the next try after an error",
  limitMs: "for a limit of the disk",
  clientMs: "for the client",
};

/** How large a disk is; a dash where it is not known. */
function sizeOf(sectors: number | null): string {
  return sectors === null ? "–" : formatSize(sectors * SECTOR_BYTES);
}

/** The texts that change with each sample, by the names of their places. */
export function diskTexts(disk: WatchedDisk): Record<string, string> {
  const { sample } = disk;
  const cells = cellsOf(disk);
  const texts: Record<string, string> = {
    state: cells.state,
    size: sizeOf(sample.sectors),
    retries: cells.retries,
    retrying: String(sample.retrying),
    errors: String(failedRequests(sample)),
    depth: `${sample.inFlight}, at most ${sample.highestDepth}, ${sample.averageDepth} on average`,
    oldest: `${sample.unansweredSeconds} s`,
  };
  for (const wait of Object.keys(WAITS) as (keyof TimesSample)[]) {
    texts[wait] = latencyText(sample.times[wait] * 1000);
  }
  sample.chain.forEach((layer, index) => {
    texts[`read${index}`] = formatSize(layer.readSectors * SECTOR_BYTES);
    texts[`written${index}`] = formatSize(layer.writtenSectors * SECTOR_BYTES);
  });
  return texts;
}

function definition(term: string, field: string, texts: Record<string, string>): Html {
  return markup`<div><dt>${term}</dt><dd data-field="${field}">${texts[field]}</dd></div>`;
}

function summary({ sample }: WatchedDisk, texts: Record<string, string>): Html {
  return markup`<dl class="facts">
${definition("State", "state", texts)}
${definition("Size", "size", texts)}
<div><dt>Image</dt><dd class="name">${imageOf(sample) || "none"}</dd></div>
<div><dt>Minor, process</dt><dd>${sample.minor}, ${sample.pid}</dd></div>
<div><dt>Block device</dt><dd class="name">${sample.node ?? "none"}</dd></div>
<div><dt>Access</dt><dd>${sample.readOnly ? "read-only" : "read and write"}</dd></div>
${definition("Requests in flight", "depth", texts)}
${definition("Oldest request at the disk", "oldest", texts)}
${definition("Retries", "retries", texts)}
${definition("To be tried again", "retrying", texts)}
${definition("Failed requests", "errors", texts)}
</dl>`;
}

/** What identifies a chain, so that a page notices another one. */
export function chainSign({ sample }: WatchedDisk): string {
  return JSON.stringify(sample.chain.map(({ type, path }) => [type, path]));
}

function layerRow(layer: LayerSample, index: number, texts: Record<string, string>): Html {
  const { type, path, sectors } = layer;
  return markup`<tr><th scope="row" class="name">${type}:${path}</th>
<td class="number">${sizeOf(sectors)}</td>
<td class="number" data-field="read${index}">${texts[`read${index}`]}</td>
<td class="number" data-field="written${index}">${texts[`written${index}`]}</td></tr>
`;
}

function chainDrawing(chain: Fact<ChainFacts>, name: string): Part {
  if ("isPending" in chain) return markup`<p data-pending>The images are being read.</p>`;
  if ("error" in chain) return markup`<p class="problem">${chain.error}</p>`;
  const { layers, problem } = chain.value;
  return markup`${problem !== null && markup`<p class="problem">${problem}</p>`}
<div class="scroll" role="region" aria-label="The chain as a drawing" tabindex="0">
${picture(chainPicture({ title: `The chain of ${name}`, layers }, { id: "chain-drawing" }))}
</div>`;
}

function chainSection(
  disk: WatchedDisk,
  chain: Fact<ChainFacts>,
  texts: Record<string, string>,
): Html {
  const { sample } = disk;
  const table =
    markup`<div class="scroll" role="region" aria-label="Images of the chain" tabindex="0">
<table>
<thead><tr><th scope="col">Image, the topmost first</th><th scope="col">Disk</th>
<th scope="col">Read from it</th><th scope="col">Written to it</th></tr></thead>
<tbody>${sample.chain.map((layer, index) => layerRow(layer, index, texts))}</tbody>
</table></div>`;
  return markup`<section id="chain" aria-labelledby="chain-head" data-sign="${chainSign(disk)}">
<h2 id="chain-head">Chain</h2>
${chainDrawing(chain, shortName(imageOf(sample)))}
${sample.chain.length > 0 && table}
<p><a href="${pathOf(disk)}/map">Which image holds what</a></p>
</section>`;
}

function boundText(row: number): string {
  const below = HEAT_BOUNDS_US[row];
  return below === undefined
    ? `above ${latencyText(HEAT_BOUNDS_US.at(-1) ?? null)}`
    : `up to ${latencyText(below)}`;
}

/** Requests of the last minutes by how long they took: the heat map as a table. */
function heatTable(history: History | null): Html {
  const sums = new Array<number>(HEAT_BOUNDS_US.length + 1).fill(0);
  for (const column of history?.columns ?? []) column.forEach((count, row) => sums[row] += count);
  const rows = sums.flatMap((count, row) =>
    count === 0 ? [] : [
      markup`<tr><th scope="row">${boundText(row)}</th><td class="number">${count}</td></tr>`,
    ]
  );
  return markup`<details><summary>As a table</summary>
<table><thead><tr><th scope="col">Latency</th><th scope="col">Requests</th></tr></thead>
<tbody id="heat-table">${rows}</tbody></table></details>`;
}

function heatSection(history: History | null): Html {
  return markup`<section aria-labelledby="heat-head">
<h2 id="heat-head">Latency over time</h2>
<figure class="heat">
<figcaption>Each column is a sample, the newest at the right: of a second while a page is open, otherwise of
five. The higher, the slower; the stronger the
colour, the more requests.</figcaption>
<canvas id="heat" height="168" role="img" aria-label="Heat map of latencies; the table below has the same numbers"></canvas>
<p class="scale"><span>bottom: up to ${latencyText(HEAT_BOUNDS_US[0])}</span>
<span>top: ${boundText(HEAT_BOUNDS_US.length)}</span></p>
</figure>
${heatTable(history)}
</section>`;
}

function findingsSection(findings: readonly string[] | null): Html {
  const lines = findings?.map((line) => markup`<li>${line}</li>`) ?? [];
  const text = findings === null
    ? "Its tapdisk does not say."
    : lines.length === 0
    ? "Nothing that its tapdisk knows of."
    : "";
  return markup`<section aria-labelledby="findings-head">
<h2 id="findings-head">What it waits for</h2>
<p id="no-findings"${text === "" ? markup` hidden` : ""}>${text}</p>
<ul id="findings" class="lines">${lines}</ul>
</section>`;
}

function requestsSection(requests: readonly string[] | null): Html {
  const lines = requests?.map((line) => markup`<li>${line}</li>`) ?? [];
  const text = requests === null
    ? "Its tapdisk does not say."
    : lines.length === 0
    ? "No request is open."
    : "";
  return markup`<section aria-labelledby="requests-head">
<h2 id="requests-head">Slowest requests just now</h2>
<p id="no-requests"${text === "" ? markup` hidden` : ""}>${text}</p>
<ol id="requests" class="lines">${lines}</ol>
</section>`;
}

function waitsSection(texts: Record<string, string>): Html {
  return markup`<section aria-labelledby="waits-head">
<h2 id="waits-head">Where requests spent their time</h2>
<dl class="facts">${
    (Object.keys(WAITS) as (keyof TimesSample)[]).map((wait) =>
      definition(WAITS[wait], wait, texts)
    )
  }</dl>
</section>`;
}

/** An event as a page shows it. */
export function eventLine({ timeMs, text, isProblem }: DiskEvent, name = ""): Html {
  return markup`<li${isProblem ? markup` class="problem"` : ""}><time>${timeText(timeMs)}</time> ${
    name !== "" && markup`<span class="name">${name}</span> `
  }${text}</li>`;
}

/** The events of a page of a disk. */
export function shownEvents(events: readonly DiskEvent[]): readonly DiskEvent[] {
  return events.slice(0, SHOWN_EVENTS);
}

function eventsSection(events: readonly DiskEvent[]): Html {
  return markup`<section aria-labelledby="events-head">
<h2 id="events-head">Events</h2>
<p>Those since this page's program was started.</p>
<ol id="events" class="lines">${shownEvents(events).map((event) => eventLine(event))}</ol>
</section>`;
}

/** The page of a disk. */
export function diskContent(disk: WatchedDisk, parts: DiskPageParts): Part {
  const texts = diskTexts(disk);
  const change = parts.allowsChanges && imageOf(disk.sample) !== "" &&
    markup`<p><a class="button" href="${pathOf(disk)}/snapshot">Make a snapshot…</a></p>`;
  return markup`${summary(disk, texts)}
${change}
${findingsSection(parts.findings)}
<section aria-labelledby="load"><h2 id="load">Load</h2>${charts(parts.now)}</section>
${heatSection(parts.history)}
${requestsSection(parts.requests)}
${waitsSection(texts)}
${chainSection(disk, parts.chain, texts)}
${eventsSection(parts.events)}`;
}
