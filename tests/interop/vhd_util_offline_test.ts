/** Changes to images by vhd-util, on block devices and checked by qemu-img. */

import assert from "node:assert/strict";
import { loops, withLoopDevice } from "../support/loop_device.ts";
import { needs, runOk, withTempDir } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

async function call(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await vhdUtil(...args);
  assert.equal(code, 0, `${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

Deno.test({
  name: `images and journals on block devices${loops.suffix}`,
  ignore: loops.ignore,
  async fn() {
    await withTempDir(async (folder) => {
      const size = 24 << 20;
      await withLoopDevice(`${folder}/disk`, size, async (disk) => {
        await withLoopDevice(`${folder}/journal`, 6 << 20, async (journal) => {
          await call("create", "-n", disk, "-s", "16");
          await call("fill", "-n", disk, "-b", "-f", "0", "-t", "9000");
          await call("set", "-n", disk, "-f", "hidden", "-v", "1");
          const before = (await call("query", "-n", disk, "-vaf")).split("\n");
          assert.deepEqual(before, ["16", "hidden: 1", "3", ""]);
          await call("resize", "-n", disk, "-s", "102400", "-j", journal);
          await call("resize", "-n", disk, "-s", "1024000", "-j", journal);
          assert.equal(await call("query", "-n", disk, "-va"), "1024000\n3\n");
          await call("check", "-n", disk, "-b");
          await call("revert", "-n", disk, "-j", journal);
          assert.equal(await call("query", "-n", disk, "-v"), "1024000\n");
          const full = await vhdUtil("fill", "-n", disk);
          assert.equal(full.code, 28);
          await call("check", "-n", disk);
          await call("modify", "-n", disk, "-z");
          assert.equal(await call("query", "-n", disk, "-a"), "0\n");
          await call("resize", "-n", disk, "-s", "20", "-j", journal);
          await call("modify", "-n", disk, "-s", String(8 << 20));
          await call("check", "-n", disk);
        });
      });
      // Cuts the volume to the end of the footer.
      Deno.truncateSync(`${folder}/disk`, 8 << 20);
      assert.equal(await call("query", "-n", `${folder}/disk`, "-vf"), "20\nhidden: 1\n");
    });
  },
});

const qemu = needs("qemu-img");

Deno.test({
  name: `qemu-img reads images that were resized, filled and reparented${qemu.suffix}`,
  ignore: qemu.ignore,
  async fn() {
    await withTempDir(async (folder) => {
      const [base, child, raw] = ["base.vhd", "child.vhd", "raw"].map((name) =>
        `${folder}/${name}`
      );
      const data = new Uint8Array(16 << 20);
      for (let at = 0; at < data.length; at += 65536) data.fill(at >>> 16, at, at + 4096);
      Deno.writeFileSync(raw, data);
      await runOk("qemu-img", [
        "convert",
        "-O",
        "vpc",
        "-o",
        "force_size=on",
        raw,
        `${folder}/q.vhd`,
      ]);
      const foreign = await vhdUtil(
        "resize",
        "-n",
        `${folder}/q.vhd`,
        "-s",
        "64",
        "-j",
        `${folder}/j`,
      );
      assert.equal(foreign.code, 22);
      assert.match(foreign.stdout, /q\.vhd not created by xen; resize not supported\n$/);
      await call("create", "-n", base, "-s", "16");
      await call("snapshot", "-n", child, "-p", raw, "-m");
      await call("fill", "-n", child);
      await call("resize", "-n", child, "-s", "4096", "-j", `${folder}/j`);
      await call("modify", "-n", child, "-p", base);
      // qemu-img does not support differencing images. A child with all data reads like a dynamic
      // image.
      const image = Deno.readFileSync(child);
      assert.ok(image.length > data.length);
      await call("resize", "-n", child, "-s", "16", "-j", `${folder}/j`);
      const disk = await vhdUtil("read", "-n", child, "-r", "0", "-c", String(data.length / 512));
      assert.ok(disk.stdoutBytes.every((byte, i) => byte === data[i]));
      await call("resize", "-n", base, "-s", "65536", "-j", `${folder}/j`);
      await call("fill", "-n", base, "-b", "-t", "20000");
      const info = JSON.parse(await runOk("qemu-img", ["info", "--output=json", base]));
      assert.equal(info.format, "vpc");
      const sizeMib = info["virtual-size"] / 1024 ** 2;
      assert.ok(sizeMib > 65500 && sizeMib <= 65536, String(sizeMib));
    });
  },
});
