/** The mutants of the day are caught; all of them with `deno task test:mutants --all`. */
import assert from "node:assert/strict";
import { run } from "../support/tools.ts";

const MAIN = new URL("mutants/main.ts", import.meta.url).pathname;

Deno.test("mutants: the tests notice the eight deliberate faults of the day", async () => {
  const args = ["run", "-A", MAIN, "--jobs", "1"];
  const { code, stdout, stderr } = await run(Deno.execPath(), args, { timeoutMs: 10 * 60_000 });
  console.log(stdout.trimEnd());
  assert.equal(code, 0, `${stdout}${stderr}`);
});
