/**
 * ublk, the kernel's driver for block devices served by a process: numbers of commands, layouts of
 * their arguments, and the descriptors of requests that the kernel maps into the process. All of
 * them are those of linux/ublk_cmd.h.
 *
 * A command is the last 80 bytes of a 128-byte submission entry of io_uring.
 *
 * @module
 */
import { assert } from "./assert.ts";
import { lastErrno, SystemError } from "./errno.ts";
import { memoryAt, openLibc, pointerAddress } from "./libc.ts";
import { memoryAddress, PAGE_BYTES } from "./memory.ts";
import { putNumber64 } from "./sockets.ts";
import { LONG_COMMAND_BYTES, SHORT_COMMAND_BYTES } from "./uring.ts";

const libc = /* @__PURE__ */ openLibc({
  // void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
  mmap: { parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
  // int munmap(void *addr, size_t length)
  munmap: { parameters: ["usize", "usize"], result: "i32" },
});

/** The device that takes control commands. */
export const UBLK_CONTROL_PATH = "/dev/ublk-control";

/** Control commands. Kernels before 6.4 take these numbers; see `encodedControlCommand`. */
export const UBLK_CMD_GET_DEV_INFO = 0x02;
export const UBLK_CMD_ADD_DEV = 0x04;
export const UBLK_CMD_DEL_DEV = 0x05;
export const UBLK_CMD_START_DEV = 0x06;
export const UBLK_CMD_STOP_DEV = 0x07;
export const UBLK_CMD_SET_PARAMS = 0x08;
export const UBLK_CMD_START_USER_RECOVERY = 0x10;
export const UBLK_CMD_END_USER_RECOVERY = 0x11;
/** Control commands of later kernels, which take encoded numbers only. */
export const UBLK_CMD_GET_FEATURES = 0x13;
export const UBLK_CMD_UPDATE_SIZE = 0x15;
export const UBLK_CMD_TRY_STOP_DEV = 0x17;

/** Commands to a device's own file, /dev/ublkcN. */
export const UBLK_IO_FETCH_REQ = 0x20;
export const UBLK_IO_COMMIT_AND_FETCH_REQ = 0x21;

/** Results of these commands: a request arrived; the device was stopped. */
export const UBLK_IO_RES_OK = 0;
export const UBLK_IO_RES_ABORT = -19;

/** Flags of a device, all in the lower half of 64 bits. */
export const UBLK_F_USER_RECOVERY = 1 << 3;
export const UBLK_F_USER_RECOVERY_REISSUE = 1 << 4;
/** Features of the kernel, which UBLK_CMD_GET_FEATURES returns. */
export const UBLK_F_CMD_IOCTL_ENCODE = 1 << 6;
export const UBLK_F_UPDATE_SIZE = 1 << 10;
export const UBLK_F_SAFE_STOP_DEV = 1 << 17;

/** States of a device: not started or stopped; serving. */
export const UBLK_S_DEV_DEAD = 0;
export const UBLK_S_DEV_LIVE = 1;

/** Operations of a request, in the lowest byte of `op_flags`. */
export const UBLK_IO_OP_READ = 0;
export const UBLK_IO_OP_WRITE = 1;
export const UBLK_IO_OP_FLUSH = 2;
export const UBLK_IO_OP_DISCARD = 3;
export const UBLK_IO_OP_WRITE_ZEROES = 5;
/** Flags of a request, in the upper bits of `op_flags`. */
export const UBLK_IO_F_FUA = 1 << 13;
export const UBLK_IO_F_NOUNMAP = 1 << 15;

/** Attributes of a disk (struct ublk_param_basic). */
export const UBLK_ATTR_READ_ONLY = 1 << 0;
export const UBLK_ATTR_VOLATILE_CACHE = 1 << 2;
export const UBLK_ATTR_FUA = 1 << 3;

/** The `dev_id` that lets the kernel choose a number. */
export const UBLK_ANY_DEVICE = 0xffff_ffff;

const UBLK_PARAM_TYPE_BASIC = 1 << 0;
const UBLK_PARAM_TYPE_DISCARD = 1 << 1;

// _IOC of asm-generic/ioctl.h: direction in bits 30 and 31, size of the argument in 16 to 29, type
// in 8 to 15, number in 0 to 7.
const IOC_WRITE = 1;
const IOC_READ = 2;
const UBLK_IOC_TYPE = 0x75;
const CTRL_CMD_BYTES = 32;
const IO_CMD_BYTES = 16;
assert(CTRL_CMD_BYTES <= LONG_COMMAND_BYTES, "A control command of ublk is longer than an entry");
assert(IO_CMD_BYTES <= SHORT_COMMAND_BYTES, "A queue command of ublk is longer than an entry");
const READ_ONLY_COMMANDS: readonly number[] = [UBLK_CMD_GET_DEV_INFO, UBLK_CMD_GET_FEATURES];

function ioctlNumber(direction: number, number: number, argumentBytes: number): number {
  return direction << 30 | argumentBytes << 16 | UBLK_IOC_TYPE << 8 | number;
}

/** The number of a control command since Linux 6.4 (UBLK_U_CMD_*), as a signed 32-bit number. */
export function encodedControlCommand(number: number): number {
  const direction = READ_ONLY_COMMANDS.includes(number) ? IOC_READ : IOC_READ | IOC_WRITE;
  return ioctlNumber(direction, number, CTRL_CMD_BYTES);
}

/** The same for a command to a device's own file (UBLK_U_IO_*). */
export function encodedIoCommand(number: number): number {
  return ioctlNumber(IOC_READ | IOC_WRITE, number, IO_CMD_BYTES);
}

/** Arguments of a control command. */
export interface ControlArguments {
  readonly device: number;
  /** Address and length, bytes, of memory that the kernel reads or writes; both 0 for none. */
  readonly address: number;
  readonly lengthBytes: number;
  /** `data[0]`: a number, depending on the command. */
  readonly data: number;
}

/** Writes a `struct ublksrv_ctrl_cmd`. */
export function putControlCommand(view: DataView, at: number, command: ControlArguments): void {
  // u32 dev_id @0, u16 queue_id @4 (-1 for none), u16 len @6, u64 addr @8, u64 data[2] @16.
  view.setUint32(at, command.device, true);
  view.setUint16(at + 4, 0xffff, true);
  view.setUint16(at + 6, command.lengthBytes, true);
  putNumber64(view, at + 8, command.address);
  putNumber64(view, at + 16, command.data);
  putNumber64(view, at + 24, 0);
}

/**
 * Writes a `struct ublksrv_io_cmd`.
 *
 * @param result Result of the request that ends: bytes, or a negative errno.
 * @param memorySector Sector of I/O memory for the data of the tag's next request.
 */
export function putIoCommand(
  view: DataView,
  at: number,
  queue: number,
  tag: number,
  result: number,
  memorySector: number,
): void {
  // u16 q_id @0, u16 tag @2, s32 result @4, u64 addr @8.
  view.setUint16(at, queue, true);
  view.setUint16(at + 2, tag, true);
  view.setInt32(at + 4, result, true);
  putNumber64(view, at + 8, memoryAddress(memorySector));
}

/** Bytes of a `struct ublksrv_ctrl_dev_info`. */
export const DEVICE_INFO_BYTES = 64;

/** A `struct ublksrv_ctrl_dev_info`: what a new device should be, or what a device is. */
export interface DeviceInfo {
  readonly queues: number;
  readonly depth: number;
  /** One of UBLK_S_DEV_*. */
  readonly state: number;
  /** The longest read or write, bytes. */
  readonly mostBytes: number;
  readonly device: number;
  /** ID of the process that serves it; -1 for none. */
  readonly pid: number;
  /** UBLK_F_* bits of the lower 32 bits. */
  readonly flags: number;
  /** ID of the process that created it; 0 for a device of another program. */
  readonly makerPid: number;
}

/** The lower half of `ublksrv_flags`, which the kernel stores and does not use: "blkt". */
const MAKER_MAGIC = 0x626c6b74;

/** Writes a `struct ublksrv_ctrl_dev_info` for a new device. */
export function putDeviceInfo(
  view: DataView,
  at: number,
  info: Omit<DeviceInfo, "state" | "pid">,
): void {
  // u16 nr_hw_queues @0, u16 queue_depth @2, u16 state @4, u16 pad @6, u32 max_io_buf_bytes @8,
  // u32 dev_id @12, s32 ublksrv_pid @16, u32 pad @20, u64 flags @24, u64 ublksrv_flags @32,
  // u64 reserved[3] @40.
  for (let i = 0; i < DEVICE_INFO_BYTES; i += 4) view.setUint32(at + i, 0, true);
  view.setUint16(at, info.queues, true);
  view.setUint16(at + 2, info.depth, true);
  view.setUint32(at + 8, info.mostBytes, true);
  view.setUint32(at + 12, info.device, true);
  view.setInt32(at + 16, -1, true);
  view.setUint32(at + 24, info.flags, true);
  view.setUint32(at + 32, MAKER_MAGIC, true);
  view.setUint32(at + 36, info.makerPid, true);
}

/** Reads a `struct ublksrv_ctrl_dev_info`. */
export function getDeviceInfo(view: DataView, at: number): DeviceInfo {
  return {
    queues: view.getUint16(at, true),
    depth: view.getUint16(at + 2, true),
    state: view.getUint16(at + 4, true),
    mostBytes: view.getUint32(at + 8, true),
    device: view.getUint32(at + 12, true),
    pid: view.getInt32(at + 16, true),
    flags: view.getUint32(at + 24, true),
    makerPid: view.getUint32(at + 32, true) === MAKER_MAGIC ? view.getUint32(at + 36, true) : 0,
  };
}

/** Bytes of a `struct ublk_params`, up to the end of its part for discards. */
export const PARAMETERS_BYTES = 60;

/** Properties of a disk. */
export interface DiskParameters {
  /** UBLK_ATTR_* bits. */
  readonly attributes: number;
  readonly logicalBlockBytes: number;
  readonly physicalBlockBytes: number;
  readonly sectors: number;
  /** The longest read or write, sectors. */
  readonly mostSectors: number;
  readonly discardGranularityBytes: number;
  readonly mostDiscardSectors: number;
  readonly mostZeroSectors: number;
}

/** Writes a `struct ublk_params` with the basic part and the part for discards. */
export function putParameters(view: DataView, at: number, disk: DiskParameters): void {
  // u32 len @0, u32 types @4; basic: u32 attrs @8, u8 logical_bs_shift @12, physical_bs_shift @13,
  // io_opt_shift @14, io_min_shift @15, u32 max_sectors @16, chunk_sectors @20,
  // u64 dev_sectors @24, virt_boundary_mask @32; discard: u32 alignment @40, granularity @44,
  // max_discard_sectors @48, max_write_zeroes_sectors @52, u16 max_discard_segments @56.
  for (let i = 0; i < PARAMETERS_BYTES; i += 4) view.setUint32(at + i, 0, true);
  const physicalShift = Math.log2(disk.physicalBlockBytes);
  view.setUint32(at, PARAMETERS_BYTES, true);
  view.setUint32(at + 4, UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD, true);
  view.setUint32(at + 8, disk.attributes, true);
  view.setUint8(at + 12, Math.log2(disk.logicalBlockBytes));
  view.setUint8(at + 13, physicalShift);
  view.setUint8(at + 14, physicalShift);
  view.setUint8(at + 15, physicalShift);
  view.setUint32(at + 16, disk.mostSectors, true);
  putNumber64(view, at + 24, disk.sectors);
  view.setUint32(at + 44, disk.discardGranularityBytes, true);
  view.setUint32(at + 48, disk.mostDiscardSectors, true);
  view.setUint32(at + 52, disk.mostZeroSectors, true);
  view.setUint16(at + 56, disk.mostDiscardSectors > 0 ? 1 : 0, true);
}

// struct ublksrv_io_desc: u32 op_flags @0, u32 nr_sectors @4, u64 start_sector @8, u64 addr @16.
const DESCRIPTOR_BYTES = 24;
const DESCRIPTOR_WORDS = DESCRIPTOR_BYTES / 4;
/** The most requests of a queue: their descriptors end where those of the next queue begin. */
export const UBLK_MAX_QUEUE_DEPTH = 4096;
const UBLKSRV_CMD_BUF_OFFSET = 0;
const PROT_READ = 1;
const MAP_SHARED = 1;
const MAP_POPULATE = 0x8000;
const MAP_FAILED = 2 ** 64 - 1;

/** The descriptors of the requests of one queue, by tag. The kernel writes them. */
export class RequestDescriptors {
  #words: Uint32Array<ArrayBuffer>;
  readonly #address: number;
  readonly #lengthBytes: number;

  /**
   * Maps the descriptors of queue `queue`.
   *
   * @param fd The device's own file, /dev/ublkcN.
   * @param depth Requests of the queue, at most UBLK_MAX_QUEUE_DEPTH.
   * @throws {SystemError}
   */
  constructor(fd: number, queue: number, depth: number) {
    assert(depth <= UBLK_MAX_QUEUE_DEPTH, "A ublk queue is deeper than its descriptors");
    this.#lengthBytes = Math.ceil(depth * DESCRIPTOR_BYTES / PAGE_BYTES) * PAGE_BYTES;
    const offset = UBLKSRV_CMD_BUF_OFFSET + queue * UBLK_MAX_QUEUE_DEPTH * DESCRIPTOR_BYTES;
    const flags = MAP_SHARED | MAP_POPULATE;
    const pointer = libc.mmap(0, this.#lengthBytes, PROT_READ, flags, fd, offset);
    this.#address = pointerAddress(pointer);
    if (this.#address === 0 || this.#address >= MAP_FAILED) {
      throw new SystemError(lastErrno(), `Cannot map the requests of queue ${queue} of a device`);
    }
    this.#words = new Uint32Array(memoryAt(this.#address, this.#lengthBytes));
  }

  /** Operation (UBLK_IO_OP_*) and flags (UBLK_IO_F_*) of a tag's request. */
  operationAndFlags(tag: number): number {
    return this.#words[tag * DESCRIPTOR_WORDS];
  }

  /** Sectors of a tag's request. */
  count(tag: number): number {
    return this.#words[tag * DESCRIPTOR_WORDS + 1];
  }

  /** First sector of a tag's request. */
  sector(tag: number): number {
    const at = tag * DESCRIPTOR_WORDS;
    return this.#words[at + 2] + this.#words[at + 3] * 0x1_0000_0000;
  }

  /** Unmaps the descriptors. */
  close(): void {
    this.#words = new Uint32Array(0);
    libc.munmap(this.#address, this.#lengthBytes);
  }
}
