import { namesIn } from "../device_users.ts";

/** The number of a node such as /dev/ublkb3; -1 for other nodes. */
export function numberOfNode(node: string): number {
  const match = /^\/dev\/ublkb(\d{1,6})$/.exec(node);
  return match === null ? -1 : Number(match[1]);
}

/** The numbers of devices without a disk, which are not started or stopped. */
export function devicesWithoutDisk(): number[] {
  const devices = namesIn("/sys/class/ublk-char");
  const disks = namesIn("/sys/block");
  return devices
    .map((name) => /^ublkc(\d+)$/.exec(name)?.[1])
    .filter((number) => number !== undefined && !disks.includes(`ublkb${number}`))
    .map(Number);
}

/** The size of a disk by sysfs, sectors; -1 when there is none. */
export function sectorsOfNode(node: string): number {
  try {
    return Number(Deno.readTextFileSync(`/sys/block/${node.slice("/dev/".length)}/size`));
  } catch {
    return -1;
  }
}
