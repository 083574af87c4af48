import assert from "node:assert/strict";
import { loadCommands } from "../../src/cli/tap_ctl/main.ts";
import { tapdiskCommand } from "../../src/cli/tapdisk/main.ts";
import { VHD_UTIL } from "../../src/cli/vhd_util/main.ts";
import { run, withTempDir } from "../support/tools.ts";

// Loaded here because Deno reports a library that is loaded within a test as a leak.
const TAP_CTL = await loadCommands();
const ROOT = new URL("../../", import.meta.url).pathname;
const FILES = ["mod.ts", "src/cli/dispatch.ts", "src/cli/getopt.ts", "src/cli/progress.ts"];

Deno.test("the examples in the documentation run", () =>
  withTempDir(async (folder) => {
    // Deno assembles the imports of the examples and imports more than they use.
    const args = ["test", "--doc", "--no-check", "-A", ...FILES];
    const { code, stdout, stderr } = await run(Deno.execPath(), args, {
      cwd: ROOT,
      env: { TMPDIR: folder, NO_COLOR: "1" },
    });
    assert.equal(code, 0, stdout + stderr);
    assert.match(stdout, / 10 passed/);
  }));

Deno.test("docs/images.md lists the commands that have --parent-root", async () => {
  const text = Deno.readTextFileSync(`${ROOT}docs/images.md`);
  const listed = (program: string): string[] => {
    const row = new RegExp(`^\\| ${program} +\\| (.*?) *\\|$`, "m").exec(text)?.[1] ?? "";
    return row.split(", ").sort();
  };
  const vhdUtil = await Promise.all([...VHD_UTIL.subcommands.values()].map((load) => load()));
  const follow = vhdUtil.filter(({ followsParents }) => followsParents).map(({ name }) => name);
  assert.deepEqual(listed("vhd-util"), follow.sort());
  const having = [...TAP_CTL, tapdiskCommand()]
    .filter(({ options }) => options.some(({ long }) => long === "--parent-root"))
    .map((command) => command.name().replace("tap-ctl ", ""));
  assert.deepEqual([...listed("tap-ctl"), ...listed("tapdisk")].sort(), having.sort());
});

Deno.test("the README is short, and documents name files that exist", () => {
  const readme = Deno.readTextFileSync(`${ROOT}README.md`);
  assert.ok(readme.split("\n").length <= 250);
  const documents = [...Deno.readDirSync(`${ROOT}docs`)].filter(({ isFile }) => isFile)
    .map(({ name }) => `docs/${name}`);
  const named = ["README.md", ...documents].flatMap((document) => {
    const text = Deno.readTextFileSync(`${ROOT}${document}`);
    const folder = document.slice(0, document.lastIndexOf("/") + 1);
    return [
      ...Array.from(
        text.matchAll(/`((?:src|ffi|tests|scripts|docs)\/[\w./-]+)`/g),
        ([, path]) => path,
      ),
      ...Array.from(text.matchAll(/\]\(([\w./-]+)\)/g), ([, path]) => folder + path),
    ];
  });
  assert.ok(named.length > 20);
  const gone = named.filter((path) => !exists(path));
  assert.deepEqual(gone, []);
});

function exists(path: string): boolean {
  try {
    Deno.statSync(ROOT + path);
    return true;
  } catch {
    return false;
  }
}
