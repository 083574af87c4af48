/**
 * The initramfs of paravirtual guests: that of the machine, which has busybox, and files for the guests.
 *
 * @module
 */

import { findTool, runOk } from "../../support/tools.ts";
import type { MachineFiles } from "../support/machine.ts";
import { cpioArchive, type CpioEntry } from "./cpio.ts";

const HERE = new URL(".", import.meta.url).pathname;

/** Where guests have what makes and mounts an ext4. */
const EXT4 = "ext4";

/** Files by their paths in the initramfs, without a leading slash. */
type Files = Map<string, Uint8Array>;

/** An initramfs with the scripts guest.sh and shell.sh; `withExt4`: and with mkfs.ext4. */
export async function guestInitramfs(
  files: MachineFiles,
  { withExt4 }: { readonly withExt4: boolean },
): Promise<Uint8Array<ArrayBuffer>> {
  const modules = await kernelModules(files);
  const own: Files = new Map([
    ["guest", Deno.readFileSync(`${HERE}guest.sh`)],
    ["shell", Deno.readFileSync(`${HERE}shell.sh`)],
    ["xen-blkfront.ko", modules.read("kernel/drivers/block/xen-blkfront.ko")],
  ]);
  if (withExt4) {
    addExt4Modules(own, modules);
    await addMkfs(own);
  }
  const busybox = await gunzip(`${files.kernel}/initramfs`);
  const archive = cpioArchive([{ name: "tmp" }, ...withFolders(own)]);
  // Archives may follow one another at multiples of four bytes.
  const ownAt = Math.ceil(busybox.length / 4) * 4;
  const both = new Uint8Array(ownAt + archive.length);
  both.set(busybox);
  both.set(archive, ownAt);
  return both;
}

/** The modules of the machine's kernel, by their paths, and those that each needs. */
async function kernelModules(files: MachineFiles): Promise<{
  read(path: string): Uint8Array;
  needed(path: string): string[];
}> {
  const [release] = (await Deno.readTextFile(`${files.kernel}/version`)).split(" ");
  const folder = `${files.kernel}/layer/usr/lib/modules/${release}`;
  const lines = Deno.readTextFileSync(`${folder}/modules.dep`).split("\n");
  return {
    read: (path) => Deno.readFileSync(`${folder}/${path}`),
    // What a module needs comes behind it, in the reverse order of loading.
    needed: (path) =>
      lines.find((line) => line.startsWith(`${path}:`))?.replace(":", "").split(" ").reverse() ??
        [],
  };
}

/** The modules of ext4; the file `modules` has their names in the order of loading. */
function addExt4Modules(own: Files, modules: Awaited<ReturnType<typeof kernelModules>>): void {
  const paths = ["kernel/crypto/crc32c_generic.ko", ...modules.needed("kernel/fs/ext4/ext4.ko")];
  const names = paths.map((path) => path.slice(path.lastIndexOf("/") + 1));
  for (const [index, path] of paths.entries()) {
    own.set(`${EXT4}/${names[index]}`, modules.read(path));
  }
  own.set(`${EXT4}/modules`, new TextEncoder().encode(names.join("\n")));
}

/** mkfs.ext4 of this system, with its libraries. */
async function addMkfs(own: Files): Promise<void> {
  const program = findTool("mkfs.ext4") ?? "mkfs.ext4";
  own.set(`${EXT4}/mkfs.ext4`, Deno.readFileSync(program));
  const libraries = (await runOk("ldd", [program])).matchAll(/(\/\S+) \(0x/g);
  for (const [, path] of libraries) own.set(path.slice(1), Deno.readFileSync(path));
}

/** The entries of an archive: each folder before what is in it. */
function withFolders(files: Files): CpioEntry[] {
  const folders = new Set<string>();
  for (const path of files.keys()) {
    const parts = path.split("/");
    for (let depth = 1; depth < parts.length; depth++) folders.add(parts.slice(0, depth).join("/"));
  }
  return [
    ...[...folders].map((name) => ({ name })),
    ...[...files].map(([name, data]) => ({ name, data })),
  ];
}

/** The contents of a file that gzip made. */
export async function gunzip(path: string): Promise<Uint8Array<ArrayBuffer>> {
  const stream = Deno.openSync(path).readable.pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
