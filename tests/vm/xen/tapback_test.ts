/**
 * Disks of guests that xl of Debian 13's Xen gives to tapback: each fact of dom0.sh and tapback.sh is a
 * test, and the contents of the images are checked afterwards.
 *
 *     deno task test:xen
 *
 * @module
 */

import assert from "node:assert/strict";
import { binaryPath, needs, runOk } from "../../support/tools.ts";
import { guestContent, type GuestCopy } from "./guest_content.ts";
import { testXen } from "./xen_suite.ts";

/** 8 MiB rounded to whole cylinders, as in VHDs. tapback.sh has the same number of sectors. */
const DISK_BYTES = 16388 * 512;

/** One request moves up to 1 MiB. tapback.sh discards the sixth MiB, and uses the eighth for a load. */
const COPIES: readonly GuestCopy[] = [
  { from: 2, count: 2, to: 5, blockBytes: 1024 ** 2 },
  { from: 256, count: 16, to: 1000, blockBytes: 4096 },
  { from: 5, count: 3, to: 70, blockBytes: 65536 },
  { from: 17, count: 1, to: 9001, blockBytes: 512 },
];

await testXen({
  version: "4.20",
  needed: needs("dist/tapback", "qemu-img", "xz", "gcc", "mkfs.ext4", "e2fsck", "ldd"),
  scripts: [{ name: "tapback", script: "tapback.sh" }],
  content: guestContent(DISK_BYTES, COPIES),
  withExt4: true,
  fill(out): void {
    const lines = COPIES.map(({ from, count, to, blockBytes }) =>
      `${from} ${count} ${to} ${blockBytes}\n`
    );
    Deno.writeTextFileSync(`${out}/copies`, lines.join(""));
  },
  testImages(out): void {
    const folder = `${out}/tapback`;
    Deno.test("qemu-img finds in the image what the guest saw last", async () => {
      const raw = await rawDisk(folder);
      const sum = (await runOk("md5sum", [raw])).slice(0, 32);
      assert.equal(sum, Deno.readTextFileSync(`${folder}/one.sum`).trim());
    });
    Deno.test("the upgraded tapdisk's log says how long the guest waited", () => {
      const [line] = /users waited .*/.exec(Deno.readTextFileSync(`${folder}.upgrades`)) ?? [];
      assert.ok(line !== undefined);
      console.log(`  ${line}`);
    });
    Deno.test("vhd-util check finds nothing in the image of the guest that was destroyed", () =>
      runOk(binaryPath("vhd-util"), ["check", "-p", "-n", `${folder}/two.vhd`]).then(() => {}));
    Deno.test("e2fsck finds the filesystem of the guest clean", async () => {
      await runOk("e2fsck", ["-f", "-n", await rawDisk(folder)]);
    });
  },
});

/** The first guest's disk: its chain as one image, read by qemu-img. */
async function rawDisk(folder: string): Promise<string> {
  const into = Deno.makeTempDirSync({ dir: folder });
  const [copy, raw] = [`${into}/copy.vhd`, `${into}/copy.raw`];
  await runOk(binaryPath("vhd-util"), ["copy", "-n", `${folder}/leaf.vhd`, "-N", copy]);
  await runOk("qemu-img", ["convert", "-f", "vpc", "-O", "raw", copy, raw]);
  return raw;
}
