/**
 * The blktap2 driver of XenServer's kernels and of the package blktap-dkms: its devices and ioctls.
 * Numbers and layouts are those of the driver's linux-blktap.h on x86-64. `blktap_ring.ts` is the
 * ring that it shares with a tapdisk.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { closeFile, O_RDONLY, O_RDWR, openFile } from "./files.ts";
import { cString, openLibcLater } from "./libc.ts";
import type { Arena } from "./memory.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int ioctl(int fd, unsigned long request, void *argp)
  ioctl: { parameters: ["i32", "u32", "buffer"], result: "i32" },
  // int ioctl(int fd, unsigned long request, unsigned long arg); the driver reads 32 bits of arg
  ioctlNumber: { name: "ioctl", parameters: ["i32", "u32", "i32"], result: "i32" },
  // long syscall(SYS_mknod, const char *pathname, mode_t mode, dev_t dev), in any glibc; the
  // kernel takes 32 bits of dev
  mknod: { name: "syscall", parameters: ["i32", "buffer", "u32", "u32"], result: "i32" },
  // int close(int fd), by another thread: it waits while a process uses the block device
  closeAside: { name: "close", parameters: ["i32"], result: "i32", nonblocking: true },
});

/** Tells the driver that the ring has responses. */
const BLKTAP_IOCTL_RESPOND = 1;
/** Creates a tap and fills a `struct blktap_info`. On the control device. */
export const BLKTAP_IOCTL_ALLOC_TAP = 200;
/** Frees a tap by its minor. On the control device. */
export const BLKTAP_IOCTL_FREE_TAP = 201;
/** Creates the block device from a `struct blktap2_params`. The first drivers have only this. */
const BLKTAP_IOCTL_CREATE_DEVICE_COMPAT = 202;
/** Sets name and size of another image. The first drivers, which ask for a pause, take it. */
export const BLKTAP2_IOCTL_SET_PARAMS = 203;
/** Tells a driver that asked for a pause that the disk is paused. */
export const BLKTAP2_IOCTL_PAUSE = 204;
/** Gets the name of the image to resume with. */
const BLKTAP2_IOCTL_REOPEN = 205;
/** Tells a driver that asked to resume that the disk runs again, or with which errno it failed. */
export const BLKTAP2_IOCTL_RESUME = 206;
/** Removes the block device; EBUSY while it is in use. */
export const BLKTAP_IOCTL_REMOVE_DEVICE = 207;
/** Creates the block device from a `struct blktap_device_info`. */
const BLKTAP_IOCTL_CREATE_DEVICE = 208;

/** Flags of `struct blktap_device_info`. */
export const BLKTAP_DEVICE_FLAG_RO = 0x01;
export const BLKTAP_DEVICE_FLAG_PSZ = 0x02;
export const BLKTAP_DEVICE_FLAG_FLUSH = 0x04;
export const BLKTAP_DEVICE_FLAG_TRIM = 0x08;

const BLKTAP_NAME_MAX = 256;
const DIRECTORY = "/dev/xen/blktap-2";
const CONTROL_DEVICES = [`${DIRECTORY}/control`, "/dev/blktap/control", "/dev/blktap-control"];
/** Names of the control device in /proc/misc. */
const CONTROL_NAMES = ["blktap-control", "blktap/control"];
const MISC_MAJOR = 10;
const SYS_mknod = 133;
const S_IFCHR = 0o020000;
const S_IFBLK = 0o060000;
/** The kernel's internal errno for an unknown ioctl; old kernels return it to programs. */
const ENOIOCTLCMD = 515;

/** A tap: its minor, and the majors of its two devices (`struct blktap_info`). */
export interface BlktapInfo {
  readonly ringMajor: number;
  readonly blockMajor: number;
  readonly minor: number;
}

/** Parameters of a new block device. */
export interface BlktapDeviceInfo {
  /** `type:path`; the driver shows it in sysfs. */
  readonly name: string;
  readonly sectors: number;
  readonly sectorSizeBytes: number;
  readonly physicalBlockBytes: number;
  readonly trimBlockBytes: number;
  /** A union of BLKTAP_DEVICE_FLAG_* bits. */
  readonly flags: number;
}

/** The driver, or its simulation in tests. Calls return 0 or a negative errno. */
export interface BlktapDriver {
  /** Why the driver cannot be used; null when it can. */
  missing(): string | null;
  /** An ioctl on the control device; BLKTAP_IOCTL_*. */
  control(request: number, argument: Uint8Array<ArrayBuffer> | number): number;
  /** Opens the ring of a tap. Throws `SystemError`. */
  openRing(tap: BlktapInfo): BlktapRingDevice;
  /** Returns the node of a tap's block device; creates it if need be. Throws `SystemError`. */
  makeNode(tap: BlktapInfo): string;
  /** Removes the nodes that this object created for a tap. */
  removeNodes(tap: BlktapInfo): void;
  /** Frees the tap of a dead tapdisk and removes its nodes, unless another process has it open. */
  clearUp(minor: number): void;
}

/** The ring device of a tap. Only one process can have it open. */
export interface BlktapRingDevice {
  /** Is readable when the ring has new requests or a message. */
  readonly fd: number;
  /**
   * Maps the ring, and after it the pages of its requests, over an arena of BLKTAP_MAPPED_BYTES.
   * Throws `SystemError`.
   */
  map(arena: Arena): void;
  /** An ioctl on the ring device; BLKTAP_IOCTL_* and BLKTAP2_IOCTL_*. */
  call(request: number, argument: Uint8Array<ArrayBuffer> | number): number;
  /** BLKTAP_IOCTL_RESPOND. It allocates nothing. */
  respond(): void;
  /** Acknowledges that `fd` was readable; called before the ring is read. */
  woken(): void;
  /**
   * Closes the device.
   *
   * @param options `wait`: the close runs on another thread, and the promise waits for it. It takes
   * as long as the block device has users.
   */
  close(options: { wait: boolean }): Promise<void>;
}

/** Creates a tap. Throws `SystemError`. */
export function allocateTap(driver: BlktapDriver): BlktapInfo {
  // struct blktap_info (linux-blktap.h): u32 ring_major @0, bdev_major @4, ring_minor @8.
  const info = new Uint8Array(12);
  const result = driver.control(BLKTAP_IOCTL_ALLOC_TAP, info);
  if (result < 0) throw new SystemError(-result, "Cannot make a device of the blktap2 driver");
  const [ringMajor, blockMajor, minor] = new Uint32Array(info.buffer);
  return { ringMajor, blockMajor, minor };
}

function nameBytes(name: string): Uint8Array {
  const bytes = new TextEncoder().encode(name);
  return bytes.subarray(0, BLKTAP_NAME_MAX - 1);
}

/**
 * A `struct blktap2_params` (linux-blktap.h): name[256] @0, u64 capacity @256, unsigned long
 * sector_size @264.
 */
export function blktapParams(
  { name, sectors, sectorSizeBytes }: BlktapDeviceInfo,
): Uint8Array<ArrayBuffer> {
  const params = new Uint8Array(BLKTAP_NAME_MAX + 16);
  params.set(nameBytes(name));
  const view = new DataView(params.buffer);
  view.setBigUint64(BLKTAP_NAME_MAX, BigInt(sectors), true);
  view.setUint32(BLKTAP_NAME_MAX + 8, sectorSizeBytes, true);
  return params;
}

/**
 * Creates the block device of a tap. A driver that does not know BLKTAP_IOCTL_CREATE_DEVICE gets
 * BLKTAP_IOCTL_CREATE_DEVICE_COMPAT.
 *
 * @returns The BLKTAP_DEVICE_FLAG_* that the driver supports; 0 for the compatible ioctl.
 * @throws {SystemError}
 */
export function createBlktapDevice(ring: BlktapRingDevice, info: BlktapDeviceInfo): number {
  // struct blktap_device_info (linux-blktap.h): u64 capacity @0, u32 sector_size @8, unsigned long
  // flags @16, u32 phys_block_size @24, phys_block_offset @28, trim_block_size @32,
  // trim_block_offset @36.
  const device = new Uint8Array(40);
  const view = new DataView(device.buffer);
  view.setBigUint64(0, BigInt(info.sectors), true);
  view.setUint32(8, info.sectorSizeBytes, true);
  view.setUint32(16, info.flags, true);
  view.setUint32(24, info.physicalBlockBytes, true);
  view.setUint32(32, info.trimBlockBytes, true);
  let result = ring.call(BLKTAP_IOCTL_CREATE_DEVICE, device);
  if (result === 0) return view.getUint32(16, true);
  if (result === -Errno.ENOTTY || result === -ENOIOCTLCMD) {
    result = ring.call(BLKTAP_IOCTL_CREATE_DEVICE_COMPAT, blktapParams(info));
    if (result === 0) return 0;
  }
  throw new SystemError(-result, `Cannot make a block device of ${info.sectors} sectors`);
}

/** The image to resume with, `type:path`, as the driver was told; null when it names none. */
export function nameToReopen(ring: BlktapRingDevice): string | null {
  const bytes = new Uint8Array(BLKTAP_NAME_MAX);
  if (ring.call(BLKTAP2_IOCTL_REOPEN, bytes) < 0) return null;
  const end = bytes.indexOf(0);
  return end === 0 ? null : new TextDecoder().decode(bytes.subarray(0, end < 0 ? undefined : end));
}

function kernelResult(result: number): number {
  return result < 0 ? -lastErrno() : 0;
}

/**
 * An ioctl of the driver on one of its open files. The simulated driver of the tests makes this
 * call too, so that its arguments are checked.
 *
 * @returns 0 or a negative errno.
 */
export function blktapIoctl(
  fd: number,
  request: number,
  argument: Uint8Array<ArrayBuffer> | number,
): number {
  const result = typeof argument === "number"
    ? libc.ioctlNumber(fd, request, argument)
    : libc.ioctl(fd, request, argument);
  return kernelResult(result);
}

/** BLKTAP_IOCTL_RESPOND on an open ring device. It allocates nothing. */
export function blktapRespond(fd: number): void {
  libc.ioctlNumber(fd, BLKTAP_IOCTL_RESPOND, 0);
}

/** The state of a device node; null when there is none. Throws `SystemError`. */
function nodeAt(path: string): Deno.FileInfo | null {
  try {
    return Deno.lstatSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw new SystemError(Errno.EACCES, `Cannot look at ${path}`);
  }
}

function deviceNumber(major: number, minor: number): number {
  return (minor & 0xff | major << 8 | (minor & ~0xff) << 12) >>> 0;
}

/**
 * Creates a device node unless it exists; one of another device is replaced.
 *
 * @param format S_IFCHR or S_IFBLK.
 * @returns Whether this call created it.
 * @throws {SystemError}
 */
function ensureNode(path: string, format: number, major: number, minor: number): boolean {
  const device = deviceNumber(major, minor);
  const node = nodeAt(path);
  const rightKind = format === S_IFBLK ? node?.isBlockDevice : node?.isCharDevice;
  if (rightKind && node?.rdev === device) return false;
  Deno.mkdirSync(DIRECTORY, { recursive: true });
  // The umask must not hide the folder: other users may have access to the nodes in it.
  Deno.chmodSync(DIRECTORY, 0o755);
  if (node !== null) Deno.removeSync(path);
  if (libc.mknod(SYS_mknod, cString(path), format | 0o600, device) === 0) return true;
  // udev may have created it meanwhile.
  if (lastErrno() === Errno.EEXIST) return false;
  throw new SystemError(lastErrno(), `Cannot make the node ${path}`);
}

/** The minor of the control device by /proc/misc; -1 when the kernel has none. */
function controlMinor(): number {
  for (const line of Deno.readTextFileSync("/proc/misc").split("\n")) {
    const [minor, name] = line.trim().split(/\s+/);
    if (CONTROL_NAMES.includes(name)) return Number(minor);
  }
  return -1;
}

function ringPath(minor: number): string {
  return `${DIRECTORY}/blktap${minor}`;
}

/** The node of a tap's block device. */
export function blktapNode(minor: number): string {
  return `${DIRECTORY}/tapdev${minor}`;
}

/** The minor of a tap from the node of its block device; -1 for any other node. */
export function blktapMinorOf(node: string): number {
  const prefix = `${DIRECTORY}/tapdev`;
  const digits = node.startsWith(prefix) ? node.slice(prefix.length) : "";
  return /^\d{1,6}$/.test(digits) ? Number(digits) : -1;
}

class KernelRing implements BlktapRingDevice {
  constructor(readonly fd: number) {}

  map(arena: Arena): void {
    arena.mapDescriptor(this.fd);
  }

  call(request: number, argument: Uint8Array<ArrayBuffer> | number): number {
    return blktapIoctl(this.fd, request, argument);
  }

  respond(): void {
    blktapRespond(this.fd);
  }

  // The driver needs no acknowledgement: each poll looks at the ring.
  woken(): void {}

  async close({ wait }: { wait: boolean }): Promise<void> {
    if (wait) await libc.closeAside(this.fd);
    else closeFile(this.fd);
  }
}

/** The driver of the running kernel. */
export class KernelBlktap implements BlktapDriver {
  readonly #made = new Set<string>();

  missing(): string | null {
    const control = CONTROL_DEVICES.find((path) => nodeAt(path) !== null);
    if (control === undefined) {
      return controlMinor() >= 0 ? null : "the kernel has no blktap2 driver; try 'modprobe blktap'";
    }
    try {
      closeFile(openFile(control, O_RDONLY));
      return null;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  }

  control(request: number, argument: Uint8Array<ArrayBuffer> | number): number {
    const fd = openFile(this.#controlPath(), O_RDONLY);
    try {
      return blktapIoctl(fd, request, argument);
    } finally {
      closeFile(fd);
    }
  }

  #controlPath(): string {
    const found = CONTROL_DEVICES.find((path) => nodeAt(path) !== null);
    if (found !== undefined) return found;
    const minor = controlMinor();
    if (minor < 0) throw new SystemError(Errno.ENODEV, "Cannot find the blktap2 driver");
    ensureNode(CONTROL_DEVICES[0], S_IFCHR, MISC_MAJOR, minor);
    return CONTROL_DEVICES[0];
  }

  openRing({ ringMajor, minor }: BlktapInfo): BlktapRingDevice {
    const path = ringPath(minor);
    if (ensureNode(path, S_IFCHR, ringMajor, minor)) this.#made.add(path);
    return new KernelRing(openFile(path, O_RDWR));
  }

  makeNode({ blockMajor, minor }: BlktapInfo): string {
    const path = blktapNode(minor);
    if (ensureNode(path, S_IFBLK, blockMajor, minor)) this.#made.add(path);
    return path;
  }

  removeNodes({ minor }: BlktapInfo): void {
    for (const path of [ringPath(minor), blktapNode(minor)]) {
      if (this.#made.delete(path) && nodeAt(path) !== null) Deno.removeSync(path);
    }
  }

  clearUp(minor: number): void {
    const result = this.control(BLKTAP_IOCTL_FREE_TAP, minor);
    if (result !== 0 && result !== -Errno.ENODEV) return;
    for (const path of [ringPath(minor), blktapNode(minor)]) {
      if (nodeAt(path) !== null) Deno.removeSync(path);
    }
  }
}
