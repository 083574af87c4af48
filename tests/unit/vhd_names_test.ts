/**
 * vhd-util with images and folders whose names are not UTF-8.
 *
 * @module
 */
import assert from "node:assert/strict";
import { encodeName } from "../../ffi/names.ts";
import { namesInFolder, renamePath } from "../../ffi/paths.ts";
import { withTempDir } from "../support/tools.ts";
import { type ProgramResult, vhdUtil } from "../support/vhd.ts";

const BASE = "b\udce4se.vhd";
const CHILD = "c\udcff\udc80.vhd";

async function ok(...args: string[]): Promise<ProgramResult> {
  const result = await vhdUtil(...args);
  assert.equal(result.code, 0, `${args.join(" ")}: ${result.stdout}${result.stderr}`);
  return result;
}

/** Calls `body` in a folder with such a name, with an image and its child. */
async function withImages(body: (folder: string) => Promise<void>): Promise<void> {
  await withTempDir(async (parent) => {
    const folder = `${parent}/d\udce4`;
    Deno.mkdirSync(`${parent}/d`);
    renamePath(`${parent}/d`, folder);
    await ok("create", "-n", `${folder}/${BASE}`, "-s", "4");
    await ok("snapshot", "-n", `${folder}/${CHILD}`, "-p", `${folder}/${BASE}`);
    await body(folder);
  });
}

Deno.test("names that are no UTF-8: made, found and opened, with their parents", async () => {
  await withImages(async (folder) => {
    const child = `${folder}/${CHILD}`;
    assert.deepEqual(namesInFolder(folder).sort(), [BASE, CHILD].sort());
    const facts = JSON.parse((await ok("query", "--json", "-n", child)).stdout);
    assert.equal(facts.path, child);
    assert.equal(facts.parent, `${folder}/${BASE}`);
    assert.equal(facts.chainDepth, 2);
    await ok("check", "-p", "-b", "-n", child);
    await ok("modify", "-n", child, "-p", `${folder}/${BASE}`);
    await ok("resize", "-n", child, "-s", "8", "-j", `${folder}/j\udc90`);
    await ok("copy", "-n", child, "-N", `${folder}/w\udcfe.vhd`);
    await ok("coalesce", "-n", child);
    assert.deepEqual(namesInFolder(folder).sort(), [BASE, CHILD, "w\udcfe.vhd"].sort());
  });
});

Deno.test("names that are no UTF-8: scan and tree list them all, exactly in JSON", async () => {
  await withImages(async (folder) => {
    const pattern = `${folder}/*.vhd`;
    const scanned = JSON.parse((await ok("scan", "-f", "--json", "-m", pattern)).stdout);
    assert.deepEqual(
      scanned.map(({ vhd, parent }: { vhd: string; parent: string | null }) => [vhd, parent]),
      [[`${folder}/${BASE}`, null], [`${folder}/${CHILD}`, BASE]],
    );
    const [root] = JSON.parse((await ok("tree", "--json", folder)).stdout);
    assert.equal(root.vhd, `${folder}/${BASE}`);
    assert.equal(root.children[0].vhd, `${folder}/${CHILD}`);
    const lines = (await ok("scan", "-f", "-p", "-m", pattern)).stdout.split("\n");
    assert.equal(lines.length, 3);
    const { stdout, stdoutBytes } = await ok("scan", "-f", "--json", "-m", pattern);
    assert.ok(stdout.includes(String.raw`d\udce4/b\udce4se.vhd`));
    assert.ok(stdoutBytes.every((byte) => byte < 0x80));
    assert.equal(encodeName(JSON.parse(stdout)[1].vhd).at(-5), 0x80);
  });
});
