/**
 * Stable names of block devices: /dev/blktap/NAME is a link to the node, whatever its number. udev
 * makes the link, so that systemd knows it. This file makes the same link, for machines without udev.
 *
 * @module
 */
import { systemError } from "../../../ffi/errno.ts";
import { controlFolder } from "../paths.ts";

/** The folder of the links. */
const NAMES_FOLDER = "/dev/blktap";

/** The path of a named block device. */
function namedDevicePath(name: string): string {
  return `${NAMES_FOLDER}/${name}`;
}

/** The kernel's name of a device: `ublkb0` of /dev/ublkb0. */
function kernelName(node: string): string {
  return node.slice(node.lastIndexOf("/") + 1);
}

/** The file that udev's rule reads: variables for the device with this kernel name. */
function udevFile(node: string): string {
  return `${controlFolder()}/udev/${kernelName(node)}`;
}

function linkTarget(node: string): string {
  return node.replace(/^\/dev\//, "../");
}

/** Makes the kernel report a device to udev again. */
function reportAgain(node: string): void {
  try {
    Deno.writeTextFileSync(`/sys/class/block/${kernelName(node)}/uevent`, "change", {
      create: false,
    });
  } catch {
    // The device does not exist any more; udev has removed its link.
  }
}

function removeLink(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Gives a block device its name. Throws `SystemError`. */
export function nameDevice(name: string, node: string): void {
  const file = udevFile(node);
  const link = namedDevicePath(name);
  const draft = `${NAMES_FOLDER}/.${name}`;
  try {
    Deno.mkdirSync(file.slice(0, file.lastIndexOf("/")), { recursive: true, mode: 0o700 });
    Deno.writeTextFileSync(file, `BLKTAP_NAME=${name}\n`, { mode: 0o600 });
    Deno.mkdirSync(NAMES_FOLDER, { recursive: true });
    // Independent of the umask. The nodes that the links lead to have modes of their own.
    Deno.chmodSync(NAMES_FOLDER, 0o755);
    // The rename also replaces a link of an earlier device. A process that was killed here has left
    // the other name.
    removeLink(draft);
    Deno.symlinkSync(linkTarget(node), draft);
    Deno.renameSync(draft, link);
  } catch (error) {
    throw systemError(error, `Cannot make ${link}, the name of ${node}`);
  }
  reportAgain(node);
}

/** Removes the name of a block device. The device need not exist any more. */
export function unnameDevice(name: string, node: string): void {
  const link = namedDevicePath(name);
  try {
    Deno.removeSync(udevFile(node));
  } catch {
    // The device had no name.
  }
  reportAgain(node);
  try {
    if (Deno.readLinkSync(link) === linkTarget(node)) Deno.removeSync(link);
  } catch {
    // udev has removed it.
  }
}
