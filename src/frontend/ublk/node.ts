import { namesIn, processWith } from "../device_users.ts";

/** The number of the device that a node such as /dev/ublkb3 stands for; -1 for another's node. */
export function numberOfNode(node: string): number {
  const match = /^\/dev\/ublkb(\d{1,6})$/.exec(node);
  return match === null ? -1 : Number(match[1]);
}

/** The numbers of the devices that have no disk: not started yet, or stopped. */
export function devicesWithoutDisk(): number[] {
  const devices = namesIn("/sys/class/ublk-char");
  const disks = namesIn("/sys/block");
  return devices
    .map((name) => /^ublkc(\d+)$/.exec(name)?.[1])
    .filter((number) => number !== undefined && !disks.includes(`ublkb${number}`))
    .map(Number);
}

/** How long the kernel takes a disk to be, sectors; -1 when it is not there. */
export function sectorsOfNode(node: string): number {
  try {
    return Number(Deno.readTextFileSync(`/sys/block/${node.slice("/dev/".length)}/size`));
  } catch {
    return -1;
  }
}

/** Who uses a disk or a partition of it, in words; empty when nobody does. Opens nothing. */
export function userOf(node: string): string {
  const pid = processWith(node);
  if (pid !== 0) return `process ${pid} has it open`;
  const disk = node.slice("/dev/".length);
  const folder = `/sys/block/${disk}`;
  const partitions = namesIn(folder).filter((name) => name.startsWith(`${disk}p`));
  const parts = [folder, ...partitions.map((name) => `${folder}/${name}`)];
  if (parts.some((part) => namesIn(`${part}/holders`).length > 0)) return "another device is on it";
  const numbers = parts.map((part) => textOf(`${part}/dev`).trim());
  // The third field of a line has the device's numbers.
  const mounts = textOf("/proc/self/mountinfo").split("\n").map((line) => line.split(" ")[2]);
  if (mounts.some((mount) => numbers.includes(mount))) return "it is mounted";
  return textOf("/proc/swaps").includes(`${node} `) ? "it is swap" : "";
}

function textOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}

/** Whether a process is there, and has not ended. */
export function isAlive(pid: number): boolean {
  try {
    // The state follows the name, which is in brackets and may hold anything.
    const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
    return stat.charAt(stat.lastIndexOf(")") + 2) !== "Z";
  } catch {
    return false;
  }
}
