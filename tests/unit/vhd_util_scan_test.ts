import assert from "node:assert/strict";
import { expandBraces, expandGlob, patternToRegExp } from "../../src/cli/glob.ts";
import { volumeOfDevice } from "../../src/cli/lvm.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { withTempDir } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

const MIB = 1024 * 1024;

Deno.test("glob: braces, classes, groups, dots, folders", async () => {
  assert.deepEqual(expandBraces("a{b,c{d,e}}f"), ["abf", "acdf", "acef"]);
  assert.deepEqual(expandBraces("{a}\\{b,c}"), ["{a}\\{b,c}"]);
  for (
    const [pattern, yes, no] of [
      ["*.vhd", "a.vhd", "a.vhdx"],
      ["a?c", "abc", "ac"],
      ["[a-c]x", "bx", "dx"],
      ["[!a-c]x", "dx", "ax"],
      ["VHD-@(1|22)", "VHD-22", "VHD-2"],
      ["+(ab)", "abab", "aba"],
      ["a\\*", "a*", "ab"],
      ["a.b+(c)$", "a.bcc$", "axbcc$"],
    ]
  ) {
    assert.ok(patternToRegExp(pattern).test(yes), `${pattern} matches ${yes}`);
    assert.ok(!patternToRegExp(pattern).test(no), `${pattern} does not match ${no}`);
  }
  await withTempDir((folder) => {
    for (const name of ["b.vhd", "a.vhd", ".hidden.vhd", "sub/c.vhd", "a.raw"]) {
      Deno.mkdirSync(`${folder}/sub`, { recursive: true });
      Deno.writeTextFileSync(`${folder}/${name}`, "");
    }
    const names = (pattern: string): string[] =>
      expandGlob(`${folder}/${pattern}`, (path) => assert.fail(path))
        .map((path) => path.slice(folder.length + 1));
    assert.deepEqual(names("*.vhd"), ["a.vhd", "b.vhd"]);
    assert.deepEqual(names(".*.vhd"), [".hidden.vhd"]);
    assert.deepEqual(names("*/*.vhd"), ["sub/c.vhd"]);
    assert.deepEqual(names("{b,a}.{vhd,raw}"), ["b.vhd", "a.vhd", "a.raw"]);
    assert.deepEqual(names("nosuch/*"), []);
  });
});

Deno.test("the volume that a device's name stands for", () => {
  assert.equal(volumeOfDevice("/dev/mapper/VG_XenStorage--a--b-VHD--1--2"), "VHD-1-2");
  assert.equal(volumeOfDevice("VG-leaf"), "leaf");
  assert.equal(volumeOfDevice("plain"), null);
});

/** a ← b (hidden) ← c, b ← d; e alone and fixed; lost, whose parent is missing. */
function makeImages(folder: string): void {
  const at = (name: string): string => `${folder}/${name}.vhd`;
  createDynamic(at("a"), { sizeBytes: 4 * MIB });
  for (const [name, parent] of [["b", "a"], ["c", "b"], ["d", "b"]]) {
    snapshot(at(name), { parent: at(parent), keepEmptyParent: true });
  }
  createFixed(at("e"), { sizeBytes: 2 * MIB, sparse: true });
  createDynamic(at("gone"), { sizeBytes: 4 * MIB });
  snapshot(at("lost"), { parent: at("gone"), keepEmptyParent: true });
  Deno.removeSync(at("gone"));
}

const columns = (text: string): string[] => text.replace(/ capacity=\S+ size=\S+/g, "").split("\n");

Deno.test("scan -p draws chains, hidden brothers last, and says which parents are not there", () =>
  withTempDir(async (folder) => {
    makeImages(folder);
    await vhdUtil("set", "-n", `${folder}/c.vhd`, "-f", "hidden", "-v", "1");
    const { code, stdout } = await vhdUtil("scan", "-p", "-m", `${folder}/*.vhd`);
    assert.equal(code, 0);
    assert.deepEqual(columns(stdout), [
      "vhd=a.vhd hidden=0 parent=none",
      "   vhd=b.vhd hidden=0 parent=a.vhd",
      "      vhd=d.vhd hidden=0 parent=b.vhd",
      "      vhd=c.vhd hidden=1 parent=b.vhd",
      "vhd=e.vhd hidden=0 parent=none",
      "vhd=lost.vhd hidden=0 parent=gone.vhd (not found in scan)",
      "",
    ]);
  }));

Deno.test("scan -f goes past a fixed image, in another folder too, and -a finds parents there", () =>
  withTempDir(async (folder) => {
    makeImages(folder);
    const all = await vhdUtil("scan", "-f", "-m", `${folder}/*.vhd`);
    assert.equal(all.code, 0);
    assert.equal(columns(all.stdout)[4], "vhd=e.vhd hidden=0 parent=none");
    const { code, stdout } = await vhdUtil("scan", "-f", "-a", `${folder}/c.vhd`);
    assert.equal(code, 0);
    assert.deepEqual(columns(stdout).slice(0, 3), [
      "vhd=c.vhd hidden=0 parent=b.vhd",
      "vhd=b.vhd hidden=0 parent=a.vhd",
      "vhd=a.vhd hidden=0 parent=none",
    ]);
  }));

Deno.test("scan stops at the first error with its number, or goes on with -c", () =>
  withTempDir(async (folder) => {
    makeImages(folder);
    Deno.writeTextFileSync(`${folder}/aa.vhd`, "no image");
    const stopped = await vhdUtil("scan", "-f", "-m", `${folder}/*.vhd`);
    assert.equal(stopped.code, 22);
    assert.match(stopped.stdout, /aa\.vhd scan-error=-22 error-message='opening file'\n$/);
    const going = await vhdUtil("scan", "-f", "-c", "-m", `${folder}/*.vhd`, `${folder}/nosuch`);
    assert.equal(going.code, 0);
    assert.match(going.stdout, /nosuch scan-error=-2 error-message='failure scanning target'/);
    assert.equal(going.stdout.split("vhd=").length - 1, 8);
    assert.doesNotMatch(going.stdout, /vhd=\. /);
  }));

Deno.test("scan --json has every image and every failure", () =>
  withTempDir(async (folder) => {
    makeImages(folder);
    const options = ["-c", "-M", "--json", "-m", `${folder}/{c,e}.vhd`];
    const { stdout } = await vhdUtil("scan", ...options, `${folder}/nosuch`);
    const [c, e, failed] = JSON.parse(stdout);
    assert.equal(c.vhd, `${folder}/c.vhd`);
    assert.equal(c.parent, Deno.realPathSync(`${folder}/b.vhd`));
    assert.deepEqual([c.capacity, c.hidden, c.marker, c.keyhash], [4 * MIB, false, 0, null]);
    assert.equal(e.parent, null);
    assert.equal(failed.error.code, "ENOENT");
  }));
