/**
 * Reads the report that `deno test --junit-path` writes.
 *
 * @module
 */

export interface TestResult {
  /** The file of the test, as Deno names it. */
  readonly file: string;
  readonly name: string;
  readonly outcome: "passed" | "failed" | "skipped";
  /** Why the test failed, in one or several lines; empty when the report does not say. */
  readonly reason?: string;
}

/** The results in a JUnit report as Deno writes it, in its order. */
export function readJunit(xml: string): TestResult[] {
  const results: TestResult[] = [];
  for (const suite of xml.matchAll(/<testsuite ([^>]*)>(.*?)<\/testsuite>/gs)) {
    const file = attribute(suite[1], "name");
    for (const test of suite[2].matchAll(/<testcase ([^>]*?)(?:\/>|>(.*?)<\/testcase>)/gs)) {
      const body = test[2] ?? "";
      results.push({ file, name: attribute(test[1], "name"), ...outcomeOf(body) });
    }
  }
  return results;
}

/** A test file's path, as reports have it without the dot in front. */
function plainPath(file: string): string {
  return file.replace(/^\.\//, "");
}

/**
 * Adds what a report does not say: that a process failed, or that it ended, perhaps with status 0, before all of its
 * files ran.
 *
 * @param files The files of the process. One alone may be a folder.
 * @param failure How the process failed, if it did.
 * @param isFiltered Whether tests were chosen by name, so that a file may have none.
 */
export function withLost(
  results: readonly TestResult[],
  { files, failure, isFiltered }: {
    readonly files: readonly string[];
    readonly failure: string | undefined;
    readonly isFiltered: boolean;
  },
): TestResult[] {
  if (results.some(({ outcome }) => outcome === "failed")) return [...results];
  const seen = new Set(results.map(({ file }) => plainPath(file)));
  const silent = files.length === 1
    ? files.filter(() => results.length === 0)
    : files.filter((file) => !seen.has(plainPath(file)));
  if (failure !== undefined) {
    const file = (silent.length === 0 ? files : silent).join(" ");
    return [...results, { file, name: failure, outcome: "failed" }];
  }
  const lost = isFiltered ? [] : silent;
  return [
    ...results,
    ...lost.map((file) => ({ file, name: "none of its tests ran", outcome: "failed" } as const)),
  ];
}

function outcomeOf(body: string): Pick<TestResult, "outcome" | "reason"> {
  const failure = /<(?:failure|error)\b([^>]*?)(?:\/>|>(.*?)<\/(?:failure|error)>)/s.exec(body);
  if (failure !== null) {
    const text = unescaped(failure[2] ?? "").trim();
    return { outcome: "failed", reason: text || attribute(failure[1], "message") };
  }
  return { outcome: /<skipped\b/.test(body) ? "skipped" : "passed" };
}

const ENTITIES: Readonly<Record<string, string>> = {
  amp: "&",
  apos: "'",
  gt: ">",
  lt: "<",
  quot: '"',
};

function attribute(attributes: string, name: string): string {
  const value = new RegExp(`(?:^|\\s)${name}="([^"]*)"`).exec(attributes)?.[1] ?? "";
  return unescaped(value);
}

function unescaped(text: string): string {
  return text.replace(/&(#x[0-9a-f]+|#\d+|\w+);/gi, (whole, entity: string) => {
    if (!entity.startsWith("#")) {
      return ENTITIES[entity] ?? whole;
    }
    const hex = entity.startsWith("#x");
    return String.fromCodePoint(parseInt(entity.slice(hex ? 2 : 1), hex ? 16 : 10));
  });
}
