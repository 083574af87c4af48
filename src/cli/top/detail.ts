import { between } from "../../observe/histogram.ts";
import { plainText } from "../../log/plain_text.ts";
import type { DiskSample, Histogram, TimesSample } from "../../observe/sample.ts";
import { formatSize } from "../../pictures/sizes.ts";
import { megabytes, NO_FIGURE, percent, shortNumber, shortTime } from "./figures.ts";
import { imageOf, iopsOf, type Row, throughputOf } from "./rows.ts";
import { head, left, right, tail, widthOf } from "./text.ts";

const SECTOR_BYTES = 512;
/** The most lines of a histogram; more buckets are put together. */
const HISTOGRAM_LINES = 16;

function sizeText(sectors: number | null): string {
  return sectors === null ? NO_FIGURE : formatSize(sectors * SECTOR_BYTES);
}

function headLines({ disk, state }: Row): string[] {
  const node = disk.node === null ? "" : `, ${disk.node}`;
  const access = disk.readOnly ? ", read-only" : "";
  const retried = disk.retriedError === null ? "" : ` (${disk.retriedError})`;
  const secondary = disk.secondary === null
    ? []
    : [`Secondary: ${disk.secondary.name}, ${disk.secondary.state}`];
  return [
    `Minor ${disk.minor} of tapdisk ${disk.pid}: ${imageOf(disk) || "no image"}`,
    `${state}${retried}, ${sizeText(disk.sectors)}${access}${node}`,
    ...secondary,
  ].map(plainText);
}

const PLACE_NAMES: readonly (readonly [field: keyof TimesSample, name: string])[] = [
  ["diskMs", "disk"],
  ["queueMs", "queue"],
  ["limitMs", "rate limit"],
  ["pauseMs", "pause"],
  ["retryMs", "retry"],
  ["clientMs", "client"],
];

function figureLines({ disk, rates }: Row): string[] {
  if (rates === null) return ["Rates: none yet"];
  const { read, write, flush } = rates;
  const times = (name: string, { p50Us, p99Us }: typeof read, perSecond: number): string =>
    `${name} ${shortNumber(perSecond)}/s, p50 ${shortTime(p50Us)}, p99 ${shortTime(p99Us)}`;
  const places = rates.shares === null ? NO_FIGURE : PLACE_NAMES
    .map(([field, name]) => `${name} ${percent(rates.shares?.[field] ?? null)} %`)
    .join(", ");
  return [
    `${shortNumber(iopsOf(rates))} IOPS, ${megabytes(throughputOf(rates))} MB/s, ` +
    `queue depth ${shortNumber(rates.depth)}, ${disk.inFlight} in flight`,
    [
      times("Reads", read, rates.readsPerSecond),
      times("writes", write, rates.writesPerSecond),
    ].join("; "),
    times("Flushes", flush, rates.flushesPerSecond),
    `Retries ${shortNumber(rates.retriesPerSecond)}/s, ${disk.retrying} waiting; errors ` +
    `${shortNumber(rates.errorsPerSecond)}/s; ${disk.retries} retries in all`,
    `Time: ${places}`,
  ];
}

function chainLines({ disk, rates }: Row, width: number): string[] {
  const heading = ["LAYER", "  SIZE", "RMB/S", "WMB/S", "READ%", "HIT%"];
  const lines = disk.chain.map(({ type, path, sectors }, index) => {
    const layer = rates?.layers[index];
    const figures = [
      right(String(index), 5),
      right(sizeText(sectors), 9),
      right(layer === undefined ? NO_FIGURE : megabytes(layer.readBytesPerSecond), 5),
      right(layer === undefined ? NO_FIGURE : megabytes(layer.writtenBytesPerSecond), 5),
      right(percent(layer?.readShare ?? null), 5),
      right(percent(layer?.hitShare ?? null), 4),
    ].join(" ");
    return `${figures} ${tail(plainText(`${type}:${path}`), width - figures.length - 1)}`;
  });
  const zeros = rates?.zeroShare ?? null;
  const none = zeros === null ? [] : [`${right(percent(zeros), 32)}      zeros that no image has`];
  return [
    `${heading[0]} ${right("SIZE", 9)} ${heading.slice(2).join(" ")} IMAGE`,
    ...(lines.length === 0 ? ["    - no image is open"] : lines),
    ...none,
  ];
}

/** Buckets put together, so that there are at most so many, each twice as long as the one before or more. */
function coarse({ buckets }: Histogram): [belowUs: number, requests: number][] {
  const octaves = new Map<number, number>();
  for (const [belowUs, requests] of buckets) {
    const octave = 2 ** Math.ceil(Math.log2(Math.max(1, belowUs)));
    octaves.set(octave, (octaves.get(octave) ?? 0) + requests);
  }
  const all = [...octaves].sort(([a], [b]) => a - b);
  if (all.length <= HISTOGRAM_LINES) return all;
  const [first, rest] = [
    all.slice(0, all.length - HISTOGRAM_LINES + 1),
    all.slice(-HISTOGRAM_LINES + 1),
  ];
  const sum = first.reduce((total, [, requests]) => total + requests, 0);
  return [[first[first.length - 1][0], sum], ...rest];
}

/** A histogram, a line for each power of two with requests. */
function histogramLines(name: string, histogram: Histogram, width: number): string[] {
  const buckets = coarse(histogram);
  if (buckets.length === 0) return [`${name}: none`];
  const most = Math.max(...buckets.map(([, requests]) => requests));
  const room = Math.max(4, width - 22);
  return [
    `${name}: ${shortNumber(histogram.requests)} requests`,
    ...buckets.map(([belowUs, requests]) => {
      const bar = "#".repeat(Math.max(1, Math.round(room * requests / most)));
      return `  < ${right(shortTime(belowUs), 6)} ${right(shortNumber(requests), 7)} ${bar}`;
    }),
  ];
}

/** Two columns of lines, when there is room; else one below the other. */
function beside(first: readonly string[], second: readonly string[], width: number): string[] {
  if (width < 76) return [...first, ...second];
  const half = Math.floor(width / 2);
  return Array.from(
    { length: Math.max(first.length, second.length) },
    (_, index) => left(first[index] ?? "", half) + (second[index] ?? ""),
  );
}

/** All that is known of a disk. */
export function detailLines(row: Row, before: DiskSample | null, width: number): string[] {
  const earlier = before !== null && before.pid === row.disk.pid ? before.latency : null;
  const histogram = (kind: "read" | "write"): string[] => {
    const after = row.disk.latency[kind];
    const since = earlier === null ? after : between(earlier[kind], after);
    const name = kind === "read" ? "Reads" : "Writes";
    const title = earlier === null ? `${name} since it was opened` : name;
    return histogramLines(title, since, width < 76 ? width : Math.floor(width / 2));
  };
  const lines = [
    ...headLines(row),
    "",
    ...figureLines(row),
    "",
    ...chainLines(row, width),
    "",
    ...beside(histogram("read"), histogram("write"), width),
  ];
  return lines.map((line) => widthOf(line) > width ? head(line, width) : line);
}
