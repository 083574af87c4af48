import type { FileSamples } from "../observe/files.ts";
import type { DiskSample } from "../observe/sample.ts";
import { stateOf } from "../observe/state.ts";
import { formatShare, formatSize } from "../pictures/sizes.ts";
import { type Finding, findingsOf, namesOf, numberIn, shellWord, textOf } from "./finding.ts";

const disks = findingsOf("disks");

/** A disk as findings name it. */
function nameOf({ type, path }: DiskSample): string {
  return path === "" ? "no image" : `${type}:${path}`;
}

function commandFor(command: string, { pid, minor }: DiskSample): string {
  return `tap-ctl ${command} -p ${pid} -m ${minor}`;
}

/** What is wrong with a disk now; null when nothing is. */
function judgeDisk(disk: DiskSample): Finding | null {
  const { pid, minor, inFlight, retrying, retriedError, unansweredSeconds, times } = disk;
  const where = nameOf(disk);
  const who = `Minor ${minor} of tapdisk ${pid}`;
  switch (stateOf(disk)) {
    case "retrying": {
      const error = retriedError === null ? "" : ` (${retriedError})`;
      const what = `${who}: ${retrying} requests failed${error} and are tried again`;
      const how = retriedError === "ENOSPC" || retriedError === "EDQUOT"
        ? `df -h ${shellWord(folderOf(disk))}   # make room; the requests go on by themselves`
        : `${commandFor("stats", disk)}   # and the log of tapdisk and of the kernel`;
      return disks.error(what, where, how);
    }
    case "hanging": {
      const what = `${who}: a request has been at the disk below for ${unansweredSeconds} s`;
      return disks.error(what, where, `kill -USR1 ${pid}   # the log then has every request`);
    }
    case "paused":
    case "pausing": {
      const waits = times.pauseMs > 0 ? `, ${Math.round(times.pauseMs / 1000)} s in all` : "";
      if (inFlight === 0) return disks.note(`${who} is paused`, where, commandFor("unpause", disk));
      const what = `${who} is paused, and ${inFlight} requests wait${waits}`;
      return disks.warning(what, where, commandFor("unpause", disk));
    }
    case "failed":
      // `recoverFindings` has it.
      return null;
    default:
      return null;
  }
}

function folderOf({ path }: DiskSample): string {
  return path.slice(0, Math.max(1, path.lastIndexOf("/")));
}

/** What is wrong with the second image of a disk; null when nothing is. */
function judgeSecond(disk: DiskSample): Finding | null {
  const { minor, pid, secondary } = disk;
  if (secondary === null) return null;
  const who = `Minor ${minor} of tapdisk ${pid}`;
  if (secondary.state === "failed") {
    const what = `${who} goes on without its secondary image, which failed`;
    return disks.warning(
      what,
      secondary.name,
      `${commandFor("pause", disk)} && ${commandFor("unpause", disk)} -2 IMAGE`,
    );
  }
  if (secondary.state === "alone") {
    const what = `${who}: its image is full, and writes go to the secondary image alone`;
    return disks.warning(what, nameOf(disk), `df -h ${shellWord(folderOf(disk))}`);
  }
  return null;
}

/** Judges the disks that are served. */
export function judgeDisks(samples: readonly DiskSample[]): Finding[] {
  const found = samples.flatMap((disk) => [judgeDisk(disk), judgeSecond(disk)])
    .filter((finding) => finding !== null);
  if (found.some(({ severity }) => severity !== "note")) return found;
  return [...found, disks.ok(`No disk is in trouble (${samples.length} disks)`)];
}

const room = findingsOf("room");
/** Less room than this, or a smaller share, is soon used up. */
const LITTLE_BYTES = 2 ** 30;
const LITTLE_SHARE = 0.05;

/** Judges the room on the filesystems of images that are written. */
export function judgeRoom(samples: readonly DiskSample[], files: FileSamples): Finding[] {
  const seen = new Map<string, Finding>();
  const missing: Finding[] = [];
  for (const disk of samples) {
    const { path, readOnly } = disk;
    if (readOnly || !path.startsWith("/")) continue;
    const file = files.get(path);
    if (file === undefined) {
      if (isImageFile(disk)) {
        missing.push(room.note("Its filesystem did not answer in time, or it is no file", path));
      }
      continue;
    }
    const { sizeBytes, availableBytes } = file.filesystem;
    const left = `${formatSize(availableBytes)} of ${formatSize(sizeBytes)} are left (${
      formatShare(availableBytes, sizeBytes)
    }) on the filesystem of ${path}`;
    const key = `${folderOf(disk)} ${sizeBytes} ${availableBytes}`;
    const how = `df -h ${shellWord(folderOf(disk))}   # make room, or make the filesystem larger`;
    if (availableBytes === 0) seen.set(key, room.error(left, path, how));
    else if (availableBytes < LITTLE_BYTES || availableBytes < LITTLE_SHARE * sizeBytes) {
      if (file.allocatedBytes < file.sizeBytes || disk.type !== "aio") {
        seen.set(key, room.warning(left, path, how));
      }
    }
  }
  const found = [...seen.values(), ...missing];
  return found.length > 0 ? found : [room.ok("The filesystems of the images have room")];
}

/** Whether an image is named by a file, and no block device. */
function isImageFile({ path }: DiskSample): boolean {
  return !path.startsWith("/dev/");
}

const devices = findingsOf("block devices");
const HUNG_TASK_PANIC = "/proc/sys/kernel/hung_task_panic";
/** A time-out of the kernel that is longer than anybody waits: a device cannot be taken over. */
const LONGEST_TIMEOUT_MS = 3_600_000;

/** A block device of a disk. */
export interface DeviceFacts {
  readonly node: string;
  /** Devices of the host that are made on it, such as of LVM or multipath: `dm-3`. */
  readonly holders: readonly string[];
  /** `queue/io_timeout`; null where there is none. */
  readonly timeoutMs: number | null;
}

/** The block devices of disks, as sysfs has them. */
export function deviceFacts(samples: readonly DiskSample[]): DeviceFacts[] {
  return samples.flatMap(({ node }) => {
    if (node === null) return [];
    const name = node.slice(node.lastIndexOf("/") + 1);
    const folder = `/sys/block/${name}`;
    const parts = namesOf(folder).filter((part) => part.startsWith(name));
    const holders = [folder, ...parts.map((part) => `${folder}/${part}`)].flatMap((each) =>
      namesOf(`${each}/holders`)
    );
    return [{ node, holders, timeoutMs: numberIn(`${folder}/queue/io_timeout`) }];
  });
}

/** The name and the kind of a device of the device mapper: `mpatha (mpath)`. */
function mapperName(holder: string): string {
  const name = textOf(`/sys/block/${holder}/dm/name`);
  const kind = textOf(`/sys/block/${holder}/dm/uuid`)?.split("-")[0] ?? "";
  return name === null ? holder : `${name}${kind === "" ? "" : ` (${kind})`}`;
}

function judgeDevice({ node, holders, timeoutMs }: DeviceFacts): Finding[] {
  const found: Finding[] = [];
  for (const holder of holders) {
    const name = mapperName(holder);
    const what = `${name} of this host is made on a disk that is served. A device of the host's ` +
      "LVM or multipath on the disk of a guest damages it when both write";
    found.push(
      devices.warning(
        what,
        node,
        `dmsetup remove ${
          shellWord(name.split(" ")[0])
        }   # if no program of this host is to use it`,
      ),
    );
  }
  if (node.startsWith("/dev/nbd") && timeoutMs !== null && timeoutMs > LONGEST_TIMEOUT_MS) {
    const what = `The kernel looks only every ${timeoutMs / 1000} s whether another tapdisk has ` +
      "taken the device over: its users would wait that long";
    const path = `/sys/block/${node.slice(5)}/queue/io_timeout`;
    found.push(devices.note(what, node, `echo 5000 > ${path}`));
  }
  return found;
}

/** Judges block devices, and what the kernel does when one does not answer for long. */
export function judgeDevices(
  facts: readonly DeviceFacts[],
  hungTaskPanic: number | null,
): Finding[] {
  const found = facts.flatMap(judgeDevice);
  if (hungTaskPanic === 1) {
    const what = "The kernel panics when a task waits too long, as users of a disk do that is " +
      "paused, full, or on a server that is not reached";
    found.push(devices.warning(what, HUNG_TASK_PANIC, "sysctl -w kernel.hung_task_panic=0"));
  }
  return found.length > 0
    ? found
    : [devices.ok(`Nothing is wrong with block devices (${facts.length})`)];
}

/** What {@linkcode judgeDevices} is to know of the kernel. */
export function hungTaskPanic(): number | null {
  return numberIn(HUNG_TASK_PANIC);
}
