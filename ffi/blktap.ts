/**
 * The blktap2 driver of XenServer's kernels and of the package blktap-dkms: its devices, its ioctls
 * and the ring that it shares with a tapdisk. Numbers and layouts are those of the driver's
 * linux-blktap.h and of Xen's io/ring.h on x86-64; no other file of the project knows them.
 *
 * @module
 */
import { assert } from "./assert.ts";
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { closeFile, O_RDONLY, O_RDWR, openFile } from "./files.ts";
import { cString, openLibc } from "./libc.ts";
import { type Arena, PAGE_BYTES, SECTOR_BYTES } from "./memory.ts";

const libc = openLibc({
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

/** Operations of a request. */
export const BLKTAP_OP_READ = 0;
export const BLKTAP_OP_WRITE = 1;
export const BLKTAP_OP_FLUSH = 2;
export const BLKTAP_OP_TRIM = 3;

/** Status of a response. */
export const BLKTAP_RSP_OKAY = 0;
export const BLKTAP_RSP_ERROR = -1;
export const BLKTAP_RSP_EOPNOTSUPP = -2;

/** Messages of the driver in the ring. Only the first drivers send PAUSE and RESUME. */
export const BLKTAP_RING_MESSAGE_PAUSE = 1;
export const BLKTAP_RING_MESSAGE_RESUME = 2;
export const BLKTAP_RING_MESSAGE_CLOSE = 3;

/** Entries of the ring. A request's number, its `id`, is below this. */
export const BLKTAP_RING_SIZE = 32;
/** The most segments of a request, each in a page of its own. */
export const BLKTAP_SEGMENT_MAX = 11;
/** Bytes to map: a page for the ring, then the pages of each request by number. */
export const BLKTAP_MAPPED_BYTES = (1 + BLKTAP_RING_SIZE * BLKTAP_SEGMENT_MAX) * PAGE_BYTES;
/** Sectors of a page. */
export const BLKTAP_PAGE_SECTORS = PAGE_BYTES / SECTOR_BYTES;

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

// struct blktap_sring (DEFINE_RING_TYPES of io/ring.h): u32 req_prod @0, req_event @4, rsp_prod @8,
// rsp_event @12, u8 message @16, entries from @64, of 112 bytes each.
const REQ_PROD_WORD = 0;
const RSP_PROD_WORD = 2;
const MESSAGE_BYTE = 16;
const ENTRIES_WORD = 16;
const ENTRY_WORDS = 28;
// struct blktap_ring_request (linux-blktap.h): u8 operation @0, u8 nr_segments @1, u64 id @8, u64
// sector_number @16; then struct blktap_segment { u32; u8 first_sect @4, last_sect @5 }[11] @24, or
// u64 nr_sectors @24.
const ID_WORD = 2;
const SECTOR_WORD = 4;
const NR_SECTORS_WORD = 6;
const SEGMENTS_WORD = 6;
const RING_HEADER_BYTES = 4 * ENTRIES_WORD;
const ENTRY_BYTES = 4 * ENTRY_WORDS;
const SEGMENT_BYTES = 8;

// __RING_SIZE of io/ring.h: the largest power of two of entries that a page has room for.
assert(
  RING_HEADER_BYTES + BLKTAP_RING_SIZE * ENTRY_BYTES <= PAGE_BYTES &&
    RING_HEADER_BYTES + 2 * BLKTAP_RING_SIZE * ENTRY_BYTES > PAGE_BYTES,
  "A blktap2 ring does not have the entries of a page",
);
assert(
  ENTRY_BYTES === 4 * SEGMENTS_WORD + SEGMENT_BYTES * BLKTAP_SEGMENT_MAX,
  "An entry of a blktap2 ring does not have room for its segments",
);

/** The upper half of 2^53, the first number that is not a safe integer. */
const HIGH_END = 1 << 21;

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

/**
 * The ring in memory. The driver may write to it at any time. So `take` copies a request, and the
 * methods after it read the copy.
 */
export class BlktapRing {
  readonly #words: Int32Array<ArrayBuffer>;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #entry = new Int32Array(ENTRY_WORDS);

  /** @param arena The memory in which the ring is mapped, from the first byte on. */
  constructor(arena: Arena) {
    this.#bytes = arena.bytes.subarray(0, PAGE_BYTES);
    this.#words = new Int32Array(arena.bytes.buffer, arena.bytes.byteOffset, PAGE_BYTES / 4);
  }

  /** `req_prod`: how many requests the driver has added in all, modulo 2^32. */
  produced(): number {
    return Atomics.load(this.#words, REQ_PROD_WORD);
  }

  /** The message of the driver, BLKTAP_RING_MESSAGE_*; 0 for none. */
  message(): number {
    return Atomics.load(this.#bytes, MESSAGE_BYTE);
  }

  /** Clears the message, as a driver does when it gets the reply. */
  clearMessage(): void {
    Atomics.store(this.#bytes, MESSAGE_BYTE, 0);
  }

  /** Copies request `index`, which counts as `produced` does. */
  take(index: number): void {
    const start = ENTRIES_WORD + (index & (BLKTAP_RING_SIZE - 1)) * ENTRY_WORDS;
    for (let i = 0; i < ENTRY_WORDS; i++) this.#entry[i] = this.#words[start + i];
  }

  /** The operation: a BLKTAP_OP_*, or any other byte. */
  operation(): number {
    return this.#entry[0] & 0xff;
  }

  /** `nr_segments`, unchecked: up to 255. */
  segments(): number {
    return this.#entry[0] >>> 8 & 0xff;
  }

  /** The request's number; -1 for one that is out of range. */
  id(): number {
    const low = this.#entry[ID_WORD];
    const inRange = low >= 0 && low < BLKTAP_RING_SIZE && this.#entry[ID_WORD + 1] === 0;
    return inRange ? low : -1;
  }

  /** The first sector; -1 when it is no safe integer. */
  sector(): number {
    return this.#number(SECTOR_WORD);
  }

  /** The number of sectors of a trim; -1 when it is no safe integer. */
  trimSectors(): number {
    return this.#number(NR_SECTORS_WORD);
  }

  #number(word: number): number {
    const high = this.#entry[word + 1];
    if (high < 0 || high >= HIGH_END) return -1;
    return high * 2 ** 32 + (this.#entry[word] >>> 0);
  }

  /** First sector of segment `index` in its page: up to 255. */
  firstSector(index: number): number {
    return this.#entry[SEGMENTS_WORD + 2 * index + 1] & 0xff;
  }

  /** Last sector of segment `index` in its page: up to 255. */
  lastSector(index: number): number {
    return this.#entry[SEGMENTS_WORD + 2 * index + 1] >>> 8 & 0xff;
  }

  /**
   * Writes response `index`, which counts as `publish` does.
   *
   * @param id Number of the request.
   * @param operation Operation of the request.
   * @param status BLKTAP_RSP_*.
   */
  answer(index: number, id: number, operation: number, status: number): void {
    // struct blktap_ring_response (linux-blktap.h): u64 id @0, u8 operation @8, i16 status @10.
    const start = ENTRIES_WORD + (index & (BLKTAP_RING_SIZE - 1)) * ENTRY_WORDS;
    this.#words[start] = id;
    this.#words[start + 1] = 0;
    this.#words[start + 2] = operation | (status & 0xffff) << 16;
  }

  /**
   * Writes response `index` to the request that was taken last, with its 64-bit number as it is.
   */
  answerTaken(index: number, status: number): void {
    const start = ENTRIES_WORD + (index & (BLKTAP_RING_SIZE - 1)) * ENTRY_WORDS;
    this.answer(index, this.#entry[ID_WORD], this.operation(), status);
    this.#words[start + 1] = this.#entry[ID_WORD + 1];
  }

  /** Sets `rsp_prod`: the driver may read the responses before `index`, modulo 2^32. */
  publish(index: number): void {
    Atomics.store(this.#words, RSP_PROD_WORD, index);
  }
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
