/**
 * The facts that scripts in a machine found, as tests by name. tests/vm/guest/facts.sh writes them.
 *
 * @module
 */

import assert from "node:assert/strict";
import type { MachineResult } from "./machine.ts";

export interface Fact {
  readonly outcome: "ok" | "failed" | "skipped";
  /** The result instead, or the reason why the fact was skipped. */
  readonly detail: string;
}

/** A script whose facts are tests. */
export interface FactScript {
  /** Prefix of the names of its facts and of its file: `ublk` is `ublk.facts`. */
  readonly name: string;
  readonly path: string;
}

/**
 * The names of the facts of a script in its order, from its lines with `check "NAME"` or `skip
 * "NAME"`. So facts that the script did not reach are counted too.
 */
export function plannedFacts(script: string): string[] {
  const named = script.matchAll(/^\s*(?:check|skip) "([^"]+)"/gm);
  return [...new Set(Array.from(named, (match) => match[1]))];
}

/** Reads a file of facts. */
export function parseFacts(text: string): Map<string, Fact> {
  const facts = new Map<string, Fact>();
  for (const entry of text.split(/^(?=ok |failed |skipped )/m)) {
    const [head, ...detail] = entry.trimEnd().split("\n");
    const [, outcome, name] = /^(ok|failed|skipped) (.*)$/.exec(head) ?? [];
    if (outcome === "ok" || outcome === "failed" || outcome === "skipped") {
      facts.set(name, { outcome, detail: detail.join("\n") });
    }
  }
  return facts;
}

/**
 * Registers a test for each fact of the scripts that ran in a machine, and a test that shows the
 * console if the machine or a fact failed.
 */
export function testFacts(
  scripts: readonly FactScript[],
  outFolder: string,
  result: MachineResult,
): void {
  let failed = result.code !== 0;
  for (const { name, path } of scripts) {
    const facts = parseFacts(readOrEmpty(`${outFolder}/${name}.facts`));
    for (const fact of new Set([...plannedFacts(Deno.readTextFileSync(path)), ...facts.keys()])) {
      const found = facts.get(fact) ??
        { outcome: "failed", detail: "The script did not come to it" };
      failed ||= found.outcome === "failed";
      const why = found.outcome === "skipped"
        ? ` (skipped: ${found.detail.replace(/^ *\| /, "")})`
        : "";
      Deno.test({
        name: `${name}: ${fact}${why}`,
        ignore: found.outcome === "skipped",
        fn: () => assert.notEqual(found.outcome, "failed", `\n${found.detail}`),
      });
    }
  }
  const how = `${result.seconds.toFixed(0)} s, ${result.accelerator}`;
  Deno.test(`the machine ran its scripts and powered off (${how})`, () => {
    if (failed) {
      console.log(result.console);
    }
    assert.equal(result.code, 0);
  });
}

function readOrEmpty(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return "";
  }
}
