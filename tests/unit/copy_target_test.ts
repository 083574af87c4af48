/** A disk is not copied over a file that it is read from. */
import assert from "node:assert/strict";
import { snapshotImage } from "../../src/images/change.ts";
import { convertImage } from "../../src/images/convert.ts";
import { replaceRaw } from "../../src/images/replace_raw.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { allowParentsIn } from "../../src/files/confinement.ts";
import { osStorage } from "../../src/files/storage.ts";
import { loops, withLoopDevice } from "../support/loop_device.ts";
import { withTempDir } from "../support/tools.ts";

const MIB = 1 << 20;

function withBase(fn: (folder: string, content: Uint8Array) => Promise<void>): Promise<void> {
  return withTempDir(async (folder) => {
    const content = new Uint8Array(4 * MIB).fill(3, 1000, 3 * MIB);
    Deno.writeFileSync(`${folder}/base.raw`, content);
    await fn(folder, content);
  });
}

for (const type of ["qcow", "qcow2", "vhd"]) {
  Deno.test(`a raw file below a ${type}, and the ${type}, are not replaced by its disk`, () =>
    withBase(async (folder, content) => {
      const [base, child] = [`${folder}/base.raw`, `${folder}/child`];
      snapshotImage(`aio:${base}`, `${type}:${child}`);
      Deno.symlinkSync(base, `${folder}/symbolic`);
      Deno.linkSync(base, `${folder}/hard`);
      const bytes = Deno.readFileSync(child);
      for (const path of [base, `${folder}/symbolic`, `${folder}/hard`, child]) {
        await assert.rejects(replaceRaw(`${type}:${child}`, path), /it is read from there/);
      }
      assert.deepEqual(Deno.readFileSync(base), content);
      assert.deepEqual(Deno.readFileSync(child), bytes);
      Deno.writeFileSync(`${folder}/other`, new Uint8Array(9));
      await replaceRaw(`${type}:${child}`, `${folder}/other`);
      assert.deepEqual(Deno.readFileSync(`${folder}/other`), content);
    }));
}

Deno.test("the data file of a qcow2 is not replaced by its disk", () =>
  withBase(async (folder, content) => {
    createQcow2(`${folder}/a.qcow2`, {
      storage: osStorage,
      sizeBytes: 4 * MIB,
      dataFile: { name: "base.raw", raw: true },
    });
    await assert.rejects(
      replaceRaw(`qcow2:${folder}/a.qcow2`, `${folder}/base.raw`),
      /it is read from there/,
    );
    assert.deepEqual(Deno.readFileSync(`${folder}/base.raw`), content);
  }));

Deno.test({
  name: `a block device is not replaced by its own disk, nor by one above it${loops.suffix}`,
  ignore: loops.ignore,
  fn: () =>
    withTempDir((folder) =>
      withLoopDevice(`${folder}/file`, 4 * MIB, async (device) => {
        const content = new Uint8Array(4 * MIB).fill(7);
        Deno.writeFileSync(device, content);
        snapshotImage(`aio:${device}`, `qcow2:${folder}/child`);
        const before = allowParentsIn(["/dev"]);
        for (const from of [`aio:${device}`, `qcow2:${folder}/child`]) {
          for (const to of [`aio:${device}`, `qcow2:${device}`]) {
            await assert.rejects(convertImage(from, to), /it is read from there/);
          }
        }
        allowParentsIn(before);
        assert.deepEqual(Deno.readFileSync(device), content);
      })
    ),
});
