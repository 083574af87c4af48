import { namesIn } from "../device_users.ts";

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
