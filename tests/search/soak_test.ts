import assert from "node:assert/strict";
import { needsServed } from "../support/served.ts";
import { run } from "../support/tools.ts";
import type { Report } from "./soak/report.ts";

const SOAK = new URL("soak/soak.ts", import.meta.url).pathname;
const MINUTES = 3;
const { ignore, suffix } = needsServed();

Deno.test({
  name: `soak: ${MINUTES} minutes of everything at once, and no wrong byte${suffix}`,
  ignore,
  async fn() {
    const args = ["run", "-A", SOAK, "--minutes", `${MINUTES}`, "--json"];
    const { code, stdout, stderr } = await run(Deno.execPath(), args, { timeoutMs: 8 * 60_000 });
    // A failure says everything that a person needs: the seed, the finding, the last events.
    assert.equal(code, 0, `${stderr}\n${stdout}`);
    const { counts, disks, finding }: Report = JSON.parse(stdout);
    assert.equal(finding, null);
    assert.ok(disks >= 30, `${disks} disks`);
    assert.ok(counts["requests of writers"] > 10_000, stdout);
    assert.ok(counts["disks whose content is right at the end"] > 30, stdout);
    const events = Object.keys(counts).filter((what) => what.startsWith("events: "));
    assert.ok(events.length >= 8, `only ${events.join(", ")}`);
  },
});
