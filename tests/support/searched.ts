/**
 * Runs a search of tests/search as a test.
 *
 * @module
 */
import assert from "node:assert/strict";

const RUN = new URL("../search/run.ts", import.meta.url).pathname;

/** Runs a search with these options; fails when it finds something. Its report is printed. */
export async function searched(name: string, ...options: string[]): Promise<void> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", RUN, name, ...options],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const { code, stdout, stderr } = await child.output();
  const [report, findings] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
  console.log(report.trimEnd());
  assert.equal(code, 0, findings);
}
