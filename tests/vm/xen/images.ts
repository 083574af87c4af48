/**
 * The images of guests' disks, before and after.
 *
 * @module
 */

import assert from "node:assert/strict";
import { binaryPath, runOk } from "../../support/tools.ts";

/** Creates base.vhd from before.raw with qemu-img, and disk.vhd as its child. */
export async function makeImages(folder: string): Promise<void> {
  const base = `${folder}/base.vhd`;
  await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vpc", `${folder}/before.raw`, base]);
  await runOk(binaryPath("vhd-util"), ["snapshot", "-n", `${folder}/disk.vhd`, "-p", base]);
}

/**
 * The guest's writes are in the child. After a coalesce into the parent, QEMU can read the disk.
 */
export async function compareImage(folder: string, expected: string): Promise<void> {
  const [child, base] = [`${folder}/disk.vhd`, `${folder}/base.vhd`];
  await runOk(binaryPath("vhd-util"), ["coalesce", "-n", child]);
  const formats = ["-f", "vpc", "-F", "raw"];
  assert.match(await runOk("qemu-img", ["compare", ...formats, base, expected]), /identical/);
}
