/** SECURITY.md names files that exist and limits that are in the code, and no code is loaded from outside. */
import assert from "node:assert/strict";
import { sourceFiles } from "../support/source_files.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const TEXT = Deno.readTextFileSync(`${ROOT}SECURITY.md`);

function read(path: string): string {
  return Deno.readTextFileSync(ROOT + path);
}

Deno.test("SECURITY.md: each statement names code and tests that exist", () => {
  const named = [...TEXT.matchAll(/`((?:src|ffi|tests|scripts|packaging)\/[\w./-]+)`/g)];
  const paths = new Set(named.map(([, path]) => path));
  assert.ok(paths.size > 50, `only ${paths.size} paths`);
  for (const path of paths) assert.ok(Deno.statSync(ROOT + path).isFile, path);
  // A paragraph or a row that names code says which test holds it.
  for (const part of TEXT.split(/\n(?=- |\n)/)) {
    if (/\bCode: /.test(part)) assert.match(part, /Tests?:\s+`tests\//, part);
  }
});

Deno.test("SECURITY.md: limits have the value that is in the code", () => {
  const section = TEXT.slice(TEXT.indexOf("## Limits"), TEXT.indexOf("## Privileges"));
  const rows = section.split("\n").filter((line) => /^\| \w/.test(line)).slice(1)
    .map((line) => line.split("|").map((cell) => cell.trim().replace(/^`(.*)`$/, "$1")));
  assert.ok(rows.length >= 20, `only ${rows.length} rows`);
  for (const [, , what, , inCode, file, test] of rows) {
    assert.ok(read(file).includes(inCode), `${what}: ${file} has no ${inCode}`);
    assert.ok(Deno.statSync(ROOT + test).isFile, `${what}: ${test}`);
  }
});

Deno.test("SECURITY.md: it has each variable of the environment that is read", () => {
  const used = sourceFiles("src", "ffi", "mod.ts").flatMap(({ text }) => [
    ...text.matchAll(/"(BLKTAP_[A-Z_]+)"/g),
  ]).map(([, name]) => name).filter((name) => name !== "BLKTAP_NAME");
  assert.ok(used.length > 5);
  for (const name of used) assert.ok(TEXT.includes(`\`${name}\``), name);
});

Deno.test("no import has a name that is computed, and code is made in two places only", () => {
  const computed: string[] = [];
  const made: string[] = [];
  for (const { path, text } of sourceFiles("src", "ffi", "mod.ts")) {
    for (const [call] of text.matchAll(/\bimport\(\s*[^)"\s]?/g)) {
      if (!/^import\(\s*$/.test(call)) computed.push(path);
    }
    for (const [, name] of text.matchAll(/\bimport\(\s*"([^"]*)"/g)) {
      if (!/^\.{1,2}\/|^(?:commander|cli-progress)$/.test(name)) computed.push(`${path}: ${name}`);
    }
    for (const [, from] of text.matchAll(/ from "([^"]*)"/g)) {
      const isKnown = /^\.{1,2}\/|^node:(?:crypto|fs\/promises|zlib)$|^(?:commander|cli-progress)$/;
      // What the script of the page imports runs in the browser.
      if (from === "uplot" && path.startsWith("src/web/client/")) continue;
      if (!isKnown.test(from) && !path.endsWith("mod.ts")) computed.push(`${path}: ${from}`);
    }
    if (/\bnew Function\(|\beval\(|\bnew Worker\(/.test(text)) made.push(path);
  }
  assert.deepEqual(computed, []);
  assert.deepEqual(made.toSorted(), ["ffi/checked_calls.ts", "src/images/compressors.ts"]);
});

Deno.test("npm packages are used by commands, not by what serves disks", () => {
  const users = sourceFiles("src", "ffi", "mod.ts")
    .filter(({ text }) => /(?:from |import\()"(?:commander|cli-progress)"/.test(text))
    .map(({ path }) => path);
  assert.ok(users.length > 0);
  assert.deepEqual(users.filter((path) => !path.startsWith("src/cli/")), []);
});
