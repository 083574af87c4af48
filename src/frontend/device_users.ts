import { SystemError } from "../../ffi/errno.ts";

/** The error of a device that is not taken away, such as one that somebody uses. */
export function cannotTakeAway(node: string, errno: number, why: string): SystemError {
  return new SystemError(errno, `Cannot take ${node} away (${why})`, { file: node });
}

/** The names in a folder; none when it cannot be read. */
export function namesIn(folder: string): string[] {
  try {
    return Array.from(Deno.readDirSync(folder), ({ name }) => name);
  } catch {
    // It is gone, as folders of processes are that have ended, or not ours to look at.
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

/** By node: where a process was found to have it open, which is looked at first the next time. */
const lastFound = new Map<string, { readonly pid: number; readonly link: string }>();

/**
 * A process other than this one that has a disk, or a partition of it, open; 0 for none. What the
 * kernel itself has open, and who may not be looked at, stay unknown.
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

/** Whether Xen's block backend, which is no process, has one of these devices for a guest. */
function isXenBackend(numbers: readonly string[]): boolean {
  // The file has the numbers in hexadecimal.
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
 * Who uses a disk or a partition of it, in words; empty when nobody is found. Opens nothing. What
 * costs least is asked first.
 */
export function userOf(node: string): string {
  const folder = sysfsFolder(node);
  const parts = folder === null ? [] : [folder, ...partitionsIn(folder)];
  if (parts.some((part) => namesIn(`${part}/holders`).length > 0)) return "another device is on it";
  const numbers = parts.map((part) => textOf(`${part}/dev`).trim());
  // The third field of a line has the device's numbers.
  const mounts = textOf("/proc/self/mountinfo").split("\n").map((line) => line.split(" ")[2]);
  if (mounts.some((mount) => numbers.includes(mount))) return "it is mounted";
  if (textOf("/proc/swaps").includes(`${node} `)) return "it is swap";
  if (isXenBackend(numbers)) return "a Xen guest has it";
  if (isLoop(node)) return "a loop device is on it";
  const pid = processWith(node);
  return pid === 0 ? "" : `process ${pid} has it open`;
}

/** Where sysfs tells of a block device; null for what is none. */
function sysfsFolder(node: string): string | null {
  try {
    const { isBlockDevice, rdev } = Deno.statSync(node);
    if (!isBlockDevice || rdev === null) return null;
    // 12 bits of the major stand above the low 8 bits of the minor, whose others are above these.
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
