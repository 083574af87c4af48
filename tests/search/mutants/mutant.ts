/**
 * Mutants: deliberate faults of the product, each kept as a small patch. The suite must notice each
 * of them.
 *
 * A patch file begins with a head, a field a line, then an empty line and a unified diff:
 *
 *     Fault: the bits of a write that failed stay in the bitmap that is written next
 *     Kind: error handling
 *     Test: tests/sim/vhd_writer_test.ts
 *     Test: tests/sim/power_cut_test.ts
 *
 * `Test` is a test file that should notice, the fastest first. Of a file that takes long it may name
 * some tests, by a part of their names: `Test: tests/sim/power_cut_test.ts (seed 3)`.
 *
 * @module
 */

/** The folder of the patches. */
const PATCHES = new URL("patches/", import.meta.url);

/** The kinds of faults, as the heads name them. */
export const KINDS = [
  "order of writes",
  "bounds and limits",
  "checks left out",
  "error handling",
  "encoding",
  "locks and lifetimes",
  "confinement and permissions",
  "wrong answer",
] as const;
/** One of `KINDS`. */
export type Kind = (typeof KINDS)[number];

/** A deliberate fault. */
export interface Mutant {
  readonly name: string;
  /** What is wrong. */
  readonly fault: string;
  readonly kind: Kind;
  /** Test files that should notice, the fastest first. */
  readonly tests: readonly string[];
  /** The files that the patch changes. */
  readonly files: readonly string[];
  /** The lines that the patch removes and adds, with their signs. */
  readonly changes: readonly string[];
  /** The whole patch file; the head is no part of the diff. */
  readonly patch: string;
}

function kindOf(text: string | undefined, name: string): Kind {
  const kind = KINDS.find((kind) => kind === text);
  if (kind === undefined) throw new TypeError(`${name}: the kind '${text}' is not in KINDS`);
  return kind;
}

/** Reads a patch file. Throws `TypeError` for a head that is not complete. */
export function parseMutant(name: string, patch: string): Mutant {
  const [head, ...rest] = patch.split("\n\n");
  const fields = head.split("\n").map((line) => /^(Fault|Kind|Test): (.+)$/.exec(line));
  const valuesOf = (field: string): string[] =>
    fields.flatMap((found) => found?.[1] === field ? [found[2]] : []);
  const [fault, ...others] = valuesOf("Fault");
  const tests = valuesOf("Test");
  if (fields.includes(null) || fault === undefined || others.length > 0 || tests.length === 0) {
    throw new TypeError(`${name}: the head must have Fault, Kind and Test, a field a line`);
  }
  const lines = rest.join("\n\n").split("\n");
  const files = lines.flatMap((line) => /^\+\+\+ b\/(.+)$/.exec(line)?.slice(1) ?? []);
  const changes = lines.filter((line) => /^[-+](?!--|\+\+)/.test(line));
  return { name, fault, kind: kindOf(valuesOf("Kind")[0], name), tests, files, changes, patch };
}

/** All mutants, by name. */
export function allMutants(): Mutant[] {
  const names = Array.from(Deno.readDirSync(PATCHES), ({ name }) => name).sort();
  return names.map((name) =>
    parseMutant(name.replace(/\.patch$/, ""), Deno.readTextFileSync(new URL(name, PATCHES)))
  );
}

const DAY_MS = 24 * 3600 * 1000;

/** The number of days since 1970, by which the sample of the day is chosen. */
export function today(): number {
  return Math.floor(Date.now() / DAY_MS);
}

/**
 * A sample of mutants, spread over the list, so that it has some of each part of the product. Seeds
 * that follow each other choose others, until all have had their turn.
 */
export function sampleOf(mutants: readonly Mutant[], count: number, seed: number): Mutant[] {
  const all = mutants.length;
  const size = Math.min(count, all);
  const turn = seed % Math.ceil(all / size);
  return Array.from({ length: size }, (_, i) => mutants[(Math.floor(i * all / size) + turn) % all]);
}

/** The part of the product that a file belongs to: `src/vbd`, or `ffi`. */
function partOf(file: string): string {
  return file.startsWith("ffi/") ? "ffi" : file.split("/").slice(0, 2).join("/");
}

/** A table in Markdown: how many mutants of each kind are planted in each part of the product. */
export function tableOf(mutants: readonly Mutant[]): string {
  const parts = [...new Set(mutants.map(({ files: [file] }) => partOf(file)))].toSorted();
  const countIn = (part: string | null, kind: Kind | null): string =>
    String(
      mutants.filter((mutant) =>
        (part === null || partOf(mutant.files[0]) === part) &&
        (kind === null || mutant.kind === kind)
      ).length,
    );
  const row = (name: string, part: string | null): string[] => [
    name,
    ...KINDS.map((kind) => countIn(part, kind)),
    countIn(part, null),
  ];
  const rows = [
    ["where", ...KINDS, "all"],
    ...parts.map((part) => row(`\`${part}\``, part)),
    row("all", null),
  ];
  const widths = rows[0].map((_, column) => Math.max(...rows.map((cells) => cells[column].length)));
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column])).join(" | ")} |`;
  const rule = `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`;
  const [head, ...others] = rows.map(line);
  return [head, rule, ...others].join("\n");
}
