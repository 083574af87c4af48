/**
 * The state of the kernel's nbd driver and its devices, from /proc and sysfs. No function here
 * waits for a device, so the thread that serves it may call them.
 *
 * @module
 */
import { namesIn } from "../device_users.ts";

/** sysfs counts sectors of this size, whatever the device has. */
const SECTOR_BYTES = 512;
const CAP_SYS_ADMIN = 21n;

/** The state of a device by sysfs. */
export interface NbdFacts {
  /** Whether it has connections, dead ones included. */
  readonly isConnected: boolean;
  readonly sizeBytes: number;
  /** How often the kernel checks unanswered requests; null on kernels before 5.0. */
  readonly ioTimeoutMs: number | null;
  /** The name of the server that its creator set; null on kernels before 5.14. */
  readonly backend: string | null;
}

/** The node of a device. */
export function nodeOf(index: number): string {
  return `/dev/nbd${index}`;
}

/** N of /dev/nbdN; null for other nodes. */
export function indexOf(node: string): number | null {
  const digits = /^\/dev\/nbd(\d{1,6})$/.exec(node)?.[1];
  return digits === undefined ? null : Number(digits);
}

function folderOf(index: number): string {
  return `/sys/block/nbd${index}`;
}

function read(path: string): string | null {
  try {
    return Deno.readTextFileSync(path).trim();
  } catch {
    return null;
  }
}

/** The state of a device; null when it does not exist. */
export function nbdFacts(index: number): NbdFacts | null {
  const folder = folderOf(index);
  const sectors = read(`${folder}/size`);
  if (sectors === null) return null;
  const ioTimeout = read(`${folder}/queue/io_timeout`);
  return {
    isConnected: read(`${folder}/pid`) !== null,
    sizeBytes: Number(sectors) * SECTOR_BYTES,
    ioTimeoutMs: ioTimeout === null ? null : Number(ioTimeout),
    backend: read(`${folder}/backend`),
  };
}

/** The numbers of all devices, in ascending order. */
export function nbdIndexes(): number[] {
  const indexes = namesIn("/sys/block").map((name) => indexOf(`/dev/${name}`));
  return indexes.filter((index) => index !== null).sort((a, b) => a - b);
}

/**
 * Sets how often the kernel checks whether to send unanswered requests again (since 5.0). Another
 * thread does it, because newer kernels wait for requests in flight.
 */
export async function setIoTimeout(index: number, timeoutMs: number): Promise<void> {
  await Deno.writeTextFile(`${folderOf(index)}/queue/io_timeout`, `${timeoutMs}`, {
    create: false,
  });
}

/** Whether this kernel's release is `major.minor` or later. */
export function kernelAtLeast(major: number, minor: number): boolean {
  const [hasMajor = 0, hasMinor = 0] = Deno.osRelease().split(/[^0-9]/).map(Number);
  return hasMajor > major || (hasMajor === major && hasMinor >= minor);
}

/** Why the driver cannot be used here; null when it can. */
export function missingDriver(): string | null {
  const devices = read("/proc/devices");
  if (devices === null) return "/proc is not mounted";
  const blockDevices = devices.slice(devices.indexOf("Block devices:"));
  if (!/^ *43 nbd$/m.test(blockDevices)) {
    return "the kernel's nbd module is not loaded; modprobe nbd";
  }
  const capabilities = /^CapEff:\s*([0-9a-f]+)$/m.exec(read("/proc/self/status") ?? "")?.[1] ?? "0";
  const isAdmin = (BigInt(`0x${capabilities}`) >> CAP_SYS_ADMIN & 1n) === 1n;
  return isAdmin ? null : "it takes CAP_SYS_ADMIN; run as root";
}
