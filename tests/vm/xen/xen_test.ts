/**
 * Disks of paravirtual guests under Debian's Xen: each fact of dom0.sh and disks.sh is a test, and
 * the contents of the images are checked afterwards.
 *
 *     deno task test:xen
 *
 * @module
 */

import assert from "node:assert/strict";
import { binaryPath, needs, runOk } from "../../support/tools.ts";
import { testFacts } from "../support/facts.ts";
import { fillOut, guestContent, prepareXen, runXen } from "./xen_machine.ts";

const HERE = new URL(".", import.meta.url).pathname;

const KINDS = ["ublk", "nbd"];

await testXen();

async function testXen(): Promise<void> {
  const { ignore, suffix } = needs("dist/tap-ctl", "qemu-img", "xz");
  if (ignore) {
    skipAll(suffix);
    return;
  }
  let files;
  try {
    files = await prepareXen();
  } catch (error) {
    skipAll(` (skipped: ${error instanceof Error ? error.message : error})`);
    return;
  }
  const out = Deno.makeTempDirSync({ prefix: "blktap-xen-" });
  await fillOut(out, files, guestContent());
  await makeImages(out);
  const result = await runXen(out, files, KINDS);
  const scripts = KINDS.map((name) => ({ name, path: `${HERE}disks.sh` }));
  testFacts([{ name: "xen", path: `${HERE}dom0.sh` }, ...scripts], out, result);
  for (const kind of KINDS) {
    for (const disk of ["created", "attached"]) {
      Deno.test(`${kind}: qemu-img finds what the guest wrote in the image that was ${disk}`, () =>
        compareImage(`${out}/${kind}/${disk}`, `${out}/after.raw`));
    }
  }
  Deno.test.afterAll(() => Deno.removeSync(out, { recursive: true }));
}

function skipAll(suffix: string): void {
  for (const kind of KINDS) {
    Deno.test({ name: `${kind}: a disk of a guest of Xen${suffix}`, ignore: true, fn() {} });
  }
}

/** Creates base.vhd with qemu-img, and disk.vhd as its child. */
async function makeImages(out: string): Promise<void> {
  const base = `${out}/base.vhd`;
  await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vpc", `${out}/before.raw`, base]);
  await runOk(binaryPath("vhd-util"), ["snapshot", "-n", `${out}/disk.vhd`, "-p", base]);
}

/**
 * The guest's writes are in the child. After a coalesce into the parent, QEMU can read the disk.
 */
async function compareImage(folder: string, expected: string): Promise<void> {
  const [child, base] = [`${folder}/disk.vhd`, `${folder}/base.vhd`];
  await runOk(binaryPath("vhd-util"), ["coalesce", "-n", child]);
  const formats = ["-f", "vpc", "-F", "raw"];
  assert.match(await runOk("qemu-img", ["compare", ...formats, base, expected]), /identical/);
}
