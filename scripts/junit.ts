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
