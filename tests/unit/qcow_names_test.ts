/** Names of files in QCOW2 and QCOW images are bytes, which may not be UTF-8. */
import assert from "node:assert/strict";
import { osStorage } from "../../src/files/storage.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { locateBacking, locateDataFile } from "../../src/qcow2/image/named_files.ts";
import { snapshotImage } from "../../src/images/change.ts";
import { imageInfo } from "../../src/images/info.ts";
import { rebaseImage } from "../../src/images/rebase.ts";
import { run, withTempDir } from "../support/tools.ts";

const MIB = 1 << 20;
const BASE = "b\udce4\udcff.base";

/** Runs a command of bash in a folder; \xe4 is a byte there. */
async function bash(folder: string, command: string): Promise<void> {
  const { code, stderr } = await run("bash", ["-c", command], { cwd: folder });
  assert.equal(code, 0, stderr);
}

Deno.test("QCOW2: names of the backing file and the data file keep their bytes", () =>
  withTempDir(async (folder) => {
    createQcow2(`${folder}/${BASE}`, { storage: osStorage, sizeBytes: MIB });
    await bash(folder, "test -e $'b\\xe4\\xff.base'");
    const backing = { name: BASE, format: "qcow2" };
    createQcow2(`${folder}/child`, { storage: osStorage, sizeBytes: MIB, backing });
    await bash(folder, "LC_ALL=C grep -aq $'b\\xe4\\xff.base' child");
    const image = openQcow2(`${folder}/child`);
    assert.equal(image.backing?.name, BASE);
    assert.equal(locateBacking(image)?.path, `${Deno.realPathSync(folder)}/${BASE}`);
    image.close();
    await bash(folder, "truncate -s 1M $'d\\xe4'");
    const dataFile = { name: "d\udce4", raw: true };
    createQcow2(`${folder}/apart`, { storage: osStorage, sizeBytes: MIB, dataFile });
    const apart = openQcow2(`${folder}/apart`);
    assert.equal(locateDataFile(apart)?.path, `${Deno.realPathSync(folder)}/d\udce4`);
    apart.close();
  }));

for (const type of ["qcow2", "qcow"]) {
  Deno.test(`td-util: a ${type} is put on an image whose name is not UTF-8, and on another`, () =>
    withTempDir(async (folder) => {
      createQcow2(`${folder}/base`, { storage: osStorage, sizeBytes: MIB });
      await bash(folder, "truncate -s 1M $'b\\xe4\\xff.base' $'c\\xe4.base'");
      const child = `${type}:${folder}/child`;
      snapshotImage(`aio:${folder}/${BASE}`, child);
      const below = async (): Promise<string> => (await imageInfo(child)).layers[1].name;
      assert.equal(await below(), `aio:${Deno.realPathSync(folder)}/${BASE}`);
      await rebaseImage(child, `aio:${folder}/c\udce4.base`, {});
      assert.equal(await below(), `aio:${Deno.realPathSync(folder)}/c\udce4.base`);
    }));
}
