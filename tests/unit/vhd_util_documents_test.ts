import assert from "node:assert/strict";
import type { Subcommand } from "../../src/cli/subcommands/command.ts";
import {
  manualPage,
  overviewPage,
  programCompletion,
} from "../../src/cli/subcommands/documents.ts";
import { VHD_UTIL } from "../../src/cli/vhd_util/main.ts";
import { needs, run, runOk, withTempDir } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

async function loadAll(): Promise<Subcommand[]> {
  return await Promise.all([...VHD_UTIL.subcommands.values()].map((load) => load()));
}

Deno.test("every subcommand has help with its options and a worked example", async () => {
  for (const command of await loadAll()) {
    const { code, stdout } = await vhdUtil(command.name, "--help");
    assert.equal(code, 0);
    const words = stdout.replace(/\s+/g, " ");
    for (const { text } of command.options) assert.ok(words.includes(text), text);
    assert.ok(command.example.includes(`$ vhd-util ${command.name} `), command.name);
    const { stdout: usage } = await vhdUtil(command.name, "-h");
    assert.equal(usage, `${command.usage}\n`);
  }
});

Deno.test("help fits a terminal of 80 columns, and descriptions begin in one column", async () => {
  for (const { name } of await loadAll()) {
    const { stdout } = await vhdUtil(name, "--help");
    const [, options = ""] = /\nOptions:\n([^]*?)\n\n/.exec(stdout) ?? [];
    assert.match(options, /--help/);
    for (const line of stdout.split("\n")) assert.ok([...line].length <= 80, line);
    for (const line of options.split("\n")) {
      if (/^ {2}-\S+ \S+$/.test(line)) continue;
      assert.match(line.slice(0, 16), /^ {2}-.* $|^ {16}$/, line);
      assert.match(line.slice(16), /^\S/, line);
    }
  }
  const { stdout: overview } = await vhdUtil("--help");
  for (const line of overview.split("\n")) {
    if (!line.startsWith("COMMAND := ")) assert.ok(line.length <= 80, line);
  }
});

const groff = needs("groff");
Deno.test({
  name: `manual pages are roff without a warning${groff.suffix}`,
  ignore: groff.ignore,
  async fn() {
    const commands = await loadAll();
    for (
      const text of [
        overviewPage(VHD_UTIL, commands),
        ...commands.map((each) => manualPage(VHD_UTIL, each)),
      ]
    ) {
      const { code, stdout, stderr } = await run("groff", [
        "-K",
        "utf8",
        "-man",
        "-ww",
        "-Tutf8",
        "-P-cbou",
      ], {
        stdin: text,
      });
      assert.equal(code, 0);
      assert.equal(stderr, "");
      assert.match(stdout, /SYNOPSIS/);
    }
  },
});

const bash = needs("bash");

/** The completions of bash for the last of these words, in a folder with `disk.vhd`. */
async function complete(...words: string[]): Promise<string[]> {
  const script = programCompletion(VHD_UTIL, await loadAll());
  return await withTempDir(async (folder) => {
    Deno.writeTextFileSync(`${folder}/disk.vhd`, "");
    const list = words.map((word) => `'${word}'`).join(" ");
    const ask = `COMP_WORDS=(vhd-util ${list}); COMP_CWORD=${words.length}; _vhd_util; ` +
      `printf '%s\\n' "\${COMPREPLY[@]}"`;
    const stdout = await runOk("bash", ["-c", `${script}\n${ask}`], { cwd: folder });
    return stdout.split("\n").filter(Boolean);
  });
}

Deno.test({
  name: `bash completes subcommands, options and files${bash.suffix}`,
  ignore: bash.ignore,
  async fn() {
    assert.deepEqual(await complete("c"), ["create", "coalesce", "copy", "check"].sort(byOrder));
    assert.deepEqual(await complete("map", "--"), [
      "--json",
      "--svg",
      "--html",
      "--output",
      "--parent-root",
      "--help",
    ]);
    assert.deepEqual(await complete("coalesce", "-n", ""), ["disk.vhd"]);
    assert.deepEqual(await complete("create", "-s", ""), []);
    assert.deepEqual(await complete("scan", "-f", "d"), ["disk.vhd"]);
  },
});

function byOrder(a: string, b: string): number {
  const names = [...VHD_UTIL.subcommands.keys()];
  return names.indexOf(a) - names.indexOf(b);
}
