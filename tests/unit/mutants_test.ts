/** The patches of the mutation check apply to the product, and change just what they say. */
import assert from "node:assert/strict";
import {
  allMutants,
  KINDS,
  type Mutant,
  parseMutant,
  sampleOf,
  tableOf,
} from "../search/mutants/mutant.ts";
import { splitTest } from "../search/mutants/test_run.ts";
import { Tree } from "../search/mutants/tree.ts";
import { needs, withTempDir } from "../support/tools.ts";

const FEWEST_MUTANTS = 60;
const MOST_CHANGED_LINES = 15;
const ROOT = new URL("../../", import.meta.url);

/** How often each line was added, less how often it was removed; without those that cancel out. */
function netOf(changes: readonly string[]): Map<string, number> {
  const net = new Map<string, number>();
  for (const change of changes) {
    const line = change.slice(1);
    const count = (net.get(line) ?? 0) + (change.startsWith("+") ? 1 : -1);
    if (count === 0) net.delete(line);
    else net.set(line, count);
  }
  return net;
}

function requireWellFormed({ name, fault, tests, files, changes }: Mutant): void {
  assert.match(name, /^[a-z0-9-]+$/);
  assert.match(fault, /^[^A-Z].*[^.]$|^(?:WRITE_ZEROES|FUA)/, `${name}: the fault is no sentence`);
  assert.equal(files.length, 1, `${name} changes one file`);
  assert.match(files[0], /^(?:src|ffi)\/(?!testing\/)/, `${name} changes the product`);
  assert.ok(changes.length > 0 && changes.length <= MOST_CHANGED_LINES, `${name} is small`);
  for (const test of tests) {
    const [file, names] = splitTest(test);
    const text = Deno.readTextFileSync(new URL(file, ROOT));
    assert.match(file, /_test\.ts$/, name);
    // The number of a seed is not in the text of the file.
    const start = (names ?? "").split(": ")[0].replace(/\d+$/, "");
    assert.ok(text.includes(start), `${name}: no test of ${file} has '${names}' in its name`);
  }
}

const git = needs("git");

Deno.test({
  name: `mutants: each patch has a whole head, applies, and changes what it says${git.suffix}`,
  ignore: git.ignore,
  fn: () =>
    withTempDir((folder) => {
      const mutants = allMutants();
      assert.ok(mutants.length >= FEWEST_MUTANTS, `${mutants.length} mutants`);
      const tree = new Tree(folder, [...new Set(mutants.flatMap(({ files }) => files))]);
      for (const mutant of mutants) {
        requireWellFormed(mutant);
        tree.apply(mutant);
        const changed = tree.changesOf(mutant.files[0]);
        assert.ok(changed.length > 0, `${mutant.name} changes nothing`);
        assert.deepEqual(netOf(changed), netOf(mutant.changes), mutant.name);
        tree.restore();
      }
      return Promise.resolve();
    }),
});

Deno.test("mutants: all kinds of faults are planted, in all parts of the product", () => {
  const mutants = allMutants();
  assert.deepEqual([...new Set(mutants.map(({ kind }) => kind))].toSorted(), KINDS.toSorted());
  const parts = mutants.map(({ files: [file] }) => file.split("/").slice(0, 2).join("/"));
  for (
    const part of [
      ...["src/files", "src/vhd", "src/queue", "src/driver", "src/bulk", "src/vbd"],
      ...["src/frontend", "src/control", "src/cli", "src/log", "src/scheduler"],
      ...["src/metrics", "src/rated"],
    ]
  ) assert.ok(parts.includes(part), part);
  assert.ok(parts.some((part) => part.startsWith("ffi/")));
});

Deno.test("mutants: samples of days that follow each other have all mutants", () => {
  const mutants = allMutants();
  for (const size of [1, 7, 8, 20, mutants.length]) {
    const seen = new Set<string>();
    for (let day = 20_000; day < 20_000 + Math.ceil(mutants.length / size); day++) {
      const sample = sampleOf(mutants, size, day);
      assert.equal(new Set(sample).size, size);
      for (const { name } of sample) seen.add(name);
    }
    assert.equal(seen.size, mutants.length, `samples of ${size}`);
  }
});

Deno.test("mutants: a head that is not complete is refused", () => {
  const diff = "--- a/src/x.ts\n+++ b/src/x.ts\n@@ -1 +1 @@\n-a\n+b\n";
  const head = "Fault: it is wrong\nKind: encoding\nTest: tests/unit/x_test.ts\n";
  const { fault, kind, tests, files, changes } = parseMutant("x", `${head}\n${diff}`);
  assert.deepEqual([fault, kind, tests], ["it is wrong", "encoding", ["tests/unit/x_test.ts"]]);
  assert.deepEqual([files, changes], [["src/x.ts"], ["-a", "+b"]]);
  for (const line of head.trimEnd().split("\n")) {
    assert.throws(() => parseMutant("x", `${head.replace(`${line}\n`, "")}\n${diff}`), TypeError);
  }
  assert.throws(() => parseMutant("x", `${head}Tests: y\n\n${diff}`), TypeError);
  assert.throws(() => parseMutant("x", `${head.replace("encoding", "odd")}\n${diff}`), TypeError);
});

Deno.test("mutants: the table in docs/searching.md has their numbers", () => {
  const page = Deno.readTextFileSync(new URL("docs/searching.md", ROOT));
  const table = tableOf(allMutants());
  assert.ok(page.includes(table), `deno task test:mutants --list prints it:\n${table}`);
});
