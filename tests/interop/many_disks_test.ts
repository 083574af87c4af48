import assert from "node:assert/strict";
import { measureMany } from "../support/many_disks.ts";
import { needsServed } from "../support/served.ts";
import { withTempDir } from "../support/tools.ts";

const { ignore, suffix } = needsServed();

Deno.test({
  name: `storage managers open, list and close many disks in few processes${suffix}`,
  ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const disks = 24;
      const figures = await measureMany(folder, { disks, perProcess: 12 });
      const { processes, anonymousKib, openSeconds, listSeconds } = figures;
      assert.equal(processes, 2, JSON.stringify(figures));
      // With a process for each disk it would be more than 500 MiB.
      assert.ok(anonymousKib < 160 * 1024, JSON.stringify(figures));
      // Generous: other tests run at the same time. `deno task bench:many-disks` measures.
      assert.ok(openSeconds < 240 && listSeconds < 60, JSON.stringify(figures));
    }),
});
