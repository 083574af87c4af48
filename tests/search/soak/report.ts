/**
 * What a soak has found and measured.
 *
 * @module
 */
import type { Soak } from "./context.ts";
import { type Flatness, flatness } from "./flat.ts";
import { describeError, Finding } from "./finding.ts";
import type { Watch } from "./watch.ts";

/**
 * How much a figure may rise from the second quarter of the time to the last. The low values of a
 * quarter are compared: a leak raises them too, and a burst of clients or of objects does not.
 */
interface Bound {
  readonly name: string;
  readonly what: string;
  readonly most: number;
  /** And for each image that is open in addition. */
  readonly perImage: number;
  /** Whether `most` is the bound of every value instead. */
  readonly isLimit?: true;
}

/** The part of a quarter's values that lies below the one that is compared. */
const LOW = 0.1;

const BOUNDS: readonly Bound[] = [
  // Pages of I/O memory and of the program's file come into use as the load meets them.
  { name: "privateKib", what: "private memory, KiB", most: Infinity, perImage: 0 },
  { name: "residentKib", what: "resident memory, KiB", most: Infinity, perImage: 0 },
  { name: "ioKib", what: "I/O memory, KiB", most: Infinity, perImage: 0 },
  // So the rest of the private memory has to stay flat, and I/O memory within what its users may have.
  { name: "heapKib", what: "memory beside I/O memory, KiB", most: 16 * 1024, perImage: 512 },
  {
    name: "ioBeyondKib",
    what: "I/O memory beyond its bound, KiB",
    most: 0,
    perImage: 0,
    isLimit: true,
  },
  { name: "sockets", what: "sockets", most: 6, perImage: 0 },
  { name: "removedFiles", what: "removed files that are open", most: 0, perImage: 0 },
  { name: "filesBesideImages", what: "open files beside images", most: 3, perImage: 0 },
  { name: "otherDescriptors", what: "other descriptors", most: 2, perImage: 0 },
  { name: "images", what: "images that are open", most: Infinity, perImage: 0 },
];

/** Latency may rise by a factor and some milliseconds: other programs run beside a soak. */
const LATENCY_BOUNDS = [
  { name: "p50", share: 0.5, factor: 3, milliseconds: 100 },
  { name: "p99", share: 0.99, factor: 5, milliseconds: 2000 },
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
    const images = flatness(series.get("images") ?? [], LOW);
    const moreImages = Math.max(0, images.late - images.early);
    for (const { name, what, most, perImage, isLimit } of BOUNDS) {
      const found = flatness(series.get(name) ?? [], LOW);
      const judged = isLimit ? found.highest : found.late - found.early;
      const isFlat = !(judged > most + perImage * moreImages);
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

/** Each file with the number of its descriptors, or of its images. */
function counted(paths: readonly string[]): string {
  const counts = Map.groupBy(paths, (path) => path);
  return [...counts].sort().map(([path, all]) => `  ${all.length} ${path}`).join("\n");
}

/** What was open at the last look, to find out which file is open too often. */
function describeOpen(watch: Watch): string[] {
  return [...watch.openFiles].flatMap(([of, { files, images }]) => [
    `${of}: descriptors of`,
    counted(files),
    `${of}: images that the soak knows of`,
    counted(images),
  ]);
}

/** Throws when a figure was not flat, or went beyond its limit. */
export function requireFlat(watch: Watch): void {
  const risen = figuresOf(watch).filter(({ isFlat }) => !isFlat);
  if (risen.length === 0) return;
  const lines = risen.map(({ of, what, early, late, highest }) =>
    `${of}: ${what}: ${early} -> ${late} (${highest})`
  );
  if (risen.some(({ what }) => what.includes("open"))) lines.push(...describeOpen(watch));
  throw new Finding(`Not flat (second quarter -> last quarter (highest)):\n${lines.join("\n")}`);
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
    "figures, low value of the second quarter -> of the last quarter (highest):",
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
