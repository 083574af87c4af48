import assert from "node:assert/strict";
import { needsServed } from "../support/served.ts";
import { withControlBench } from "../support/control.ts";
import { binaryPath, run } from "../support/tools.ts";

const { ignore, suffix } = needsServed();

/** The soft and the hard limit of open descriptors of a process. */
function descriptorLimits(pid: number): [soft: string, hard: string] {
  const limits = Deno.readTextFileSync(`/proc/${pid}/limits`);
  const found = /^Max open files\s+(\S+)\s+(\S+)/m.exec(limits);
  assert.ok(found !== null);
  return [found[1], found[2]];
}

// Needs the built program: deno itself raises the limit when it runs the sources.
Deno.test({
  name: `a tapdisk raises its soft limit of descriptors to the hard one${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const script = `ulimit -Sn 64; ulimit -Hn 4000; '${binaryPath("tapdisk")}'`;
      const { code, stdout, stderr } = await run("sh", ["-c", script], { env: bench.env });
      assert.equal(code, 0, stderr);
      const pid = Number(/ctl(\d+)\n$/.exec(stdout)?.[1]);
      assert.deepEqual(descriptorLimits(pid), ["4000", "4000"]);
    }),
});
