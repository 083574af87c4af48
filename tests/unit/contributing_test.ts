/**
 * The examples of CONTRIBUTING.md are inserted into a copy of the tree, type-checked and run. A
 * `ts` block is a file, whose name is in the block; a `diff` block adds lines to a file, next to
 * lines that it repeats.
 *
 * @module
 */
import assert from "node:assert/strict";
import { ControlBench } from "../support/control.ts";
import { runSession, stepsOf } from "../support/sessions.ts";
import { run, withTempDir } from "../support/tools.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const COPIED = ["src", "ffi", "tests/support", "mod.ts", "deno.json", "deno.lock"];
const PROGRAMS = ["tap-ctl", "vhd-util"];

interface Block {
  readonly path: string;
  readonly text: string;
}

function blocksOf(markdown: string, language: string): Block[] {
  const pattern = new RegExp(`^\`\`\`${language} (\\S+)\\n(.*?)^\`\`\`$`, "gms");
  return Array.from(markdown.matchAll(pattern), ([, path, text]) => ({ path, text }));
}

async function copyTree(to: string): Promise<void> {
  for (const name of COPIED) {
    const folder = `${to}/${name}`.replace(/[^/]*$/, "");
    Deno.mkdirSync(folder, { recursive: true });
    const { code, stderr } = await run("cp", ["-r", `${ROOT}${name}`, folder]);
    assert.equal(code, 0, stderr);
  }
}

/** Applies a diff. The context lines must occur in the file, adjacent and exactly once. */
function applyDiff(folder: string, { path, text }: Block): void {
  for (const hunk of text.split(/^@@\n/m)) {
    const lines = hunk.trimEnd().split("\n");
    assert.ok(lines.every((line) => /^[+ ]/.test(line)), `${path}: ${hunk}`);
    const join = (some: string[]): string => some.map((line) => `${line.slice(1)}\n`).join("");
    const before = join(lines.filter((line) => line.startsWith(" ")));
    const parts = Deno.readTextFileSync(`${folder}/${path}`).split(before);
    assert.equal(parts.length, 2, `${path} has this ${parts.length - 1} times:\n${before}`);
    Deno.writeTextFileSync(`${folder}/${path}`, parts.join(join(lines)));
  }
}

function putExamples(folder: string, markdown: string): void {
  for (const { path, text } of blocksOf(markdown, "ts")) {
    Deno.mkdirSync(`${folder}/${path}`.replace(/[^/]*$/, ""), { recursive: true });
    Deno.writeTextFileSync(`${folder}/${path}`, text, { createNew: true });
  }
  for (const block of blocksOf(markdown, "diff")) applyDiff(folder, block);
}

/** Writes programs that run the sources, in the place of the build's output. */
function putPrograms(folder: string): void {
  Deno.mkdirSync(`${folder}/dist`);
  const command = `exec ${Deno.execPath()} run -A --no-check --quiet ${folder}/src/main.ts`;
  for (const name of PROGRAMS) {
    const text = `#!/bin/sh\n${command} ${name} "$@"\n`;
    Deno.writeTextFileSync(`${folder}/dist/${name}`, text, { mode: 0o755 });
  }
}

Deno.test("the examples of CONTRIBUTING.md pass the checks and do what it says", () =>
  withTempDir(async (folder) => {
    const markdown = Deno.readTextFileSync(`${ROOT}CONTRIBUTING.md`);
    const files = blocksOf(markdown, "ts").map(({ path }) => path);
    assert.ok(files.length >= 6, `${files}`);
    await copyTree(folder);
    putExamples(folder, markdown);
    putPrograms(folder);
    const tests = files.filter((path) => path.endsWith("_test.ts"));
    for (const args of [["lint", "-q", ...files], ["test", "-A", "src/main.ts", ...tests]]) {
      const { code, stdout, stderr } = await run(Deno.execPath(), args, { cwd: folder });
      assert.equal(code, 0, stdout + stderr);
    }
    const tour = `${folder}/tour`;
    try {
      await runSession(stepsOf(markdown), { cwd: folder, tour });
    } finally {
      await new ControlBench(tour).end();
    }
  }));

Deno.test("CONTRIBUTING.md is short, and names files that there are", () => {
  const markdown = Deno.readTextFileSync(`${ROOT}CONTRIBUTING.md`);
  const examples = blocksOf(markdown, "ts").map(({ path }) => path);
  assert.ok(markdown.split("\n").length <= 251);
  const named = markdown.match(/\b(?:src|tests|docs|scripts|ffi)\/[\w/.-]*\w/g) ?? [];
  for (const path of named.filter((name) => !examples.includes(name))) {
    assert.ok(Deno.statSync(`${ROOT}${path}`), path);
  }
});
