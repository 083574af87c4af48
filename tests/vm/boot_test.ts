/**
 * A machine with systemd and udev, the package installed, two disks in /etc/blktap/devices and
 * their filesystems in fstab. It boots, is used, powers off, and boots again.
 *
 * @module
 */
import assert from "node:assert/strict";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { binaryPath, needs, run, runOk } from "../support/tools.ts";
import { type MachineFiles, prepareLayer, prepareMachine, runMachine } from "./support/machine.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const SCRIPT = new URL("guest/boot.sh", import.meta.url).pathname;

const libcrypto = hasLibcrypto() ? [] : ["libcrypto.so.3"];
const tools = needs(
  ...["root", "dist/blktap", "qemu-img", "mkfs.ext4", "dpkg-deb", "ldd", ...libcrypto],
);
const folder = Deno.makeTempDirSync({ prefix: "blktap-boot-" });
Deno.test.afterAll(() => Deno.removeSync(folder, { recursive: true }));
const out = `${folder}/out`;
const { files, suffix } = await prepare();

async function prepare(): Promise<{ files: MachineFiles | null; suffix: string }> {
  if (tools.ignore) return { files: null, suffix: tools.suffix };
  try {
    const { kernel, layers } = await prepareMachine();
    const systemd = await prepareLayer("boot", ["systemd", "systemd-sysv", "udev", "kmod"]);
    return { files: { kernel, layers: [...layers, systemd] }, suffix: "" };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return { files: null, suffix: ` (skipped: ${why})` };
  }
}

/** The files of the package as a layer of a root whose /lib is a link; its scripts are in `out`. */
async function layerOfPackage(): Promise<string> {
  const layer = `${folder}/layer`;
  await runOk(`${ROOT}scripts/package`, ["--quick", "--built", folder], { timeoutMs: 120_000 });
  const deb = Array.from(Deno.readDirSync(folder), ({ name }) => name)
    .find((name) => name.endsWith(".deb"));
  await runOk("dpkg-deb", ["-x", `${folder}/${deb}`, layer]);
  await runOk("dpkg-deb", ["-e", `${folder}/${deb}`, `${out}/control`]);
  await runOk("cp", ["-a", `${layer}/lib`, `${layer}/usr/`]);
  Deno.removeSync(`${layer}/lib`, { recursive: true });
  return layer;
}

/** Creates a VHD and a raw image with filesystems, and the files that list them. */
async function makeDisks(): Promise<void> {
  for (const name of ["first", "second"]) {
    Deno.writeFileSync(`${out}/${name}.raw`, new Uint8Array());
    Deno.truncateSync(`${out}/${name}.raw`, 64 << 20);
    await runOk("mkfs.ext4", ["-q", "-F", `${out}/${name}.raw`]);
  }
  const toVhd = ["-f", "raw", "-O", "vpc"];
  await runOk("qemu-img", ["convert", ...toVhd, `${out}/first.raw`, `${out}/first.vhd`]);
  Deno.writeTextFileSync(
    `${out}/devices`,
    [
      "# A line that makes no sense does not keep the others from it.",
      "lost    no-image",
      "first   vhd:/vm/out/first.vhd  device=ublk",
      "second  aio:/vm/out/second.raw device=nbd",
      "",
    ].join("\n"),
  );
  // On a busy host an emulated machine takes longer than systemd's 90 s.
  const options = "_netdev,x-systemd.device-timeout=600";
  const line = (name: string) => `/dev/blktap/${name} /srv/${name} ext4 ${options} 0 2\n`;
  Deno.writeTextFileSync(`${out}/fstab`, line("first") + line("second"));
}

/** The filesystems after the machine's end: closed in order, and valid. */
async function examine(): Promise<void> {
  const vhd = `${out}/first.vhd`;
  assert.equal(await runOk(binaryPath("vhd-util"), ["check", "-n", vhd]), `${vhd} is valid\n`);
  await runOk("qemu-img", ["convert", "-f", "vpc", "-O", "raw", vhd, `${out}/first.raw`]);
  for (const name of ["first", "second"]) {
    const { code, stdout } = await run("e2fsck", ["-fn", `${out}/${name}.raw`]);
    assert.equal(code, 0, stdout);
    assert.doesNotMatch(await runOk("dumpe2fs", ["-h", `${out}/${name}.raw`]), /needs_recovery/);
  }
}

async function boot(
  files: MachineFiles,
  layer: string,
  expected: readonly RegExp[] = [],
): Promise<void> {
  const { code, console: text, seconds, accelerator } = await runMachine({
    files: { ...files, layers: [...files.layers, layer] },
    script: SCRIPT,
    asInit: true,
    outFolder: out,
    timeoutMs: 900_000,
  });
  console.log(`The machine ran for ${seconds.toFixed(0)} s (${accelerator})`);
  try {
    assert.equal(code, 0);
    for (const name of ["first", "second"]) {
      assert.match(text, new RegExp(`: ${name}: /dev/(ublkb|nbd)\\d+\\r?\\n`));
      assert.match(text, new RegExp(`: ${name}: stopped`));
    }
    for (const pattern of expected) assert.match(text, pattern);
    assert.match(text, /line 2: Cannot read it \('no-image' is no image/);
    await examine();
  } catch (error) {
    console.log(text);
    throw error;
  }
}

Deno.test({
  name: `boot: listed disks are served and mounted by systemd, twice${suffix}`,
  ignore: files === null,
  async fn() {
    assert.ok(files !== null);
    Deno.mkdirSync(out);
    const layer = await layerOfPackage();
    await makeDisks();
    await boot(files, layer, [
      /: first: \/dev\/ublkb\d+ \(recovered\)/,
      /: second: \/dev\/nbd\d+ \(served already\)/,
    ]);
    await boot(files, layer);
  },
});
