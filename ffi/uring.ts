/**
 * io_uring (linux/io_uring.h): a ring of operations that one call hands to the kernel, and a ring
 * of completions that is read without a call.
 *
 * @module
 */
import { createEventFd } from "./epoll.ts";
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { closeFile, O_DIRECT } from "./files.ts";
import { memoryAt, openLibc, pointerAddress, pointerTo } from "./libc.ts";
import { Arena, memoryAddress, PAGE_BYTES, requireMemory, SECTOR_BYTES } from "./memory.ts";

const libc = openLibc({
  // long syscall(SYS_io_uring_setup, u32 entries, struct io_uring_params *p)
  io_uring_setup: { name: "syscall", parameters: ["i32", "u32", "buffer"], result: "i32" },
  // long syscall(SYS_io_uring_enter, unsigned fd, u32 to_submit, u32 min_complete, u32 flags,
  //              const void *argp); without argp its size, the seventh, is not looked at
  io_uring_enter: {
    name: "syscall",
    parameters: ["i32", "i32", "u32", "u32", "u32", "pointer"],
    result: "i32",
  },
  // long syscall(SYS_io_uring_register, unsigned fd, unsigned opcode, void *arg, unsigned nr_args)
  io_uring_register: {
    name: "syscall",
    parameters: ["i32", "i32", "u32", "buffer", "u32"],
    result: "i32",
  },
  // ssize_t preadv2(int fd, const struct iovec *iov, int iovcnt, off_t offset, int flags)
  preadv2: { parameters: ["i32", "buffer", "i32", "i64", "i32"], result: "isize" },
  // int fcntl(int fd, int op)
  fcntl: { parameters: ["i32", "i32"], result: "i32" },
  // void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
  mmap: { parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
  // int munmap(void *addr, size_t length)
  munmap: { parameters: ["pointer", "usize"], result: "i32" },
});

const SYS_io_uring_setup = 425;
const SYS_io_uring_enter = 426;
const SYS_io_uring_register = 427;

/** Operations of a submission entry. */
const IORING_OP_NOP = 0;
export const IORING_OP_READV = 1;
export const IORING_OP_WRITEV = 2;
const IORING_OP_FSYNC = 3;
export const IORING_OP_READ = 22;
export const IORING_OP_WRITE = 23;
const IORING_OP_URING_CMD = 46;

/** Flag of IORING_OP_FSYNC: the data, and of the metadata only what reading it back takes. */
const IORING_FSYNC_DATASYNC = 1;

const IORING_SETUP_CQSIZE = 1 << 3;
const IORING_SETUP_SUBMIT_ALL = 1 << 7;
const IORING_SETUP_COOP_TASKRUN = 1 << 8;
const IORING_SETUP_TASKRUN_FLAG = 1 << 9;
const IORING_SETUP_SQE128 = 1 << 10;
const IORING_SETUP_SINGLE_ISSUER = 1 << 12;
const IORING_SETUP_DEFER_TASKRUN = 1 << 13;
const IORING_FEAT_SINGLE_MMAP = 1 << 0;
const IORING_FEAT_NODROP = 1 << 1;
const IORING_FEAT_SUBMIT_STABLE = 1 << 2;
const IORING_ENTER_GETEVENTS = 1 << 0;
const IORING_SQ_CQ_OVERFLOW = 1 << 1;
const IORING_SQ_TASKRUN = 1 << 2;
const IORING_CQ_EVENTFD_DISABLED = 1 << 0;
const IORING_REGISTER_EVENTFD = 4;
const IORING_OFF_SQ_RING = 0;
const IORING_OFF_SQES = 0x10000000;
const NEEDED_FEATURES = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE;

const F_GETFL = 3;
const RWF_NOWAIT = 8;
const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 0x01;
const MAP_POPULATE = 0x8000;

const WORD_BYTES = 4;
const CQE_WORDS = 4;
const SQE_BYTES = 64;
const SQE128_BYTES = 128;
const COMMAND_AT = 48;
/** Bytes of a command in an entry of 128 bytes, and in one of 64. */
export const LONG_COMMAND_BYTES = SQE128_BYTES - COMMAND_AT;
export const SHORT_COMMAND_BYTES = SQE_BYTES - COMMAND_AT;
const HIGH_WORD = 0x1_0000_0000;

// struct io_uring_params in words: sq_entries 0, cq_entries 1, flags 2, features 5, sq_off from 10:
// head, tail, ring_mask, ring_entries, flags, dropped, array; cq_off from 20: head, tail,
// ring_mask, ring_entries, overflow, cqes, flags.
const PARAMS_WORDS = 30;
const PARAMS_CQ_ENTRIES = 1;
const PARAMS_FLAGS = 2;
const PARAMS_FEATURES = 5;
const PARAMS_SQ_OFF = 10;
const PARAMS_CQ_OFF = 20;

/**
 * What a ring is asked to be, best first. Whatever one kernel does not know (EINVAL), the next set
 * does without:
 * - since 6.1 the work at the end of an operation waits until the process looks for completions,
 *   instead of interrupting its waits (EINTR);
 * - since 5.19 entries can have 128 bytes, and that work does not interrupt running code;
 * - the rest is as old as the flag that quietens the eventfd (5.8).
 */
const SETUPS = [
  IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER |
  IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
  IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SQE128 | IORING_SETUP_COOP_TASKRUN |
  IORING_SETUP_TASKRUN_FLAG,
  0,
];

interface Setup {
  readonly fd: number;
  readonly params: Uint32Array<ArrayBuffer>;
}

function setUp(entries: number, completions: number): Setup {
  const params = new Uint32Array(PARAMS_WORDS);
  for (const flags of SETUPS) {
    params.fill(0);
    params[PARAMS_CQ_ENTRIES] = completions;
    params[PARAMS_FLAGS] = flags | IORING_SETUP_CQSIZE;
    const fd = libc.io_uring_setup(SYS_io_uring_setup, entries, params);
    if (fd >= 0) return { fd, params };
    if (lastErrno() !== Errno.EINVAL) break;
  }
  const errno = lastErrno();
  throw new SystemError(errno, `Cannot set up io_uring for ${entries} operations${hint(errno)}`);
}

function hint(errno: number): string {
  if (errno === Errno.EPERM) return " (see sysctl kernel.io_uring_disabled, or the sandbox)";
  if (errno === Errno.ENOMEM) return " (raise the limit of locked memory)";
  return "";
}

function mapRing(fd: number, sizeBytes: number, offsetBytes: number): number {
  const flags = MAP_SHARED | MAP_POPULATE;
  const pointer = libc.mmap(0, sizeBytes, PROT_READ | PROT_WRITE, flags, fd, offsetBytes);
  const address = pointerAddress(pointer);
  if (address === 0 || address > Number.MAX_SAFE_INTEGER) {
    throw new SystemError(lastErrno(), `Cannot map ${sizeBytes} bytes of an io_uring`);
  }
  return address;
}

/**
 * Why io_uring cannot be used here; null when it can. Makes a small ring and closes it.
 */
export function uringMissing(): string | null {
  try {
    new Uring(1, 2).close();
    return null;
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    if (error.errno === Errno.ENOSYS) return "the kernel has no io_uring, or an old one (ENOSYS)";
    if (error.errno === Errno.EPERM) {
      return "io_uring is forbidden here (EPERM; see sysctl kernel.io_uring_disabled)";
    }
    return error.message;
  }
}

/**
 * Whether io_uring would give operations on an open file to threads of the kernel's: whatever goes
 * through the page cache (writes of most filesystems always do then), and files whose reads cannot
 * be asked not to wait.
 */
export function uringNeedsThreads(fd: number): boolean {
  const flags = libc.fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_DIRECT) === 0) return true;
  const probe = new Arena(PAGE_BYTES);
  const iovec = new BigUint64Array([BigInt(probe.address), BigInt(SECTOR_BYTES)]);
  const result = Number(libc.preadv2(fd, iovec, 1, 0, RWF_NOWAIT));
  const refused = result < 0 && lastErrno() === Errno.EOPNOTSUPP;
  probe.release();
  return refused;
}

/** Writes what all entries have into the one that begins at word `at`, with no flags. */
function putEntry(
  sqes: Int32Array,
  at: number,
  opcode: number,
  fd: number,
  id: number,
  tag: number,
): void {
  // struct io_uring_sqe in words: opcode u8, flags u8 and ioprio u16 0, fd 1, off 2 and 3, addr 4
  // and 5, len 6, operation's flags 7, user_data 8 and 9, buf_index and personality 10,
  // splice_fd_in 11, addr3 12 and 13, padding 14 and 15.
  sqes[at] = opcode;
  sqes[at + 1] = fd;
  sqes[at + 7] = 0;
  sqes[at + 8] = id;
  sqes[at + 9] = tag;
  sqes[at + 10] = 0;
  sqes[at + 11] = 0;
  sqes[at + 12] = 0;
  sqes[at + 13] = 0;
}

/**
 * Writes a command to a driver (IORING_OP_URING_CMD) into the entry of `entryBytes` bytes that
 * begins at word `at`; what plays the kernel in tests takes its commands from such entries.
 *
 * @returns Where in the entries, bytes, the command's own bytes go, which are all zero.
 */
export function putCommandEntry(
  sqes: Int32Array,
  at: number,
  entryBytes: number,
  fd: number,
  command: number,
  id: number,
  tag: number,
): number {
  putEntry(sqes, at, IORING_OP_URING_CMD, fd, id, tag);
  sqes[at + 2] = command;
  sqes[at + 3] = 0;
  sqes[at + 4] = 0;
  sqes[at + 5] = 0;
  sqes[at + 6] = 0;
  sqes.fill(0, at + 12, at + entryBytes / WORD_BYTES);
  return at * WORD_BYTES + COMMAND_AT;
}

/**
 * One io_uring. Entries are written in place by the `prepare…` functions, which never make a call;
 * `submit` hands over all of them. Every entry carries two 32-bit numbers, `id` and `tag`, which
 * come back with its completion. Only the thread that made the ring may use it.
 */
export class Uring {
  /**
   * Becomes readable (watch it edge-triggered, nobody reads it) when an operation has ended while
   * no call was under way. What ends within a call does not ring it: look at `completions` after.
   */
  readonly eventFd: number;
  readonly #fd: number;
  /** The most entries of one `submit`. */
  readonly entries: number;
  /** Whether entries have 80 bytes for a command; otherwise 16. */
  readonly hasLongCommands: boolean;
  /** The entries as bytes, for the command areas. */
  readonly commands: DataView<ArrayBuffer>;
  readonly #ring: Int32Array<ArrayBuffer>;
  readonly #sqes: Int32Array<ArrayBuffer>;
  readonly #mappings: { address: number; sizeBytes: number }[] = [];
  readonly #sqeShift: number;
  readonly #sqTailAt: number;
  readonly #sqFlagsAt: number;
  readonly #cqHeadAt: number;
  readonly #cqTailAt: number;
  readonly #cqFlagsAt: number;
  readonly #cqesAt: number;
  readonly #cqMask: number;
  /** Where the next entry goes, and the first that the kernel has not taken. Both wrap at 2^32. */
  #sqTail = 0;
  #sqTaken = 0;
  #cqHead = 0;

  /**
   * @param entries How many can be prepared for one `submit`, a power of two.
   * @param completions How many find room in the ring, a power of two; more wait in the kernel.
   * @throws {SystemError} ENOSYS without io_uring (or one older than Linux 5.8), EPERM where it is
   * forbidden.
   */
  constructor(entries: number, completions: number) {
    const { fd, params } = setUp(entries, completions);
    this.#fd = fd;
    this.eventFd = createEventFd();
    this.entries = params[0];
    this.hasLongCommands = (params[PARAMS_FLAGS] & IORING_SETUP_SQE128) !== 0;
    try {
      const sqArray = params[PARAMS_SQ_OFF + 6];
      const cqes = params[PARAMS_CQ_OFF + 5];
      const cqFlags = params[PARAMS_CQ_OFF + 6];
      if ((params[PARAMS_FEATURES] & NEEDED_FEATURES) !== NEEDED_FEATURES || cqFlags === 0) {
        throw new SystemError(Errno.ENOSYS, "Cannot use this kernel's io_uring: it is too old");
      }
      const ringBytes = Math.max(
        sqArray + this.entries * WORD_BYTES,
        cqes + params[PARAMS_CQ_ENTRIES] * CQE_WORDS * WORD_BYTES,
      );
      this.#ring = new Int32Array(this.#map(ringBytes, IORING_OFF_SQ_RING));
      const sqeBytes = this.hasLongCommands ? SQE128_BYTES : SQE_BYTES;
      const sqes = this.#map(this.entries * sqeBytes, IORING_OFF_SQES);
      this.#sqes = new Int32Array(sqes);
      this.commands = new DataView(sqes);
      this.#sqeShift = Math.log2(sqeBytes / WORD_BYTES);
      this.#sqTailAt = params[PARAMS_SQ_OFF + 1] / WORD_BYTES;
      this.#sqFlagsAt = params[PARAMS_SQ_OFF + 4] / WORD_BYTES;
      this.#cqHeadAt = params[PARAMS_CQ_OFF] / WORD_BYTES;
      this.#cqTailAt = params[PARAMS_CQ_OFF + 1] / WORD_BYTES;
      this.#cqMask = params[PARAMS_CQ_ENTRIES] - 1;
      this.#cqesAt = cqes / WORD_BYTES;
      this.#cqFlagsAt = cqFlags / WORD_BYTES;
      this.#registerEventFd();
      // The kernel goes by a list of entries: entry i is always the i-th.
      for (let i = 0; i < this.entries; i++) this.#ring[sqArray / WORD_BYTES + i] = i;
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #map(sizeBytes: number, offsetBytes: number): ArrayBuffer {
    const address = mapRing(this.#fd, sizeBytes, offsetBytes);
    this.#mappings.push({ address, sizeBytes });
    return memoryAt(address, sizeBytes);
  }

  #registerEventFd(): void {
    const result = libc.io_uring_register(
      SYS_io_uring_register,
      this.#fd,
      IORING_REGISTER_EVENTFD,
      new Int32Array([this.eventFd]),
      1,
    );
    if (result < 0) throw new SystemError(lastErrno(), "Cannot give an io_uring its eventfd");
  }

  /** How many entries are prepared and not taken by the kernel. */
  get prepared(): number {
    return (this.#sqTail - this.#sqTaken) | 0;
  }

  /** Whether no other entry can be prepared before a `submit`. */
  get isFull(): boolean {
    return this.prepared === this.entries;
  }

  /** Takes the next entry; returns the word at which it begins. */
  #takeEntry(): number {
    if (this.isFull) throw new Error("An io_uring is full: more was prepared than it has entries");
    const at = (this.#sqTail & (this.entries - 1)) << this.#sqeShift;
    this.#sqTail = (this.#sqTail + 1) | 0;
    return at;
  }

  /** Takes the next entry and writes what all entries have. */
  #entry(opcode: number, fd: number, id: number, tag: number): number {
    const at = this.#takeEntry();
    putEntry(this.#sqes, at, opcode, fd, id, tag);
    return at;
  }

  /**
   * Prepares to move bytes between a file and I/O memory.
   *
   * @param opcode IORING_OP_READ, READV, WRITE or WRITEV.
   * @param memorySector Of the buffer in I/O memory; of the iovecs for READV and WRITEV.
   * @param length Bytes; the count of iovecs for READV and WRITEV.
   * @param sectors Where in the file: the sector at index `id`.
   */
  prepareTransfer(
    opcode: number,
    fd: number,
    memorySector: number,
    length: number,
    sectors: Float64Array,
    id: number,
    tag: number,
  ): void {
    const vectored = opcode === IORING_OP_READV || opcode === IORING_OP_WRITEV;
    requireMemory(memorySector, length, vectored);
    const at = this.#entry(opcode, fd, id, tag);
    const sqes = this.#sqes;
    const offset = sectors[id] * SECTOR_BYTES;
    const address = memoryAddress(memorySector);
    sqes[at + 2] = offset;
    sqes[at + 3] = offset / HIGH_WORD;
    sqes[at + 4] = address;
    sqes[at + 5] = address / HIGH_WORD;
    sqes[at + 6] = length;
  }

  /** Prepares to bring a file's data to stable storage (fdatasync). */
  prepareSync(fd: number, id: number, tag: number): void {
    const at = this.#entry(IORING_OP_FSYNC, fd, id, tag);
    this.#sqes.fill(0, at + 2, at + 7);
    this.#sqes[at + 7] = IORING_FSYNC_DATASYNC;
  }

  /** Prepares an operation that does nothing but complete. */
  prepareNothing(id: number, tag: number): void {
    const at = this.#entry(IORING_OP_NOP, -1, id, tag);
    this.#sqes.fill(0, at + 2, at + 7);
  }

  /**
   * Prepares a command to a driver (IORING_OP_URING_CMD).
   *
   * @param command `cmd_op`: the driver's number for it.
   * @returns Where in `commands` the command's own bytes go, all zero until the caller writes
   * them: 80, or 16 without `hasLongCommands`.
   */
  prepareCommand(fd: number, command: number, id: number, tag: number): number {
    const entryBytes = this.hasLongCommands ? SQE128_BYTES : SQE_BYTES;
    const at = this.#takeEntry();
    return putCommandEntry(this.#sqes, at, entryBytes, fd, command, id, tag);
  }

  /**
   * Hands what is prepared to the kernel, and lets it do what is left of operations that ended;
   * returns how many entries it took, or a negative errno when it took none. An entry that is wrong
   * is taken and completes with the error. Look at `completions` afterwards.
   */
  submit(): number {
    Atomics.store(this.#ring, this.#sqTailAt, this.#sqTail);
    const flags = this.#wantsKernel ? IORING_ENTER_GETEVENTS : 0;
    const taken = this.#enter(this.prepared, 0, flags);
    if (taken > 0) this.#sqTaken = (this.#sqTaken + taken) | 0;
    return taken;
  }

  /** Whether completions are held back until the next call. */
  get #wantsKernel(): boolean {
    const flags = Atomics.load(this.#ring, this.#sqFlagsAt);
    return (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) !== 0;
  }

  #enter(count: number, least: number, flags: number): number {
    Atomics.store(this.#ring, this.#cqFlagsAt, IORING_CQ_EVENTFD_DISABLED);
    const taken = libc.io_uring_enter(SYS_io_uring_enter, this.#fd, count, least, flags, null);
    const result = taken >= 0 ? taken : -lastErrno();
    // From here on the kernel rings; whoever called looks at what came before.
    Atomics.store(this.#ring, this.#cqFlagsAt, 0);
    return result;
  }

  /**
   * How many completions wait; makes a call only when the kernel says that it holds some back. They
   * are looked at by their distance from the first. Before waiting for `eventFd`, look until this
   * is 0: what ended during a call has not rung it.
   */
  completions(): number {
    while (this.#wantsKernel) {
      this.#enter(0, 0, IORING_ENTER_GETEVENTS);
      // More may have ended during this call, too; but a full ring is to be read first.
      if (this.#waiting > 0) break;
    }
    return this.#waiting;
  }

  get #waiting(): number {
    return (Atomics.load(this.#ring, this.#cqTailAt) - this.#cqHead) | 0;
  }

  /** Waits for at least one completion. For tests and for closing; throws `SystemError`. */
  wait(): void {
    while (this.completions() === 0) {
      const result = this.#enter(0, 1, IORING_ENTER_GETEVENTS);
      if (result < 0 && result !== -Errno.EINTR) {
        throw new SystemError(-result, "Cannot wait for an io_uring");
      }
    }
  }

  // struct io_uring_cqe in words: user_data 0 and 1, res 2, flags 3.
  #completion(distance: number): number {
    return this.#cqesAt + ((this.#cqHead + distance) & this.#cqMask) * CQE_WORDS;
  }

  /** The `id` of a completion. */
  completionId(distance: number): number {
    return this.#ring[this.#completion(distance)];
  }

  /** Its `tag`. */
  completionTag(distance: number): number {
    return this.#ring[this.#completion(distance) + 1];
  }

  /** Its result: bytes, or a negative errno. */
  completionResult(distance: number): number {
    return this.#ring[this.#completion(distance) + 2];
  }

  /** Takes the oldest `count` completions off the ring. */
  consume(count: number): void {
    this.#cqHead = (this.#cqHead + count) | 0;
    Atomics.store(this.#ring, this.#cqHeadAt, this.#cqHead);
  }

  /**
   * Gives the ring back; the kernel cancels commands that are under way. Nothing may touch
   * `commands` afterwards.
   */
  close(): void {
    for (const { address, sizeBytes } of this.#mappings) libc.munmap(pointerTo(address), sizeBytes);
    this.#mappings.length = 0;
    closeFile(this.#fd);
    closeFile(this.eventFd);
  }
}
