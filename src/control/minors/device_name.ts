/**
 * Names of block devices that stay the same whichever number a device gets: /dev/blktap/NAME, a
 * link. udev makes it, so that systemd knows of it; where no udev runs, the link that is made here
 * is all there is. The two make the same link.
 *
 * @module
 */
import { systemError } from "../../../ffi/errno.ts";
import { controlFolder } from "../paths.ts";

/** The folder of the links. */
export const NAMES_FOLDER = "/dev/blktap";

/** The path of a named block device. */
export function namedDevicePath(name: string): string {
  return `${NAMES_FOLDER}/${name}`;
}

/** The kernel's name of a device: `ublkb0` of /dev/ublkb0. */
function kernelName(node: string): string {
  return node.slice(node.lastIndexOf("/") + 1);
}

/** What udev's rule reads: variables for the device of that kernel's name. */
function udevFile(node: string): string {
  return `${controlFolder()}/udev/${kernelName(node)}`;
}

function linkTarget(node: string): string {
  return node.replace(/^\/dev\//, "../");
}

/** Has the kernel report a device to udev again. */
function reportAgain(node: string): void {
  try {
    Deno.writeTextFileSync(`/sys/class/block/${kernelName(node)}/uevent`, "change", {
      create: false,
    });
  } catch {
    // It is gone, and udev knows.
  }
}

/** Gives a block device its name. Throws `SystemError`. */
export function nameDevice(name: string, node: string): void {
  const file = udevFile(node);
  const link = namedDevicePath(name);
  try {
    Deno.mkdirSync(file.slice(0, file.lastIndexOf("/")), { recursive: true, mode: 0o700 });
    Deno.writeTextFileSync(file, `BLKTAP_NAME=${name}\n`);
    Deno.mkdirSync(NAMES_FOLDER, { recursive: true });
    // Whatever the umask: the nodes that the names lead to have modes of their own.
    Deno.chmodSync(NAMES_FOLDER, 0o755);
    // At once, also over one that an earlier device left.
    Deno.symlinkSync(linkTarget(node), `${NAMES_FOLDER}/.${name}`);
    Deno.renameSync(`${NAMES_FOLDER}/.${name}`, link);
  } catch (error) {
    throw systemError(error, `Cannot make ${link}, the name of ${node}`);
  }
  reportAgain(node);
}

/** Takes a name from a block device, which may be gone. */
export function unnameDevice(name: string, node: string): void {
  const link = namedDevicePath(name);
  try {
    Deno.removeSync(udevFile(node));
  } catch {
    // It never had one.
  }
  reportAgain(node);
  try {
    if (Deno.readLinkSync(link) === linkTarget(node)) Deno.removeSync(link);
  } catch {
    // udev was quicker.
  }
}
