/**
 * Hundreds of disks, opened by the calls of a storage manager: `deno task bench:many-disks --disks 200
 * --per-process 50`. It prints how long that takes and how much memory the tapdisks have; then what a
 * disk under full load does to another's latency, in the same process and, to compare, in one of its own; both
 * also with the tapdisks on a processor of their own, so that the kernel's scheduler has no part in it.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { measureFairness } from "../support/fairness.ts";
import { measureMany } from "../support/many_disks.ts";
import { withTempDir } from "../support/tools.ts";

const { values } = parseArgs({
  args: Deno.args,
  options: {
    disks: { type: "string", default: "200" },
    "per-process": { type: "string", default: "50" },
    seconds: { type: "string", default: "5" },
  },
});

const disks = Number(values.disks);
const perProcess = Number(values["per-process"]);
const figures = await withTempDir((folder) => measureMany(folder, { disks, perProcess }));
const mib = (kib: number): string => `${(kib / 1024).toFixed(0)} MiB`;
const { openSeconds, openProcessorSeconds, closeSeconds } = figures;
console.log(`${disks} disks in ${figures.processes} processes`);
console.log(
  `opened in ${openSeconds.toFixed(1)} s (${openProcessorSeconds.toFixed(1)} s of processors), ` +
    `closed in ${closeSeconds.toFixed(1)} s`,
);
console.log(`tap-ctl list: ${(figures.listSeconds * 1000).toFixed(0)} ms`);
console.log(`anonymous memory: ${mib(figures.anonymousKib)}`);

const seconds = Number(values.seconds);
for (const apart of [false, true]) {
  for (const together of [false, true]) {
    const { aloneUs, beside } = await withTempDir((folder) =>
      measureFairness(folder, { seconds, together, apart })
    );
    const where = together ? "in the same process" : "in another process";
    const processors = apart ? ", tapdisks on a processor of their own" : "";
    for (const { load, p99Us } of beside) {
      const times = (p99Us / aloneUs).toFixed(2);
      console.log(
        `p99 of a disk: ${aloneUs.toFixed(0)} µs alone; with ${load} ${where}${processors}: ${
          p99Us.toFixed(0)
        } µs, ${times} times`,
      );
    }
  }
}
