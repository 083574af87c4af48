import assert from "node:assert/strict";
import { tapCtlCompletion, tapCtlPage, tapdiskPage } from "../../src/cli/tap_ctl/documents.ts";
import { loadCommands } from "../../src/cli/tap_ctl/main.ts";
import { tapdiskCommand } from "../../src/cli/tapdisk/main.ts";
import { needs, run, runOk } from "../support/tools.ts";

// Loaded here because Deno reports a library that is loaded within a test as a leak.
const COMMANDS = await loadCommands();

Deno.test("tap-ctl(8) has every command with its options and notes", () => {
  const page = tapCtlPage(COMMANDS);
  for (
    const part of [".SS tap\\-ctl create [options]", ".B \\-\\-device <kind>", "ublkb0"]
  ) {
    assert.ok(page.includes(part), part);
  }
  assert.match(page, /^\.SS tap\\-ctl restore \[options\] \[name\.\.\.\]$/m);
  assert.match(page, /^Prints each name and its block device/m);
});

const groff = needs("groff");
Deno.test({
  name: `tap-ctl(8) and tapdisk(8) are roff without a warning${groff.suffix}`,
  ignore: groff.ignore,
  async fn() {
    for (const text of [tapCtlPage(COMMANDS), tapdiskPage(tapdiskCommand())]) {
      const options = ["-K", "utf8", "-man", "-ww", "-Tutf8", "-P-cbou"];
      const { code, stdout, stderr } = await run("groff", options, { stdin: text });
      assert.equal(code, 0);
      assert.equal(stderr, "");
      assert.match(stdout, /SYNOPSIS/);
    }
  },
});

const bash = needs("bash");
Deno.test({
  name: `bash completes commands and options of tap-ctl${bash.suffix}`,
  ignore: bash.ignore,
  async fn() {
    const script = tapCtlCompletion(COMMANDS);
    const complete = async (...words: string[]): Promise<string[]> => {
      const list = words.map((word) => `'${word}'`).join(" ");
      const ask = `COMP_WORDS=(tap-ctl ${list}); COMP_CWORD=${words.length}; _tap_ctl; ` +
        `printf '%s\\n' "\${COMPREPLY[@]}"`;
      const stdout = await runOk("bash", ["-c", `${script}\n${ask}`], { cwd: folder });
      return stdout.split("\n").filter(Boolean);
    };
    const folder = Deno.makeTempDirSync();
    Deno.writeTextFileSync(`${folder}/disk.key`, "");
    assert.deepEqual(await complete("rest"), ["restore"]);
    assert.deepEqual(await complete("restore", "--s"), ["--stop"]);
    assert.deepEqual(await complete("create", "-a", "v"), ["valve:", "vhd:", "vhdx:"]);
    assert.deepEqual(await complete("create", "-a", "nbd"), [
      "nbd:",
      "nbd+unix:",
      "nbds:",
      "nbds+unix:",
    ]);
    assert.deepEqual(await complete("create", "-a", "vhd", ":"), ["disk.key"]);
    assert.deepEqual(await complete("create", "-a", "vhd", ":", "di"), ["disk.key"]);
    assert.deepEqual(await complete("create", "-t", ""), []);
    assert.deepEqual(await complete("create", "-k", ""), ["disk.key"]);
    Deno.removeSync(folder, { recursive: true });
  },
});
