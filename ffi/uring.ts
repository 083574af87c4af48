/**
 * io_uring (linux/io_uring.h): a ring of operations, all of which one call submits, and a ring of
 * completions that is read without a call.
 *
 * @module
 */
import { assert } from "./assert.ts";
import { createEventFd } from "./epoll.ts";
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { closeFile } from "./files.ts";
import { memoryAt, openLibc, openLibcLater, pointerTo } from "./libc.ts";
import { memoryAddress, requireMemory, SECTOR_BYTES } from "./memory.ts";
import {
  IORING_SETUP_SQE128,
  mapRing,
  PARAMS_CQ_ENTRIES,
  PARAMS_CQ_OFF,
  PARAMS_FEATURES,
  PARAMS_FLAGS,
  PARAMS_SQ_OFF,
  setUpRing,
} from "./uring_setup.ts";

const libc = /* @__PURE__ */ openLibc({
  // long syscall(SYS_io_uring_enter, unsigned fd, u32 to_submit, u32 min_complete, u32 flags,
  //              const void *argp); without argp its size, the seventh, is not looked at
  io_uring_enter: {
    name: "syscall",
    parameters: ["i32", "i32", "u32", "u32", "u32", "pointer"],
    result: "i32",
  },
});

const other = /* @__PURE__ */ openLibcLater({
  // long syscall(SYS_io_uring_register, unsigned fd, unsigned opcode, void *arg, unsigned nr_args)
  io_uring_register: {
    name: "syscall",
    parameters: ["i32", "i32", "u32", "buffer", "u32"],
    result: "i32",
  },
  // int munmap(void *addr, size_t length)
  munmap: { parameters: ["pointer", "usize"], result: "i32" },
});

const SYS_io_uring_enter = 426;
const SYS_io_uring_register = 427;

/** Operations of a submission entry (linux/io_uring.h). */
const IORING_OP_NOP = 0;
export const IORING_OP_READV = 1;
export const IORING_OP_WRITEV = 2;
const IORING_OP_FSYNC = 3;
export const IORING_OP_READ = 22;
export const IORING_OP_WRITE = 23;
const IORING_OP_URING_CMD = 46;

/**
 * Added to the operation of a transfer: a thread of the kernel does it, also where nothing has to be waited
 * for. It is IOSQE_ASYNC, in the entry's flags: the byte behind the operation.
 */
export const IORING_BY_THREAD = 1 << 12;

/** Flag of IORING_OP_FSYNC: fdatasync(2). */
const IORING_FSYNC_DATASYNC = 1;

const IORING_FEAT_SINGLE_MMAP = 1 << 0;
const IORING_FEAT_NODROP = 1 << 1;
const IORING_FEAT_SUBMIT_STABLE = 1 << 2;
const IORING_ENTER_GETEVENTS = 1 << 0;
const IORING_SQ_CQ_OVERFLOW = 1 << 1;
const IORING_SQ_TASKRUN = 1 << 2;
const IORING_CQ_EVENTFD_DISABLED = 1 << 0;
const IORING_REGISTER_EVENTFD = 4;
const IORING_REGISTER_IOWQ_MAX_WORKERS = 19;
const IORING_OFF_SQ_RING = 0;
const IORING_OFF_SQES = 0x10000000;
const NEEDED_FEATURES = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE;

/** Calls in a row that may bring no completion. More would keep the process from all else. */
const MOST_CALLS = 100;

const WORD_BYTES = 4;
const CQE_WORDS = 4;
const SQE_BYTES = 64;
const SQE128_BYTES = 128;
const COMMAND_AT = 48;
/** Bytes of a command in an entry of 128 bytes, and in one of 64. */
export const LONG_COMMAND_BYTES = SQE128_BYTES - COMMAND_AT;
export const SHORT_COMMAND_BYTES = SQE_BYTES - COMMAND_AT;
const HIGH_WORD = 0x1_0000_0000;

/** Writes the fields that all operations have into the entry at word `at`, without flags. */
function putEntry(
  sqes: Int32Array,
  at: number,
  opcode: number,
  fd: number,
  id: number,
  tag: number,
): void {
  // struct io_uring_sqe (linux/io_uring.h) in words: opcode u8, flags u8 and ioprio u16 0, fd 1,
  // off 2 and 3, addr 4 and 5, len 6, operation's flags 7, user_data 8 and 9, buf_index and
  // personality 10, splice_fd_in 11, addr3 12 and 13, padding 14 and 15.
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
 * Writes a command to a driver (IORING_OP_URING_CMD) into an entry. The simulated kernel of the
 * tests reads such entries.
 *
 * @param at Word at which the entry begins.
 * @param entryBytes 64 or 128.
 * @param command `cmd_op`: the driver's number of the command.
 * @returns Offset of the command's own bytes, which are zero, from the start of `sqes`.
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
 * One io_uring. The `prepare…` methods write entries in place and make no call; `submit` hands all
 * of them to the kernel. Every entry carries two 32-bit numbers, `id` and `tag`, and so does its
 * completion. Only the thread that created the ring may use it.
 */
export class Uring {
  /**
   * An eventfd that becomes readable when an operation completes outside of a call. It is never
   * read: watch it edge-triggered. A completion within a call does not signal it: look at
   * `completions` after the call.
   */
  readonly eventFd: number;
  readonly #fd: number;
  /** The most entries of one `submit`. */
  readonly entries: number;
  /** Whether a command has 80 bytes; otherwise 16. */
  readonly hasLongCommands: boolean;
  /** The entries, in which `prepareCommand` returns offsets. */
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
  /** Number of the next entry, and of the first that the kernel has not taken, modulo 2^32. */
  #sqTail = 0;
  #sqTaken = 0;
  #cqHead = 0;

  /**
   * @param entries The most entries of one `submit`, a power of two.
   * @param completions Completions that fit in the ring, a power of two; the kernel keeps more.
   * @throws {SystemError} ENOSYS without io_uring or before Linux 5.8; EPERM when it is forbidden.
   */
  constructor(entries: number, completions: number) {
    const { fd, params } = setUpRing(entries, completions);
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
      // The kernel reads a list of entry numbers. Element i is always i.
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
    const result = other.io_uring_register(
      SYS_io_uring_register,
      this.#fd,
      IORING_REGISTER_EVENTFD,
      new Int32Array([this.eventFd]),
      1,
    );
    if (result < 0) throw new SystemError(lastErrno(), "Cannot give an io_uring its eventfd");
  }

  /**
   * Limits the threads on which the kernel moves bytes of files for this process. Kernels before 5.15 keep
   * their own limit.
   */
  limitThreads(most: number): void {
    // u32 limits[2]: of work on files and block devices, and of all other; 0 keeps what there is.
    const limits = new Uint32Array([most, 0]);
    const opcode = IORING_REGISTER_IOWQ_MAX_WORKERS;
    other.io_uring_register(SYS_io_uring_register, this.#fd, opcode, limits, limits.length);
  }

  /** How many entries are prepared that the kernel has not taken. */
  get prepared(): number {
    return (this.#sqTail - this.#sqTaken) | 0;
  }

  /** Whether all entries are prepared. Nothing else can be prepared before a `submit`. */
  get isFull(): boolean {
    return this.prepared === this.entries;
  }

  /** Takes the next entry; returns the word at which it begins. */
  #takeEntry(): number {
    assert(!this.isFull, "More operations are prepared than an io_uring has entries");
    const at = (this.#sqTail & (this.entries - 1)) << this.#sqeShift;
    this.#sqTail = (this.#sqTail + 1) | 0;
    return at;
  }

  /** Takes the next entry and writes the fields that all operations have. */
  #entry(opcode: number, fd: number, id: number, tag: number): number {
    const at = this.#takeEntry();
    putEntry(this.#sqes, at, opcode, fd, id, tag);
    return at;
  }

  /**
   * Prepares a transfer between a file and I/O memory.
   *
   * @param opcode IORING_OP_READ, READV, WRITE or WRITEV, perhaps with IORING_BY_THREAD.
   * @param memorySector Sector of I/O memory at which the buffer begins, or for READV and WRITEV
   * the iovecs.
   * @param length Bytes of the buffer, or for READV and WRITEV the number of iovecs.
   * @param sectors Element `id` is the sector of the file.
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
    const operation = opcode & ~IORING_BY_THREAD;
    const vectored = operation === IORING_OP_READV || operation === IORING_OP_WRITEV;
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

  /** Prepares an fdatasync(2). */
  prepareSync(fd: number, id: number, tag: number): void {
    const at = this.#entry(IORING_OP_FSYNC, fd, id, tag);
    this.#sqes.fill(0, at + 2, at + 7);
    this.#sqes[at + 7] = IORING_FSYNC_DATASYNC;
  }

  /** Prepares an operation that only completes (IORING_OP_NOP). */
  prepareNothing(id: number, tag: number): void {
    const at = this.#entry(IORING_OP_NOP, -1, id, tag);
    this.#sqes.fill(0, at + 2, at + 7);
  }

  /**
   * Prepares a command to a driver (IORING_OP_URING_CMD).
   *
   * @param command `cmd_op`: the driver's number of the command.
   * @returns Offset in `commands` of the command's own bytes, which are zero: 80 bytes, or 16
   * without `hasLongCommands`.
   */
  prepareCommand(fd: number, command: number, id: number, tag: number): number {
    const entryBytes = this.hasLongCommands ? SQE128_BYTES : SQE_BYTES;
    const at = this.#takeEntry();
    return putCommandEntry(this.#sqes, at, entryBytes, fd, command, id, tag);
  }

  /**
   * Submits the prepared entries, and lets the kernel finish operations whose completions it holds
   * back. A wrong entry is taken, and completes with the error. Look at `completions` afterwards.
   *
   * @param mayFinish Without it, the kernel goes on to hold completions back (since Linux 6.1).
   * @returns How many entries the kernel took, or a negative errno when it took none.
   */
  submit(mayFinish = true): number {
    Atomics.store(this.#ring, this.#sqTailAt, this.#sqTail);
    const flags = mayFinish && this.#wantsKernel ? IORING_ENTER_GETEVENTS : 0;
    const taken = this.#enter(this.prepared, 0, flags);
    if (taken > 0) this.#sqTaken = (this.#sqTaken + taken) | 0;
    return taken;
  }

  /** Whether the kernel holds completions back until the next call. */
  get #wantsKernel(): boolean {
    const flags = Atomics.load(this.#ring, this.#sqFlagsAt);
    return (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) !== 0;
  }

  #enter(count: number, least: number, flags: number): number {
    Atomics.store(this.#ring, this.#cqFlagsAt, IORING_CQ_EVENTFD_DISABLED);
    const taken = libc.io_uring_enter(SYS_io_uring_enter, this.#fd, count, least, flags, null);
    const result = taken >= 0 ? taken : -lastErrno();
    // From here on completions signal the eventfd. The caller looks at those before.
    Atomics.store(this.#ring, this.#cqFlagsAt, 0);
    return result;
  }

  /**
   * How many completions are in the ring. The methods below take a distance from the first. This
   * makes a call only when the kernel holds completions back. Before you wait for `eventFd`,
   * consume completions until this returns 0: those within a call have not signalled it.
   */
  completions(): number {
    for (let calls = 0; calls < MOST_CALLS && this.#wantsKernel; calls++) {
      // The kernel adds work, and then sets the flag. When this thread does the work in between, the
      // flag stays set with nothing to do. What is added from here on sets it again.
      Atomics.and(this.#ring, this.#sqFlagsAt, ~IORING_SQ_TASKRUN);
      this.#enter(0, 0, IORING_ENTER_GETEVENTS);
      // The kernel may hold back more. A full ring must be read first.
      if (this.#waiting > 0) break;
    }
    return this.#waiting;
  }

  get #waiting(): number {
    return (Atomics.load(this.#ring, this.#cqTailAt) - this.#cqHead) | 0;
  }

  /** Blocks until there is a completion, in tests and before a close. Throws `SystemError`. */
  wait(): void {
    while (this.completions() === 0) {
      const result = this.#enter(0, 1, IORING_ENTER_GETEVENTS);
      if (result < 0 && result !== -Errno.EINTR) {
        throw new SystemError(-result, "Cannot wait for an io_uring");
      }
    }
  }

  // struct io_uring_cqe (linux/io_uring.h) in words: user_data 0 and 1, res 2, flags 3.
  #completion(distance: number): number {
    return this.#cqesAt + ((this.#cqHead + distance) & this.#cqMask) * CQE_WORDS;
  }

  /** The `id` of a completion. */
  completionId(distance: number): number {
    return this.#ring[this.#completion(distance)];
  }

  /** The `tag` of a completion. */
  completionTag(distance: number): number {
    return this.#ring[this.#completion(distance) + 1];
  }

  /** The result of a completion: bytes, or a negative errno. */
  completionResult(distance: number): number {
    return this.#ring[this.#completion(distance) + 2];
  }

  /** Removes the oldest `count` completions from the ring. */
  consume(count: number): void {
    this.#cqHead = (this.#cqHead + count) | 0;
    Atomics.store(this.#ring, this.#cqHeadAt, this.#cqHead);
  }

  /**
   * Closes the ring. The kernel cancels commands in flight. `commands` must not be used afterwards.
   */
  close(): void {
    for (const { address, sizeBytes } of this.#mappings) {
      other.munmap(pointerTo(address), sizeBytes);
    }
    this.#mappings.length = 0;
    closeFile(this.#fd);
    closeFile(this.eventFd);
  }
}
