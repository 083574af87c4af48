/**
 * What is measured of a process: memory, descriptors, processor time.
 *
 * @module
 */
import { CLIENT_BYTES, CLIENTS_THAT_KEEP_PAGES } from "../../../src/frontend/nbd/client_memory.ts";
import { SLOT_BYTES, SLOTS } from "../../../src/vbd/slots.ts";
import { privateMemoryKib } from "../../support/served.ts";

/** I/O memory is the only mapping that must not have huge pages; see ffi/memory.ts. */
const IO_MEMORY_FLAG = /^VmFlags:.* nh\b/;
/** Ticks of processor time in a second. */
const TICKS = 100;

const KIB = 1024;
/** I/O memory of an image: caches of tables, connections to a server, small caches of blocks. */
const IMAGE_KIB = 4 * KIB;
/** I/O memory that the disks of a process share: buffers of the queues and of offline work. */
const SHARED_KIB = 16 * KIB;

/** What a tapdisk takes at a moment. */
export interface Footprint {
  readonly residentKib: number;
  readonly privateKib: number;
  /** The part of it that requests and caches use. */
  readonly ioKib: number;
  readonly sockets: number;
  /** The files in the soak's folders, one for each descriptor. */
  readonly files: readonly string[];
  /** Descriptors of removed files that are open for more than a moment when it is a leak. */
  readonly removedFiles: number;
  readonly otherDescriptors: number;
}

export function footprint(pid: number, folders: readonly string[]): Footprint {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  const counts = { sockets: 0, removedFiles: 0, otherDescriptors: 0 };
  const files: string[] = [];
  for (const target of descriptorTargets(pid)) {
    if (target.startsWith("socket:")) counts.sockets++;
    else if (!folders.some((folder) => target.startsWith(folder))) counts.otherDescriptors++;
    else if (target.endsWith(" (deleted)")) counts.removedFiles++;
    else files.push(target);
  }
  return {
    residentKib: Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]),
    privateKib: privateMemoryKib(pid),
    ioKib: ioMemoryKib(pid),
    files,
    ...counts,
  };
}

/** What I/O memory is for. */
export interface IoUse {
  readonly disks: number;
  readonly images: number;
  readonly sockets: number;
}

/**
 * The most I/O memory that this may take, KiB. The kernel gives pages on first use, and the slots of a
 * disk keep theirs: how many of them were in use at once depends on how fast the machine is.
 */
export function mostIoMemoryKib({ disks, images, sockets }: IoUse): number {
  const diskBytes = SLOTS * SLOT_BYTES + CLIENTS_THAT_KEEP_PAGES * CLIENT_BYTES;
  const clientsKib = sockets * CLIENT_BYTES / KIB;
  return disks * diskBytes / KIB + clientsKib + images * IMAGE_KIB + SHARED_KIB;
}

export function descriptorTargets(pid: number): string[] {
  const targets: string[] = [];
  for (const { name } of Deno.readDirSync(`/proc/${pid}/fd`)) {
    try {
      targets.push(Deno.readLinkSync(`/proc/${pid}/fd/${name}`));
    } catch {
      // It has been closed meanwhile.
    }
  }
  return targets;
}

/** I/O memory that is in use, KiB. */
export function ioMemoryKib(pid: number): number {
  let sum = 0;
  let rss = 0;
  for (const line of Deno.readTextFileSync(`/proc/${pid}/smaps`).split("\n")) {
    if (line.startsWith("Rss:")) rss = Number(/\d+/.exec(line)?.[0]);
    else if (IO_MEMORY_FLAG.test(line)) sum += rss;
  }
  return sum;
}

/** Processor time of a process and the children that it has waited for, in seconds. */
export function processorSeconds(pid: number): number {
  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks), 0) / TICKS;
}
