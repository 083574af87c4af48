/**
 * A machine with Xen of one of Debian's suites, whose first domain runs dom0.sh.
 *
 * @module
 */

import { runOk } from "../../support/tools.ts";
import {
  type Accelerator,
  chosenAccelerator,
  type MachineFiles,
  type MachineResult,
  prepareLayer,
  prepareMachine,
  prepareSuite,
  runMachine,
} from "../support/machine.ts";
import type { GuestContent } from "./guest_content.ts";
import { guestInitramfs, gunzip } from "./guest_initramfs.ts";

const HERE = new URL(".", import.meta.url).pathname;

/** The versions of Xen that Debian 12 and 13 have. */
export type XenVersion = "4.17" | "4.20";

/** The hypervisor, xl and its dependencies, Xen's store. */
const PACKAGES = ["xen-hypervisor-4.17-amd64", "xen-utils-4.17", "xenstore-utils"];

/** The same in Debian 13, with all libraries that its programs load: those of Debian 12 are older. */
const PACKAGES_13 = [
  ...["xen-hypervisor-4.20-amd64", "xen-utils-4.20", "xen-utils-common", "xenstore-utils"],
  ...["libxenstore4", "libxenmisc4.20", "libxencall1", "libxendevicemodel1", "libxenevtchn1"],
  ...["libxenforeignmemory1", "libxengnttab1", "libxenhypfs1", "libxentoolcore1"],
  ...["libxentoollog1", "libc6", "libcom-err2", "libext2fs2t64", "liblzma5", "libncurses6"],
  ...["libtinfo6", "libuuid1", "libyajl2", "libzstd1", "zlib1g"],
];

const CLOCK = `${HERE}slow_clock.c`;

const DOM0_MIB = 1600;
/** As much as all guests at a time have. */
const GUESTS_MIB = 400;
const HYPERVISOR_MIB = 200;

/** The folder of Xen's packages; throws with the reason when they are not available. */
export function prepareXenLayer(version: XenVersion): Promise<string> {
  return version === "4.17"
    ? prepareLayer("xen", PACKAGES)
    : prepareSuite("trixie", "xen", PACKAGES_13);
}

/** A machine's files with those of Xen; throws with the reason when they are not available. */
export async function prepareXen(version: XenVersion): Promise<MachineFiles> {
  const { kernel, layers } = await prepareMachine();
  return { kernel, layers: [...layers, await prepareXenLayer(version)] };
}

/**
 * Writes the input of dom0.sh to `out`: contents of disks, the guest's kernel and initramfs,
 * checksums.
 */
export async function fillOut(
  out: string,
  files: MachineFiles,
  { content, withExt4 = false }: { readonly content: GuestContent; readonly withExt4?: boolean },
): Promise<void> {
  for (const name of ["before", "after"] as const) {
    Deno.writeFileSync(`${out}/${name}.raw`, content[name]);
    const sum = (await runOk("md5sum", [`${out}/${name}.raw`])).slice(0, 32);
    Deno.writeTextFileSync(`${out}/${name}.sum`, sum);
  }
  await unpackKernel(`${files.kernel}/vmlinuz`, `${out}/vmlinux`);
  Deno.writeFileSync(`${out}/initramfs`, await guestInitramfs(files, { withExt4 }));
  await runOk("gcc", ["-O2", "-shared", "-fPIC", "-o", `${out}/slow_clock.so`, CLOCK]);
}

/**
 * Unpacks the kernel in a bzImage. xl could do it too, but that would take a third of its time on
 * an emulated machine. See Documentation/x86/boot.rst of Linux for the fields.
 */
async function unpackKernel(from: string, into: string): Promise<void> {
  const image = Deno.readFileSync(from);
  const view = new DataView(image.buffer);
  const sectorBytes = 512;
  const setupSectors = view.getUint8(0x1f1);
  const payloadAt = (setupSectors + 1) * sectorBytes + view.getUint32(0x248, true);
  // The payload's length includes four bytes after the stream, which are the length of the kernel.
  const payload = image.slice(payloadAt, payloadAt + view.getUint32(0x24c, true) - 4);
  const packed = `${into}.xz`;
  Deno.writeFileSync(packed, payload);
  await runOk("xz", ["--decompress", packed]);
}

/** A script of this folder that dom0.sh runs. */
export interface XenScript {
  /** Its first argument, and the name of its facts. */
  readonly name: string;
  /** Its file. */
  readonly script: string;
}

/**
 * Runs dom0.sh with these scripts; it writes its facts to the file `xen.facts` in `out`, and theirs
 * to files of their names.
 */
export async function runXen(
  out: string,
  files: MachineFiles,
  version: XenVersion,
  scripts: readonly XenScript[],
): Promise<MachineResult> {
  const layer = files.layers.at(-1) ?? "";
  const file = `${out}/xen`;
  Deno.writeFileSync(file, await gunzip(`${layer}/boot/xen-${version}-amd64.gz`));
  const start = (accelerator: Accelerator): Promise<MachineResult> =>
    runMachine({
      files,
      script: `${HERE}dom0.sh`,
      args: [version, ...scripts.map(({ name, script }) => `${name}=${script}`)],
      outFolder: out,
      memoryMib: DOM0_MIB + GUESTS_MIB + HYPERVISOR_MIB,
      // A second CPU would often wait for the first, especially on a busy host.
      cpus: 1,
      accelerator,
      hypervisor: {
        file,
        // These options disable the separate page tables that protect domains from each other.
        commandLine: `console=com1 com1=115200 dom0_mem=${DOM0_MIB}M spec-ctrl=no xpti=no`,
      },
      // Five minutes with emulation on an idle host; much longer on a busy host.
      timeoutMs: accelerator === "kvm" ? 4 * 60_000 : 28 * 60_000,
    });
  const result = await start(chosenAccelerator());
  // Some KVMs run Linux but no hypervisor.
  const again = result.accelerator === "kvm" && !hasStarted(out) &&
    Deno.env.get("BLKTAP_VM_ACCEL") === undefined;
  return again ? await start("tcg") : result;
}

/** Whether dom0.sh has recorded a fact. */
function hasStarted(out: string): boolean {
  return Array.from(Deno.readDirSync(out)).some(({ name }) => name === "xen.facts");
}
