/**
 * Has a tapdisk hand over to programs that go wrong, each at another step. Fails when an upgrade does not fail.
 * Must run in the machine.
 *
 *     deno run -A failing_upgrades.ts PID
 *
 * @module
 */
import { upgradeTapdisk } from "../../../src/control/client/upgrade.ts";
import type { Step } from "../../support/successor.ts";

const STEPS: readonly Step[] = [
  "dies when it has opened",
  "dies when it is to serve",
];
const script = new URL("../../support/successor.ts", import.meta.url).pathname;

for (const step of STEPS) {
  const args = ["run", "--quiet", "--no-check", "--allow-all", script, step];
  let pid = 0;
  try {
    pid = upgradeTapdisk(Number(Deno.args[0]), { program: Deno.execPath(), args }).pid;
  } catch (error) {
    console.log(`${step}: ${error instanceof Error ? error.message : error}`);
  }
  if (pid !== 0) throw new Error(`An upgrade succeeded though the new process ${step}: ${pid}`);
}
