/** The console sessions of the README and of `docs/` print what the documents show. */
import assert from "node:assert/strict";
import { ControlBench } from "../support/control.ts";
import { runSession, stepsOf } from "../support/sessions.ts";
import { needs, withTempDir } from "../support/tools.ts";

const ROOT = new URL("../../", import.meta.url).pathname;

const { ignore, suffix } = needs(
  "dist/tap-ctl",
  "bash",
  "nbdcopy",
  "nbdinfo",
  "qemu-img",
  "qemu-io",
);

/** Documents with `console` blocks. */
const DOCUMENTS = ["README.md", "docs/images.md", "docs/changed-blocks.md"];

for (const document of DOCUMENTS) {
  Deno.test({
    name: `The sessions in ${document} do what it says${suffix}`,
    ignore,
    async fn() {
      const steps = stepsOf(Deno.readTextFileSync(`${ROOT}${document}`));
      assert.ok(steps.length > 5, `${document} has ${steps.length} commands`);
      await withTempDir(async (folder) => {
        const tour = `${folder}/tour`;
        try {
          await runSession(steps, { cwd: ROOT, tour });
        } finally {
          await new ControlBench(tour).end();
        }
      });
    },
  });
}
