import assert from "node:assert/strict";
import { osStorage } from "../../src/files/storage.ts";
import { PLAT_CODE_W2RU } from "../../src/vhd/format/locator.ts";
import { MAX_CHAIN_DEPTH } from "../../src/vhd/image/chain_walk.ts";
import { putForeignImage } from "../support/foreign_vhd.ts";
import { needsServed, withTapdisks } from "../support/served.ts";
import { binaryPath, run } from "../support/tools.ts";

const { ignore, suffix } = needsServed();

Deno.test({
  name: `a chain of the most layers is served, filters not counted; one more is refused${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      let uuid = putForeignImage(osStorage, `${folder}/0`, {});
      for (let i = 1; i <= MAX_CHAIN_DEPTH; i++) {
        const parent = { uuid, name: `${i - 1}` };
        const locators = [{ code: PLAT_CODE_W2RU, path: `./${i - 1}` }];
        uuid = putForeignImage(osStorage, `${folder}/${i}`, { parent, locators });
      }
      const deepest = `${folder}/${MAX_CHAIN_DEPTH - 1}`;
      for (const stack of ["vhd:", "log:vhd:"]) {
        await tapdisks.stop(await tapdisks.serve(`${stack}${deepest}`));
        await assert.rejects(
          tapdisks.serve(`${stack}${folder}/${MAX_CHAIN_DEPTH}`),
          (error) =>
            error instanceof Error && /more than 256 layers/.test(error.message) &&
            !/symbolic/.test(error.message),
        );
      }
      const args = ["snapshot", "-n", `${folder}/new`, "-p", deepest, "-e"];
      const { code, stderr } = await run(binaryPath("vhd-util"), args);
      assert.equal(code, 40);
      assert.match(stderr, /more than 256 layers/);
      assert.equal(osStorage.exists(`${folder}/new`), false);
    }),
});
