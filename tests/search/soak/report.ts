/**
 * What a soak has found and measured.
 *
 * @module
 */
import type { Soak } from "./context.ts";
import { type Flatness, flatness } from "./flat.ts";
import { describeError, Finding } from "./finding.ts";
import type { Watch } from "./watch.ts";

/** How much a figure may rise from the second quarter of the time to the last. */
interface Bound {
  readonly name: string;
  readonly what: string;
  readonly most: number;
  /** And for each image that is open in addition. */
  readonly perImage: number;
}

const BOUNDS: readonly Bound[] = [
  { name: "privateKib", what: "private memory, KiB", most: 16 * 1024, perImage: 512 },
  { name: "residentKib", what: "resident memory, KiB", most: 16 * 1024, perImage: 512 },
  { name: "ioKib", what: "I/O memory, KiB", most: 8 * 1024, perImage: 512 },
  { name: "sockets", what: "sockets", most: 6, perImage: 0 },
  { name: "removedFiles", what: "removed files that are open", most: 0, perImage: 0 },
  { name: "filesBesideImages", what: "open files beside images", most: 3, perImage: 0 },
  { name: "otherDescriptors", what: "other descriptors", most: 2, perImage: 0 },
  { name: "images", what: "images that are open", most: Infinity, perImage: 0 },
];

/** Latency may rise by a factor and some milliseconds: other programs run beside a soak. */
const LATENCY_BOUNDS = [
  { name: "p50", share: 0.5, factor: 3, milliseconds: 5 },
  { name: "p99", share: 0.99, factor: 5, milliseconds: 100 },
] as const;

/** A figure in the report. */
export interface Figure extends Flatness {
  readonly what: string;
  readonly of: string;
  readonly isFlat: boolean;
}

export interface Report {
  readonly seed: number;
  readonly seconds: number;
  readonly setUpSeconds: number;
  readonly loadSeconds: number;
  readonly disks: number;
  readonly tapdisks: number;
  readonly processors: number;
  readonly counts: Readonly<Record<string, number>>;
  readonly figures: readonly Figure[];
  readonly skipped: readonly string[];
  readonly finding: string | null;
  readonly lastEvents: readonly string[];
  /** Where files are that are kept when something was found. */
  readonly folders: readonly string[];
}

/** The figures of a soak; shorter ones are not long enough to judge them. */
export function figuresOf(watch: Watch): Figure[] {
  const figures: Figure[] = [];
  for (const [of, series] of watch.figures) {
    const images = flatness(series.get("images") ?? []);
    const moreImages = Math.max(0, images.late - images.early);
    for (const { name, what, most, perImage } of BOUNDS) {
      const found = flatness(series.get(name) ?? []);
      const isFlat = !(found.late - found.early > most + perImage * moreImages);
      figures.push({ of, what, ...found, isFlat });
    }
  }
  for (const { name, share, factor, milliseconds } of LATENCY_BOUNDS) {
    const found = flatness(watch.latencies, share);
    const isFlat = !(found.late > found.early * factor + milliseconds);
    figures.push({ of: "quiet disk", what: `latency ${name}, ms`, ...found, isFlat });
  }
  return figures;
}

/** Throws when a figure was not flat. */
export function requireFlat(figures: readonly Figure[]): void {
  const risen = figures.filter(({ isFlat }) => !isFlat);
  if (risen.length === 0) return;
  const lines = risen.map(({ of, what, early, late }) => `${of}: ${what}: ${early} -> ${late}`);
  throw new Finding(`Not flat (second quarter -> last quarter):\n${lines.join("\n")}`);
}

/** The finding with what happened to its subject. */
export function describeFinding(soak: Soak): Pick<Report, "finding" | "lastEvents"> {
  const { finding } = soak;
  if (finding === null) return { finding: null, lastEvents: [] };
  const text = `${finding.subject}: ${describeError(finding.error)}`;
  return { finding: text, lastEvents: soak.journal.recent(finding.subject) };
}

function rounded(value: number): string {
  return Number.isInteger(value) ? `${value}` : value.toFixed(2);
}

/** The report for a person. */
export function printed(report: Report): string {
  const { seed, disks, tapdisks, processors, counts, figures, skipped } = report;
  const [all, setUp, load] = [report.seconds, report.setUpSeconds, report.loadSeconds]
    .map((seconds) => seconds.toFixed(0));
  const lines = [
    `soak: seed ${seed}, ${disks} disks in ${tapdisks} tapdisks, ${all} s: ${setUp} s to set up, ` +
    `${load} s of load; ${processors.toFixed(2)} processors`,
    ...skipped.map((what) => `  skipped: ${what}`),
    ...Object.entries(counts).map(([what, count]) => `  ${count} ${what}`),
    "figures, median of the second quarter -> of the last quarter (highest):",
    ...figures.map(({ of, what, early, late, highest, isFlat }) =>
      `  ${of}: ${what}: ${rounded(early)} -> ${rounded(late)} (${rounded(highest)})` +
      (isFlat ? "" : "  NOT FLAT")
    ),
  ];
  if (report.finding === null) return [...lines, "0 wrong bytes; nothing was found"].join("\n");
  return [
    ...lines,
    `FOUND: ${report.finding}`,
    "last events:",
    ...report.lastEvents.map((line) => `  ${line}`),
    `files are kept in ${report.folders.join(" and ")}`,
  ].join("\n");
}
