/**
 * What the logs in a machine say of upgrades.
 *
 * @module
 */

import assert from "node:assert/strict";
import { pathExists } from "../../../ffi/paths.ts";

/** Prints how long users waited. Processors are emulated in many machines: the times say nothing of others. */
export function testTimes(path: string): void {
  if (!pathExists(path)) return; // Its script was skipped, or has failed.
  Deno.test("the logs say how long users waited for an upgrade", () => {
    const lines = Deno.readTextFileSync(path).trimEnd().split("\n");
    assert.ok(lines.some((line) => line.includes("users waited")));
    for (const line of lines) console.log(`  ${line}`);
  });
}
