import { SystemError } from "../../ffi/errno.ts";

/** The error of a device that is not removed, such as one that is in use. */
export function cannotTakeAway(node: string, errno: number, why: string): SystemError {
  return new SystemError(errno, `Cannot take ${node} away (${why})`, { file: node });
}

/** The names in a folder; empty when the folder cannot be read. */
export function namesIn(folder: string): string[] {
  try {
    return Array.from(Deno.readDirSync(folder), ({ name }) => name);
  } catch {
    // The process has ended, or this one has no right to read the folder.
    return [];
  }
}

function leadsTo(link: string, node: string): boolean {
  try {
    const target = Deno.readLinkSync(link);
    return target.startsWith(node) && /^(p\d+)?$/.test(target.slice(node.length));
  } catch {
    return false;
  }
}

/** By node: the process that had it open at the last search. It is looked at first. */
const lastFound = new Map<string, { readonly pid: number; readonly link: string }>();

/**
 * Finds a process, other than this one, that has a disk or one of its partitions open. It does not
 * find opens by the kernel, nor those of processes that this one has no right to inspect.
 *
 * @returns The process ID; 0 when none is found.
 */
export function processWith(node: string): number {
  const known = lastFound.get(node);
  if (known !== undefined && leadsTo(known.link, node)) return known.pid;
  lastFound.delete(node);
  for (const name of namesIn("/proc")) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === Deno.pid) continue;
    const folder = `/proc/${name}/fd`;
    const fd = namesIn(folder).find((fd) => leadsTo(`${folder}/${fd}`, node));
    if (fd === undefined) continue;
    lastFound.set(node, { pid, link: `${folder}/${fd}` });
    return pid;
  }
  return 0;
}

function textOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}

const XEN_BACKENDS = "/sys/bus/xen-backend/devices";

/** Whether Xen's block backend, which is part of the kernel, serves one of these devices. */
function isXenBackend(numbers: readonly string[]): boolean {
  // The file has hexadecimal numbers.
  const shown = numbers.map((text) => text.split(":").map((part) => Number(part).toString(16)));
  return namesIn(XEN_BACKENDS).some((name) => {
    const device = textOf(`${XEN_BACKENDS}/${name}/physical_device`).trim();
    return shown.some((parts) => device === parts.join(":"));
  });
}

function isLoop(node: string): boolean {
  return namesIn("/sys/block").some((name) =>
    name.startsWith("loop") && textOf(`/sys/block/${name}/loop/backing_file`).trim() === node
  );
}

/**
 * Describes a user of a disk or of one of its partitions, such as `it is mounted`. It opens no
 * device. Cheap checks come first.
 *
 * @returns Empty when no user is found.
 */
export function userOf(node: string): string {
  const folder = sysfsFolder(node);
  const parts = folder === null ? [] : [folder, ...partitionsIn(folder)];
  if (parts.some((part) => namesIn(`${part}/holders`).length > 0)) return "another device is on it";
  const numbers = parts.map((part) => textOf(`${part}/dev`).trim());
  // The third field of a line is major:minor.
  const mounts = textOf("/proc/self/mountinfo").split("\n").map((line) => line.split(" ")[2]);
  if (mounts.some((mount) => numbers.includes(mount))) return "it is mounted";
  if (textOf("/proc/swaps").includes(`${node} `)) return "it is swap";
  if (isXenBackend(numbers)) return "a Xen guest has it";
  if (isLoop(node)) return "a loop device is on it";
  const pid = processWith(node);
  return pid === 0 ? "" : `process ${pid} has it open`;
}

/** The folder of a block device in sysfs; null for other files. */
function sysfsFolder(node: string): string | null {
  try {
    const { isBlockDevice, rdev } = Deno.statSync(node);
    if (!isBlockDevice || rdev === null) return null;
    // Linux encodes 8 low bits of the minor, 12 bits of the major, 12 high bits of the minor.
    const major = Math.floor(rdev / 2 ** 8) & 0xfff;
    const minor = (rdev & 0xff) + (Math.floor(rdev / 2 ** 20) & 0xfff) * 2 ** 8;
    return Deno.realPathSync(`/sys/dev/block/${major}:${minor}`);
  } catch {
    return null;
  }
}

function partitionsIn(folder: string): string[] {
  return namesIn(folder)
    .map((name) => `${folder}/${name}`)
    .filter((path) => textOf(`${path}/partition`) !== "");
}
