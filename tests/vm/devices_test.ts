/**
 * Block devices on a real kernel: one machine with Debian's kernel runs the scripts of
 * tests/vm/guest, and each of their facts is a test here. Then qemu-img and debugfs check the
 * resulting images from outside.
 */

import assert from "node:assert/strict";
import { needs, run, runOk, withTempDir } from "../support/tools.ts";
import { testInMachine } from "./support/suite.ts";

const PARTS = [
  { name: "ublk", command: ["device.sh", "ublk"] },
  { name: "nbd", command: ["device.sh", "nbd"] },
  { name: "lvm", command: ["lvm.sh", "/dev/vdb"] },
];
const NFS = { name: "nfs", command: ["nfs.sh"], packages: ["nfs-kernel-server", "netbase"] };

const outFolder = await testInMachine([...PARTS, NFS]);
if (outFolder !== null) {
  for (const { name } of PARTS) testImage(name, `${outFolder}/${name}`);
}

/** Checks the contents of a device's image from outside the machine. */
function testImage(name: string, folder: string): void {
  const compared = needs("qemu-img");
  Deno.test({
    name: `${name}: qemu-img finds in the image what the device had${compared.suffix}`,
    ignore: compared.ignore,
    async fn() {
      const formats = ["-f", "raw", "-F", "vpc"];
      const images = [`${folder}/device.raw`, `${folder}/disk.vhd`];
      assert.match(await runOk("qemu-img", ["compare", ...formats, ...images]), /identical/);
    },
  });
  const dumped = needs("qemu-img", "debugfs");
  Deno.test({
    name: `${name}: debugfs finds the files in the image${dumped.suffix}`,
    ignore: dumped.ignore,
    fn: () =>
      withTempDir(async (temporary) => {
        const raw = `${temporary}/disk.raw`;
        await runOk("qemu-img", ["convert", "-f", "vpc", "-O", "raw", `${folder}/disk.vhd`, raw]);
        await runOk("debugfs", ["-R", `rdump /tree ${temporary}`, raw]);
        const { code, stdout } = await run("diff", [
          "-r",
          `${folder}/tree`,
          `${temporary}/tree`,
        ]);
        assert.equal(code, 0, stdout);
      }),
  });
}
