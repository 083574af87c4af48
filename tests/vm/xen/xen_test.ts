/**
 * Disks of paravirtual guests under Debian 12's Xen: each fact of dom0.sh, disks.sh and nodes.sh is a
 * test, and the contents of the images are checked afterwards.
 *
 *     deno task test:xen
 *
 * @module
 */

import { needs } from "../../support/tools.ts";
import { compareImage } from "./images.ts";
import { GUEST_COPIES, guestContent } from "./guest_content.ts";
import { testXen } from "./xen_suite.ts";

/** 32 MiB rounded to whole cylinders, as in VHDs. The scripts have the same number of sectors. */
const DISK_BYTES = 65552 * 512;

const KINDS = ["ublk", "nbd"];

await testXen({
  version: "4.17",
  needed: needs("dist/tap-ctl", "qemu-img", "xz", "gcc"),
  scripts: [
    ...KINDS.map((name) => ({ name, script: "disks.sh" })),
    { name: "vbd3", script: "nodes.sh" },
  ],
  content: guestContent(DISK_BYTES, GUEST_COPIES),
  testImages(out): void {
    const folders = KINDS.flatMap((kind) => [`${kind}/created`, `${kind}/attached`]);
    for (const folder of [...folders, "vbd3"]) {
      Deno.test(`qemu-img finds in the images of ${folder} what the guest wrote`, () =>
        compareImage(`${out}/${folder}`, `${out}/after.raw`));
    }
  },
});
