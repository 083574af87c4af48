import type { HostSample, TimesSample } from "../../observe/sample.ts";
import { plainText } from "../../log/plain_text.ts";
import { megabytes, NO_FIGURE, percent, shortNumber, shortTime } from "./figures.ts";
import { imageOf, iopsOf, type Row, throughputOf } from "./rows.ts";
import { left, right, tail } from "./text.ts";

/** A column of figures. */
interface Column {
  readonly title: string;
  readonly width: number;
  /** Whether it needs a wide terminal. */
  readonly isWide?: boolean;
  readonly text: (row: Row) => string;
}

/** Terminals from this width on get all columns. */
const WIDE_COLUMNS = 110;

function ofRates(text: (rates: NonNullable<Row["rates"]>) => string): (row: Row) => string {
  return ({ rates }) => rates === null ? NO_FIGURE : text(rates);
}

/** Shares of the disk, of all that requests wait for, and of the client; of 100. */
function placesText(shares: Readonly<Record<keyof TimesSample, number>> | null): string {
  if (shares === null) return NO_FIGURE;
  const waits = shares.queueMs + shares.pauseMs + shares.retryMs + shares.limitMs;
  return [shares.diskMs, waits, shares.clientMs].map(percent).join("/");
}

/** The part of what caches were asked for that they had; null without a cache. */
function cacheShare({ rates }: Row): number | null {
  return rates?.layers.find(({ hitShare }) => hitShare !== null)?.hitShare ?? null;
}

const COLUMNS: readonly Column[] = [
  { title: "MINOR", width: 5, text: ({ disk }) => String(disk.minor) },
  { title: "IOPS", width: 5, text: ofRates((rates) => shortNumber(iopsOf(rates))) },
  {
    title: "RD/S",
    width: 5,
    isWide: true,
    text: ofRates(({ readsPerSecond }) => shortNumber(readsPerSecond)),
  },
  {
    title: "WR/S",
    width: 5,
    isWide: true,
    text: ofRates(({ writesPerSecond }) => shortNumber(writesPerSecond)),
  },
  { title: "MB/S", width: 5, text: ofRates((rates) => megabytes(throughputOf(rates))) },
  {
    title: "RMB/S",
    width: 5,
    isWide: true,
    text: ofRates(({ readBytesPerSecond }) => megabytes(readBytesPerSecond)),
  },
  {
    title: "WMB/S",
    width: 5,
    isWide: true,
    text: ofRates(({ writtenBytesPerSecond }) => megabytes(writtenBytesPerSecond)),
  },
  { title: "P50", width: 5, text: ofRates(({ latency }) => shortTime(latency.p50Us)) },
  { title: "P99", width: 5, text: ofRates(({ latency }) => shortTime(latency.p99Us)) },
  { title: "QD", width: 4, text: ofRates(({ depth }) => shortNumber(depth)) },
  { title: "FLY", width: 3, text: ({ disk }) => String(disk.inFlight) },
  { title: "RTY", width: 3, text: ({ disk }) => shortNumber(disk.retrying) },
  { title: "ERR", width: 3, text: ofRates(({ errorsPerSecond }) => shortNumber(errorsPerSecond)) },
  {
    title: "D/Q/C",
    width: 8,
    text: ({ state, rates }) => state === "running" ? placesText(rates?.shares ?? null) : state,
  },
  { title: "TOP", width: 3, text: ofRates(({ layers }) => percent(layers[0]?.readShare ?? null)) },
  { title: "CCH", width: 3, text: (row) => percent(cacheShare(row)) },
  { title: "IMGS", width: 4, isWide: true, text: ({ disk }) => String(disk.chain.length) },
];

function columnsFor(width: number): Column[] {
  return COLUMNS.filter(({ isWide }) => isWide !== true || width >= WIDE_COLUMNS);
}

/** The titles of the columns. */
export function titleLine(width: number): string {
  const titles = columnsFor(width).map((column) => right(column.title, column.width));
  return left([...titles, "IMAGE"].join(" "), width);
}

/** A disk. The end of its image's name is kept when the whole has no room. */
export function rowLine(row: Row, width: number): string {
  const figures = columnsFor(width).map(({ text, width }) => right(text(row), width)).join(" ");
  const image = plainText(imageOf(row.disk)) || NO_FIGURE;
  return left(`${figures} ${tail(image, Math.max(8, width - figures.length - 1))}`, width);
}

function plural(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}

/** All disks together. */
export function summaryLine(rows: readonly Row[], seconds: number | null): string {
  const sum = (of: (rates: NonNullable<Row["rates"]>) => number): number =>
    rows.reduce((total, { rates }) => total + (rates === null ? 0 : of(rates)), 0);
  const counted = [
    plural(rows.length, "disk"),
    `${shortNumber(sum(iopsOf))} IOPS`,
    `${megabytes(sum(({ readBytesPerSecond }) => readBytesPerSecond))} MB/s read`,
    `${megabytes(sum(({ writtenBytesPerSecond }) => writtenBytesPerSecond))} MB/s written`,
  ];
  return counted.join(", ") + (seconds === null ? "" : `, in ${seconds.toFixed(1)} s`);
}

/** What is wrong with tapdisks, a line each. */
export function troubleLines({ silent, dead, unserved }: HostSample): string[] {
  const lines = silent.map(({ pid, minors, why }) => {
    const of = minors.length === 0 ? "" : ` (minors ${minors.join(", ")})`;
    return `tapdisk ${pid}${of}: ${why}`;
  });
  if (dead.length > 0) lines.push(`${plural(dead.length, "tapdisk")} died: ${dead.join(", ")}`);
  for (const { minor, image } of unserved) {
    if (image === null) continue;
    lines.push(`minor ${minor}, ${image}: no tapdisk serves it; 'tap-ctl recover' brings it back`);
  }
  return lines.map(plainText);
}
