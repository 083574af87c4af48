import { chainSection } from "./chain_page.ts";
import type { LayerDescription } from "./descriptions.ts";
import { type LatencyDescription, latencyPicture } from "./latency_picture.ts";
import { type Markup, markup } from "./markup.ts";
import { htmlPage, table, wide } from "./page.ts";
import { type Share, sharesPicture } from "./shares_picture.ts";
import { formatMicroseconds } from "./times.ts";

/** A table of a report. Columns whose heading begins with `#` are numbers. */
export interface ReportTable {
  readonly caption: string;
  readonly head: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** What is said instead of a table without rows. */
  readonly none: string;
}

/** What is known of a disk that is served. */
export interface DiskReport {
  readonly name: string;
  /** Which disk it is, and when the report was made: a sentence. */
  readonly about: string;
  /** What is wrong with it now; null when nothing is. */
  readonly trouble: string | null;
  readonly facts: readonly (readonly [name: string, value: string])[];
  /** The topmost image first; none while the disk is paused. */
  readonly layers: readonly LayerDescription[];
  readonly counters: ReportTable;
  readonly latencies: readonly LatencyDescription[];
  /** Where requests spent their time. */
  readonly times: readonly Share[];
  readonly waits: ReportTable;
  readonly limits: ReportTable;
  readonly clients: ReportTable;
}

function reportTable({ none, ...content }: ReportTable): Markup {
  return content.rows.length === 0 ? markup`<p>${none}</p>` : table(content);
}

function latencyTable(kinds: readonly LatencyDescription[]): Markup {
  return table({
    caption: "How long requests took, waits included",
    head: [
      "Requests",
      "#Count",
      "#Half, at most",
      "#99 %, at most",
      "#99.9 %, at most",
      "#Slowest",
    ],
    rows: kinds.map(({ name, requests, p50, p99, p99_9, highest }) => [
      name,
      `${requests}`,
      ...requests === 0 ? ["", "", "", ""] : [p50, p99, p99_9, highest].map(formatMicroseconds),
    ]),
  });
}

/** A report of a disk. It is one file. */
export function diskPage(report: DiskReport): string {
  const { name, about, trouble, facts, layers, latencies, times } = report;
  return htmlPage({
    title: `${name}: report of a disk`,
    body: [
      markup`<h1 class="name">${name}</h1>`,
      markup`<p class="soft">${about}</p>`,
      ...trouble === null ? [] : [markup`<p class="wrong" role="status">${trouble}</p>`],
      table({ caption: "The disk", head: ["What", "Value"], rows: facts }),
      markup`<h2>Chain</h2>`,
      ...layers.length === 0
        ? [markup`<p>The disk has no image open just now.</p>`]
        : chainSection(layers),
      markup`<h2>Counters</h2>`,
      reportTable(report.counters),
      markup`<h2>Latency</h2>`,
      wide(
        "Latency of requests",
        latencyPicture({ title: "Latency of requests", kinds: latencies }, { id: "latency" }),
      ),
      latencyTable(latencies),
      markup`<h2>Where time goes</h2>`,
      wide(
        "Where requests spent their time",
        sharesPicture({ title: "Where requests spent their time", shares: times }, { id: "times" }),
      ),
      reportTable(report.waits),
      markup`<h2>Limits</h2>`,
      reportTable(report.limits),
      markup`<h2>Clients</h2>`,
      reportTable(report.clients),
    ],
  });
}
