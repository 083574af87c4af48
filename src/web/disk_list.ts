import { type Html, markup, type Part } from "./html.ts";
import { latencyText, numberText, shortName } from "./format.ts";
import type { Point } from "./history.ts";
import type { Monitor } from "./monitor.ts";
import { failedRequests } from "../observe/rates.ts";
import type { Activity } from "./activity.ts";
import { imageOf, pathOf, type WatchedDisk } from "./watched.ts";

/** Rows of one page. More disks than that are found by the filter. */
export const MOST_ROWS = 500;
/** The longest filter that is taken. */
const LONGEST_FILTER = 200;

/** Fields of a row that change, in the order of the columns. */
const FIELDS = ["state", "iops", "bytes", "p50", "p99", "inflight", "retries", "errors"] as const;
type Field = typeof FIELDS[number];

const HEADINGS: Readonly<Record<Field, string>> = {
  state: "State",
  iops: "IOPS",
  bytes: "MB/s",
  p50: "p50",
  p99: "p99",
  inflight: "In flight",
  retries: "Retries",
  errors: "Errors",
};

/** Which disks are shown, and in which order. */
export interface ListChoice {
  readonly sort: "name" | Field;
  /** Part of the image's name. */
  readonly filter: string;
}

/** Takes a choice from the address of a page. What is not known is the default. */
export function choiceOf(query: URLSearchParams): ListChoice {
  const sort = query.get("sort") ?? "name";
  return {
    sort: FIELDS.find((field) => field === sort) ?? "name",
    filter: (query.get("q") ?? "").slice(0, LONGEST_FILTER),
  };
}

/** The address of a page with this choice. */
function queryOf({ sort, filter }: ListChoice): string {
  const query = new URLSearchParams();
  if (sort !== "name") query.set("sort", sort);
  if (filter !== "") query.set("q", filter);
  const text = query.toString();
  return text === "" ? "" : `?${text}`;
}

const SORT_VALUES: Readonly<Record<Field, (disk: WatchedDisk) => number | string>> = {
  state: ({ state }) => state,
  iops: ({ activity }) => (activity?.readsPerSecond ?? 0) + (activity?.writesPerSecond ?? 0),
  bytes: ({ activity }) =>
    (activity?.readBytesPerSecond ?? 0) + (activity?.writtenBytesPerSecond ?? 0),
  p50: ({ activity }) => activity?.p50Us ?? 0,
  p99: ({ activity }) => activity?.p99Us ?? 0,
  inflight: ({ sample }) => sample.inFlight,
  retries: ({ sample }) => sample.retries,
  errors: ({ sample }) => failedRequests(sample),
};

function compare(a: number | string, b: number | string): number {
  if (typeof a === "number" && typeof b === "number") return b - a;
  return a < b ? -1 : a > b ? 1 : 0;
}

/** The disks that are chosen, in order. */
export function chosenDisks(monitor: Monitor, { sort, filter }: ListChoice): WatchedDisk[] {
  const wanted = filter.toLowerCase();
  const disks = [...monitor.disks.values()].filter(({ sample }) =>
    imageOf(sample).toLowerCase().includes(wanted)
  );
  disks.sort((a, b) =>
    compare(imageOf(a.sample), imageOf(b.sample)) || a.sample.minor - b.sample.minor
  );
  if (sort !== "name") {
    disks.sort((a, b) => compare(SORT_VALUES[sort](a), SORT_VALUES[sort](b)));
  }
  return disks;
}

/** Two numbers, of reads and of writes. */
function pair(read: number, write: number): string {
  return `${numberText(read)} / ${numberText(write)}`;
}

/** The texts of a row. */
export function cellsOf({ sample, state, activity }: WatchedDisk): Readonly<Record<Field, string>> {
  return {
    state,
    iops: activity === null ? "–" : pair(activity.readsPerSecond, activity.writesPerSecond),
    bytes: activity === null
      ? "–"
      : pair(activity.readBytesPerSecond / 1e6, activity.writtenBytesPerSecond / 1e6),
    p50: latencyText(activity?.p50Us ?? null),
    p99: latencyText(activity?.p99Us ?? null),
    inflight: String(sample.inFlight),
    retries: String(sample.retries),
    errors: String(failedRequests(sample)),
  };
}

const SPARK_POINTS = 60;
const SPARK_WIDTH = 120;
const SPARK_HEIGHT = 24;

/** The IOPS of the last minute as the points of a line. */
export function sparkLine(points: readonly Point[]): string {
  const values = points.slice(-SPARK_POINTS).map(([, reads, writes]) =>
    (reads ?? 0) + (writes ?? 0)
  );
  const highest = Math.max(1, ...values);
  const step = SPARK_WIDTH / (SPARK_POINTS - 1);
  const start = SPARK_POINTS - values.length;
  return values.map((value, index) => {
    const x = ((start + index) * step).toFixed(1);
    return `${x},${(SPARK_HEIGHT - 1 - value / highest * (SPARK_HEIGHT - 2)).toFixed(1)}`;
  }).join(" ");
}

function rowOf(monitor: Monitor, disk: WatchedDisk): Html {
  const { key, sample } = disk;
  const { pid, minor } = sample;
  const image = imageOf(sample);
  const label = image === "" ? `minor ${minor}` : shortName(image);
  const cells = cellsOf(disk);
  const spark = sparkLine(monitor.historyOf(key)?.points ?? []);
  return markup`
    <tr data-disk="${key}">
      <th scope="row">
        <a href="${pathOf(disk)}">${label}</a>
        <small>${image} minor ${minor}, process ${pid}</small>
      </th>
      ${
    FIELDS.map((field) =>
      markup`
          <td data-field="${field}" class="${field === "state" ? "state" : "number"}">${
        cells[field]
      }</td>
        `
    )
  }
      <td class="spark">
        <svg viewBox="0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}" aria-hidden="true">
          <polyline points="${spark}" />
        </svg>
      </td>
    </tr>
  `;
}

function headingOf(choice: ListChoice, field: "name" | Field, text: string): Html {
  const isSorted = choice.sort === field;
  const sorted = isSorted
    ? markup`
      aria-sort="${field === "name" || field === "state" ? "ascending" : "descending"}"
    `
    : "";
  const href = `/${queryOf({ ...choice, sort: field })}`;
  return markup`
    <th scope="col" ${sorted}><a href="${href}">${text}</a></th>
  `;
}

type ChartName = "iops" | "bytes" | "latency" | "inflight";
type ChartTexts = Readonly<Record<string, string>>;

/** The figures beside the charts. */
export function chartTexts(activity: Activity | null): Record<ChartName, string> {
  if (activity === null) return { iops: "–", bytes: "–", latency: "–", inflight: "–" };
  const { readsPerSecond, writesPerSecond, p50Us, p99Us, inFlight } = activity;
  const [read, written] = [activity.readBytesPerSecond / 1e6, activity.writtenBytesPerSecond / 1e6];
  return {
    iops: `${numberText(readsPerSecond)} read, ${numberText(writesPerSecond)} written`,
    bytes: `${numberText(read)} read, ${numberText(written)} written`,
    latency: `p50 ${latencyText(p50Us)}, p99 ${latencyText(p99Us)}`,
    inflight: numberText(inFlight),
  };
}

/** The place of a chart. Its script draws into it; the text says the figures of now. */
function chartFigure(name: ChartName, title: string, now: ChartTexts): Html {
  return markup`
    <figure class="chart" data-chart="${name}">
      <figcaption>${title}</figcaption>
      <p class="now" data-now="${name}">${now[name]}</p>
      <div class="plot" role="img" aria-label="${title}: the last five minutes as lines"></div>
    </figure>
  `;
}

/** The four charts of a disk, or of all disks. */
export function charts(now: ChartTexts): Html {
  return markup`
    <div class="charts">
      ${chartFigure("iops", "Requests in a second, reads and writes", now)} ${
    chartFigure(
      "bytes",
      "MB in a second, reads and writes",
      now,
    )
  } ${chartFigure("latency", "Latency in milliseconds, p50 and p99", now)} ${
    chartFigure(
      "inflight",
      "Requests in flight",
      now,
    )
  }
    </div>
  `;
}

function filterForm({ sort, filter }: ListChoice): Html {
  return markup`
    <form method="get" action="/" role="search">
      <label for="q">Part of an image's name</label>
      <input id="q" name="q" type="search" value="${filter}" maxlength="${LONGEST_FILTER}">
      ${
    sort === "name" ? "" : markup`
        <input type="hidden" name="sort" value="${sort}">
      `
  }
      <button type="submit">Filter</button>
    </form>
  `;
}

function countText(shown: number, found: number, all: number): string {
  if (all === 0) return "No disk is served on this host.";
  const whole = `${all} disk${all === 1 ? "" : "s"}`;
  if (found === 0) return `None of ${whole} has such a name.`;
  if (shown < found) return `The first ${shown} of ${found} disks. Filter to see others.`;
  return found === all ? `${whole}.` : `${found} of ${whole}.`;
}

/** What is served by nobody, or by tapdisks that do not answer. */
function troubles({ last }: Monitor): Part {
  const silent = (last?.silent ?? []).map(({ pid, minors, why }) =>
    markup`
      <li>Process ${pid}${minors.length === 0 ? "" : ` (minor ${minors.join(", ")})`}: ${why}</li>
    `
  );
  const unserved = (last?.unserved ?? []).filter(({ image }) => image !== null).map((
    { minor, image },
  ) =>
    markup`
      <li>Minor ${minor}: the tapdisk of ${image} has died. "tap-ctl recover" brings it back.</li>
    `
  );
  const all = [...silent, ...unserved];
  return all.length > 0 && markup`
    <div class="troubles">
      <h2>Trouble</h2>
      <ul>${all}</ul>
    </div>
  `;
}

/** The list of disks. */
export function diskListContent(
  monitor: Monitor,
  choice: ListChoice,
  now: ChartTexts,
): Part {
  const found = chosenDisks(monitor, choice);
  const shown = found.slice(0, MOST_ROWS);
  return markup`
    <div id="troubles">${troubles(monitor)}</div>
    <section aria-labelledby="all">
      <h2 id="all">All disks together</h2>
      ${charts(now)}
    </section>
    <section aria-labelledby="each">
      <h2 id="each">Each disk</h2>
      ${filterForm(choice)}
      <p id="count">${countText(shown.length, found.length, monitor.disks.size)}</p>
      <div class="scroll" role="region" aria-label="The list of disks" tabindex="0">
        <table>
          <thead>
            <tr>
              ${headingOf(choice, "name", "Disk")} ${
    FIELDS.map((field) => headingOf(choice, field, HEADINGS[field]))
  }
              <th scope="col">Last minute</th>
            </tr>
          </thead>
          <tbody id="disks">
            ${shown.map((disk) => rowOf(monitor, disk))}
          </tbody>
        </table>
      </div>
      <p class="note">
        IOPS and MB/s are of reads / writes. p50 and p99: half of the requests, and 99 of 100, took no
        longer. Retries and errors are since the disk was opened.
      </p>
    </section>
  `;
}

/** The address of the stream of a list. */
export function listStream(choice: ListChoice): string {
  return `/stream${queryOf(choice)}`;
}
