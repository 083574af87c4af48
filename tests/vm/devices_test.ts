/**
 * Block devices on a real kernel: one machine with Debian's kernel runs tests/vm/guest, in which each
 * fact is a test here; then qemu-img and debugfs look at the images that it left, from outside.
 */

import assert from "node:assert/strict";
import { needs, run, runOk, withTempDir } from "../support/tools.ts";
import { type FactScript, testFacts } from "./support/facts.ts";
import { prepareMachine, runMachine } from "./support/machine.ts";

const GUEST = new URL("guest", import.meta.url).pathname;

const PARTS = [
  { name: "ublk", script: "device.sh", args: ["ublk"] },
  { name: "nbd", script: "device.sh", args: ["nbd"] },
  { name: "lvm", script: "lvm.sh", args: ["/dev/vdb"] },
];

await testDevices();

async function testDevices(): Promise<void> {
  const { ignore, suffix } = needs("dist/tap-ctl", "mkfs.ext4", "fio");
  if (ignore) {
    skipAll(suffix);
    return;
  }
  let files;
  try {
    files = await prepareMachine();
  } catch (error) {
    skipAll(` (skipped: ${error instanceof Error ? error.message : error})`);
    return;
  }
  const outFolder = Deno.makeTempDirSync({ prefix: "blktap-vm-out-" });
  const result = await runMachine({
    files,
    script: `${GUEST}/suite.sh`,
    args: PARTS.flatMap(({ name, script, args }, index) => [
      ...index > 0 ? ["--"] : [],
      `${name}=${script}`,
      ...args,
    ]),
    outFolder,
    disksMib: [1024],
    timeoutMs: 12 * 60_000,
  });
  const scripts: FactScript[] = PARTS.map(({ name, script }) => ({
    name,
    path: `${GUEST}/${script}`,
  }));
  testFacts(scripts, outFolder, result);
  for (const { name } of PARTS) {
    testImage(name, `${outFolder}/${name}`);
  }
  Deno.test.afterAll(() => Deno.removeSync(outFolder, { recursive: true }));
}

function skipAll(suffix: string): void {
  for (const { name } of PARTS) {
    Deno.test({ name: `${name}: in a virtual machine${suffix}`, ignore: true, fn() {} });
  }
}

/** What a device's image has, seen from outside of the machine. */
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
