import assert from "node:assert/strict";
import { run, withTempDir } from "../support/tools.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const FILES = ["mod.ts", "src/cli/dispatch.ts", "src/cli/getopt.ts", "src/cli/progress.ts"];

Deno.test("the examples in the documentation run", () =>
  withTempDir(async (folder) => {
    // Their imports are put together by the tool, which imports more than it uses.
    const args = ["test", "--doc", "--no-check", "-A", ...FILES];
    const { code, stdout, stderr } = await run(Deno.execPath(), args, {
      cwd: ROOT,
      env: { TMPDIR: folder, NO_COLOR: "1" },
    });
    assert.equal(code, 0, stdout + stderr);
    assert.match(stdout, / 8 passed/);
  }));
