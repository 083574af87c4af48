/**
 * Properties of single kinds of block devices on a real kernel: several queues or connections,
 * leftovers. TLS in the kernel is beside them.
 */

import assert from "node:assert/strict";
import { pathExists } from "../../ffi/paths.ts";
import { testInMachine } from "./support/suite.ts";

const out = await testInMachine([
  { name: "ublk alone", command: ["ublk.sh", Deno.execPath()] },
  { name: "nbd alone", command: ["nbd.sh", Deno.execPath()] },
  { name: "ublk upgrade", command: ["ublk_upgrade.sh", Deno.execPath()] },
  { name: "TLS in the kernel", command: ["tls.sh", Deno.execPath()] },
]);

if (out !== null) {
  // Processors are emulated in many machines: the times say nothing of others.
  for (const kind of ["ublk", "tls"]) {
    const path = `${out}/${kind}_upgrade.times`;
    if (!pathExists(path)) continue; // Its script was skipped, or has failed.
    Deno.test(`the logs say how long users waited for an upgrade (${kind})`, () => {
      const lines = Deno.readTextFileSync(path).trimEnd().split("\n");
      assert.ok(lines.some((line) => line.includes("users waited")));
      for (const line of lines) console.log(`  ${kind}: ${line}`);
    });
  }
}
