/**
 * A tapdisk opens parents only in the folder tree of its image, or in trees that an option allows.
 */
import assert from "node:assert/strict";
import { createDynamic, snapshot } from "../../mod.ts";
import { binaryPath, run } from "../support/tools.ts";
import { needsServed, withTapdisks } from "../support/served.ts";

const MIB = 1024 * 1024;
const served = needsServed();

Deno.test({
  name: `a tapdisk follows parents where --parent-root or the environment allows${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const [inside, outside] = [`${folder}/in`, `${folder}/out`];
      Deno.mkdirSync(inside);
      Deno.mkdirSync(outside);
      createDynamic(`${outside}/base.vhd`, { sizeBytes: 4 * MIB });
      const parent = `${outside}/base.vhd`;
      snapshot(`${inside}/child.vhd`, { parent, keepEmptyParent: true });
      const image = `vhd:${inside}/child.vhd`;
      await assert.rejects(
        tapdisks.serve(image),
        /in\/child\.vhd.*\(EPERM\); allow it by --parent-root/,
      );
      await assert.rejects(tapdisks.serve(`log:bc:${image}`), /\(EPERM\)/);
      const create = async (env: Record<string, string>, ...options: string[]): Promise<number> => {
        const control = { BLKTAP_CONTROL_DIR: tapdisks.controlFolder, BLKTAP_DEVICE: "none" };
        const args = ["create", "-a", image, ...options];
        const made = await run(binaryPath("tap-ctl"), args, { env: { ...control, ...env } });
        if (made.code !== 0) return made.code;
        const list = await tapdisks.tapCtlOk("list");
        const [, pid, minor] = /pid=(\d+) minor=(\d+) .*child\.vhd/.exec(list) ?? [];
        await tapdisks.tapCtlOk("pause", "-p", pid, "-m", minor);
        await tapdisks.tapCtlOk("unpause", "-p", pid, "-m", minor);
        await tapdisks.tapCtlOk("destroy", "-p", pid, "-m", minor);
        return 0;
      };
      assert.equal(await create({}), 1);
      assert.equal(await create({}, "--parent-root", outside), 0);
      assert.equal(await create({}, "--parent-root", "/nowhere", "--parent-root", "any"), 0);
      assert.equal(await create({ BLKTAP_PARENT_ROOTS: `/nowhere:${outside}` }), 0);
      assert.equal(await create({}, "--parent-root", "a:b"), 22);
    }),
});

Deno.test({
  name:
    `a live snapshot to where its parent may not be is refused, and the disk runs on${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      Deno.mkdirSync(`${folder}/a`);
      Deno.mkdirSync(`${folder}/b`);
      createDynamic(`${folder}/a/base.vhd`, { sizeBytes: 4 * MIB });
      const disk = await tapdisks.serve(`vhd:${folder}/a/base.vhd`);
      const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
      const refused = await tapdisks.tapCtl("snapshot", ...address, "-n", `${folder}/b/top.vhd`);
      assert.equal(refused.code, 1, refused.stderr);
      assert.match(refused.stderr, /lies outside.*--parent-root/);
      assert.throws(() => Deno.statSync(`${folder}/b/top.vhd`), Deno.errors.NotFound);
      assert.match(await tapdisks.tapCtlOk("list"), /state=0 args=vhd:.*\/a\/base\.vhd/);
    }),
});
