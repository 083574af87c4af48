import assert from "node:assert/strict";
import { percentProgress, timeLeft } from "../../src/cli/progress.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { binaryPath, needs, run, withTempDir } from "../support/tools.ts";

Deno.test("progress: the time left is told once it can be", () => {
  assert.equal(timeLeft(0, 100, 10_000), "");
  assert.equal(timeLeft(1, 100, 10), "");
  assert.equal(timeLeft(50, 100, 10_000), ", 10s left");
  assert.equal(timeLeft(1, 20, 10_000), ", 3m10s left");
  assert.equal(timeLeft(1, 1000, 10_000), ", 2h46m left");
  assert.equal(timeLeft(100, 100, 10_000), ", 0s left");
  assert.equal(timeLeft(101, 100, 10_000), ", 0s left");
  for (const total of [0, 1, 1e6, 1e12, Infinity]) {
    for (const done of [0, 1, total]) {
      for (const elapsedMs of [0, 499, 500, 1e9]) {
        const text = timeLeft(done, total, elapsedMs);
        assert.match(text, /^(|, (\d+s|\d+m\d\ds|\d+h\d\dm) left)$/, `${done} of ${total}`);
      }
    }
  }
});

Deno.test("progress: percentages of nothing are no NaN", () => {
  let printed = "";
  const progress = percentProgress((text) => printed += text);
  progress.update(0, 0);
  assert.equal(printed, "\r100.00%\n");
});

const { ignore, suffix } = needs("dist/vhd-util", "script");
Deno.test({
  name: `progress: a terminal never sees INF or NaN${suffix}`,
  ignore,
  async fn() {
    await withTempDir(async (folder) => {
      createDynamic(`${folder}/a.vhd`, { sizeBytes: 256 << 20 });
      const command = `${binaryPath("vhd-util")} fill -n ${folder}/a.vhd`;
      const { stdout } = await run("script", ["-qec", command, "/dev/null"], { cwd: folder });
      assert.match(stdout, /fill \[[#.]+\] \d+%/);
      assert.doesNotMatch(stdout, /INF|NaN|NULL|undefined|\{/);
    });
  },
});
