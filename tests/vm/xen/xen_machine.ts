/**
 * A machine with Debian's Xen, whose first domain runs dom0.sh.
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
  runMachine,
} from "../support/machine.ts";
import { cpioArchive } from "./cpio.ts";

const HERE = new URL(".", import.meta.url).pathname;

/** The hypervisor, xl and its dependencies, Xen's store. */
const XEN_PACKAGES = ["xen-hypervisor-4.17-amd64", "xen-utils-4.17", "xenstore-utils"];
const HYPERVISOR = "boot/xen-4.17-amd64.gz";

const DOM0_MIB = 1600;
const GUEST_MIB = 256;
const HYPERVISOR_MIB = 200;

/** The contents of the guest's disks. */
export interface GuestContent {
  readonly before: Uint8Array<ArrayBuffer>;
  /** The contents after guest.sh. */
  readonly after: Uint8Array<ArrayBuffer>;
}

const SECTOR = 512;
/** 32 MiB rounded to whole cylinders, as in VHDs. dom0.sh has the same number. */
const DISK_BYTES = 65552 * SECTOR;
const PAGE = 4096;

/** Random bytes in every other half MiB, so that images also have holes. */
export function guestContent(): GuestContent {
  const before = new Uint8Array(DISK_BYTES);
  for (let at = 0; at < DISK_BYTES; at += 1024 ** 2) {
    for (let part = 0; part < 8; part++) {
      const from = at + part * 65536;
      crypto.getRandomValues(before.subarray(from, from + 65536));
    }
  }
  const after = before.slice();
  after.copyWithin(4480 * PAGE, 256 * PAGE, (256 + 768) * PAGE);
  after.copyWithin(50001 * SECTOR, 17 * SECTOR, 18 * SECTOR);
  return { before, after };
}

/** The folder of Xen's packages; throws with the reason when they are not available. */
export function prepareXenLayer(): Promise<string> {
  return prepareLayer("xen", XEN_PACKAGES);
}

/** A machine's files with those of Xen; throws with the reason when they are not available. */
export async function prepareXen(): Promise<MachineFiles> {
  const { kernel, layers } = await prepareMachine();
  return { kernel, layers: [...layers, await prepareXenLayer()] };
}

/** Writes the input of dom0.sh to `out`: images, the guest's kernel and initramfs, checksums. */
export async function fillOut(
  out: string,
  files: MachineFiles,
  content: GuestContent,
): Promise<void> {
  Deno.writeFileSync(`${out}/before.raw`, content.before);
  Deno.writeFileSync(`${out}/after.raw`, content.after);
  const sums = await Promise.all(
    ["before", "after"].map(async (name) =>
      `guest.${name}=${(await runOk("md5sum", [`${out}/${name}.raw`])).slice(0, 32)}`
    ),
  );
  Deno.writeTextFileSync(`${out}/sums`, sums.join(" "));
  await unpackKernel(`${files.kernel}/vmlinuz`, `${out}/vmlinux`);
  Deno.writeFileSync(`${out}/initramfs`, await guestInitramfs(files));
}

/**
 * Unpacks the kernel in a bzImage. xl could do it too, but that would take a third of its time on
 * an emulated machine. See Documentation/x86/boot.rst of Linux for the fields.
 */
async function unpackKernel(from: string, into: string): Promise<void> {
  const image = Deno.readFileSync(from);
  const view = new DataView(image.buffer);
  const setupSectors = view.getUint8(0x1f1);
  const payloadAt = (setupSectors + 1) * SECTOR + view.getUint32(0x248, true);
  // The payload's length includes four bytes after the stream, which are the length of the kernel.
  const payload = image.slice(payloadAt, payloadAt + view.getUint32(0x24c, true) - 4);
  const packed = `${into}.xz`;
  Deno.writeFileSync(packed, payload);
  await runOk("xz", ["--decompress", packed]);
}

/** The initramfs of the machine, which has busybox, with the guest's script and module. */
async function guestInitramfs(files: MachineFiles): Promise<Uint8Array<ArrayBuffer>> {
  const [release] = Deno.readTextFileSync(`${files.kernel}/version`).split(" ");
  const modules = `${files.kernel}/layer/usr/lib/modules/${release}/kernel`;
  const busybox = await gunzip(`${files.kernel}/initramfs`);
  const own = cpioArchive([
    { name: "guest", data: Deno.readFileSync(`${HERE}guest.sh`) },
    {
      name: "xen-blkfront.ko",
      data: Deno.readFileSync(`${modules}/drivers/block/xen-blkfront.ko`),
    },
  ]);
  // Archives may follow one another at multiples of four bytes.
  const ownAt = Math.ceil(busybox.length / 4) * 4;
  const both = new Uint8Array(ownAt + own.length);
  both.set(busybox);
  both.set(own, ownAt);
  return both;
}

async function gunzip(path: string): Promise<Uint8Array<ArrayBuffer>> {
  const stream = Deno.openSync(path).readable.pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Runs dom0.sh for these kinds of block devices; writes its facts to the file `facts` in `out`. */
export async function runXen(
  out: string,
  files: MachineFiles,
  kinds: readonly string[],
): Promise<MachineResult> {
  const layer = files.layers.at(-1) ?? "";
  const file = `${out}/xen`;
  Deno.writeFileSync(file, await gunzip(`${layer}/${HYPERVISOR}`));
  const start = (accelerator: Accelerator): Promise<MachineResult> =>
    runMachine({
      files,
      script: `${HERE}dom0.sh`,
      args: kinds,
      outFolder: out,
      memoryMib: DOM0_MIB + GUEST_MIB + HYPERVISOR_MIB,
      // A second CPU would often wait for the first, especially on a busy host.
      cpus: 1,
      accelerator,
      hypervisor: {
        file,
        // These options disable the separate page tables that protect domains from each other.
        commandLine: `console=com1 com1=115200 dom0_mem=${DOM0_MIB}M spec-ctrl=no xpti=no`,
      },
      // Three minutes with emulation, two on an idle host; much longer on a busy host.
      timeoutMs: accelerator === "kvm" ? 4 * 60_000 : 10 * 60_000,
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
