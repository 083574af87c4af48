import { plainText } from "../log/plain_text.ts";
import type { Histogram } from "./sample.ts";

/**
 * Bounds of histograms, microseconds, which are bounds of the buckets: powers of 2 where times of disks are, from
 * 16 µs to 16 ms, and powers of 4 above, to 17 s. The text is mostly these.
 */
const BOUNDS_US: readonly number[] = [
  ...Array.from({ length: 11 }, (_, index) => 2 ** (index + 4)),
  ...Array.from({ length: 5 }, (_, index) => 4 ** (index + 8)),
];

const LE = [...BOUNDS_US.map((boundUs) => String(boundUs / 1e6)), "+Inf"];

/** A family of metrics: its full name, and the lines that come before its samples. */
export interface Family {
  readonly name: string;
  readonly head: string;
}

/** A family, by its name without the prefix, its type, and what it is. */
export function family(
  name: string,
  type: "counter" | "gauge" | "histogram",
  help: string,
): Family {
  const full = `blktap_${name}`;
  return { name: full, head: `# HELP ${full} ${help}\n# TYPE ${full} ${type}\n` };
}

/**
 * A label's value, with what would end it escaped. Names have control characters as `plainText` shows them: the
 * text is one for terminals, too, and its format has no other way to write them.
 */
function escaped(value: string | number): string {
  return typeof value === "number"
    ? String(value)
    : plainText(value).replaceAll("\\", "\\\\").replaceAll('"', '\\"');
}

/** Labels as the text has them; empty without any. */
export function labelsText(labels: Readonly<Record<string, string | number>>): string {
  const entries = Object.entries(labels);
  if (entries.length === 0) return "";
  return `{${entries.map(([name, value]) => `${name}="${escaped(value)}"`).join(",")}}`;
}

/** The beginnings of the lines of one histogram, which stay the same from scrape to scrape. */
export interface HistogramLines {
  readonly buckets: readonly string[];
  readonly sum: string;
  readonly count: string;
}

/** @param labels Of the histogram, not empty. */
export function histogramLines({ name }: Family, labels: string): HistogramLines {
  const open = `${name}_bucket${labels.slice(0, -1)},le="`;
  return {
    buckets: LE.map((le) => `${open}${le}"} `),
    sum: `${name}_sum${labels} `,
    count: `${name}_count${labels} `,
  };
}

/** The text, a family of metrics after the other. */
export class Exposition {
  readonly #parts: string[] = [];
  #family: Family | null = null;

  #begin(family: Family): void {
    if (this.#family === family) return;
    this.#family = family;
    this.#parts.push(family.head);
  }

  /** A sample. Those of a family come after each other. */
  add(family: Family, labels: string, value: number): void {
    this.#begin(family);
    this.#parts.push(`${family.name}${labels} ${value}\n`);
  }

  addHistogram(family: Family, lines: HistogramLines, { buckets, sumUs }: Histogram): void {
    this.#begin(family);
    let text = "";
    let at = 0;
    let below = 0;
    for (let bound = 0; bound < BOUNDS_US.length; bound++) {
      for (; at < buckets.length && buckets[at][0] <= BOUNDS_US[bound]; at++) {
        below += buckets[at][1];
      }
      text += `${lines.buckets[bound]}${below}\n`;
    }
    for (; at < buckets.length; at++) below += buckets[at][1];
    text += `${lines.buckets[BOUNDS_US.length]}${below}\n`;
    this.#parts.push(`${text}${lines.sum}${sumUs / 1e6}\n${lines.count}${below}\n`);
  }

  get text(): string {
    return this.#parts.join("");
  }
}
