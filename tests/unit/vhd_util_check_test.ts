/** The exit status of `vhd-util check` with the parents of an image, and which parents it follows. */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { osStorage } from "../../src/files/storage.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { withTempDir } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

const MIB = 1 << 20;

/** A parent and its child; the parent is in a folder of its own. */
function makePair(folder: string): { parent: string; child: string } {
  for (const name of ["in", "out"]) Deno.mkdirSync(`${folder}/${name}`);
  const parent = `${folder}/out/parent.vhd`;
  const child = `${folder}/in/child.vhd`;
  createDynamic(parent, { storage: osStorage, sizeBytes: 4 * MIB });
  snapshot(child, { storage: osStorage, parent });
  return { parent, child };
}

Deno.test("check -p fails for an image whose parent is damaged, check without it does not", () =>
  withTempDir(async (folder) => {
    const { parent, child } = makePair(folder);
    const root = ["--parent-root", folder];
    assert.equal((await vhdUtil("check", "-n", child, "-p", ...root)).code, 0);
    // A byte of the parent's reserved fields, which its checksum does not cover any more.
    const bytes = Deno.readFileSync(parent);
    bytes[bytes.length - 100] = 1;
    Deno.writeFileSync(parent, bytes);
    assert.equal((await vhdUtil("check", "-n", child, ...root)).code, 0);
    const { code, stdout } = await vhdUtil("check", "-n", child, "-p", ...root);
    assert.equal(code, Errno.EINVAL);
    assert.match(stdout, /parent.vhd appears invalid/);
    assert.match(stdout, /error checking parents: -22/);
    const json = await vhdUtil("check", "-n", child, "-p", "--json", ...root);
    assert.equal(json.code, Errno.EINVAL);
    assert.equal(JSON.parse(json.stdout).valid, false);
  }));

Deno.test("check follows no parent out of the folder of the image that was named", () =>
  withTempDir(async (folder) => {
    const { child } = makePair(folder);
    const alone = await vhdUtil("check", "-n", child);
    assert.equal(alone.code, Errno.EINVAL);
    assert.match(alone.stdout, /lies outside of/);
    assert.equal((await vhdUtil("check", "-n", child, "--parent-root", folder)).code, 0);
  }));
