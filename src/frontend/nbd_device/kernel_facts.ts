/**
 * What /proc and sysfs tell of the kernel's nbd driver and its devices. Nothing here waits for a
 * device: the thread that serves it may ask.
 *
 * @module
 */
const SECTOR_BYTES = 512;
const CAP_SYS_ADMIN = 21n;

/** A device of the driver, as sysfs has it. */
export interface NbdFacts {
  /** Whether it has connections, be they dead. */
  readonly isConnected: boolean;
  readonly sizeBytes: number;
  /** How often the kernel looks at requests without an answer; null on kernels before 5.0. */
  readonly ioTimeoutMs: number | null;
  /** The name that who made it gave to what is behind it; null on kernels before 5.14. */
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

function namesIn(path: string): string[] {
  try {
    return Array.from(Deno.readDirSync(path), ({ name }) => name);
  } catch {
    return [];
  }
}

/** A device's state; null when there is no such device. */
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

/** The devices that there are, in ascending order. */
export function nbdIndexes(): number[] {
  const indexes = namesIn("/sys/block").map((name) => indexOf(`/dev/${name}`));
  return indexes.filter((index) => index !== null).sort((a, b) => a - b);
}

/**
 * Sets after how long the kernel looks whether a request of a device is to be sent again, since
 * 5.0. Done by another thread, for newer kernels wait for requests under way.
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
