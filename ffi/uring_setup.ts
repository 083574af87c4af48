/**
 * io_uring_setup(2) and its mappings: a ring with the best flags that the kernel knows. Flags and
 * `struct io_uring_params` are those of linux/io_uring.h. `uring.ts` uses the ring.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { openLibcLater, pointerAddress } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // long syscall(SYS_io_uring_setup, u32 entries, struct io_uring_params *p)
  io_uring_setup: { name: "syscall", parameters: ["i32", "u32", "buffer"], result: "i32" },
  // void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
  mmap: { parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
});

const SYS_io_uring_setup = 425;

const IORING_SETUP_CQSIZE = 1 << 3;
const IORING_SETUP_SUBMIT_ALL = 1 << 7;
const IORING_SETUP_COOP_TASKRUN = 1 << 8;
const IORING_SETUP_TASKRUN_FLAG = 1 << 9;
/** Entries of 128 bytes, for long commands. */
export const IORING_SETUP_SQE128 = 1 << 10;
const IORING_SETUP_SINGLE_ISSUER = 1 << 12;
const IORING_SETUP_DEFER_TASKRUN = 1 << 13;

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 0x01;
const MAP_POPULATE = 0x8000;

// struct io_uring_params in words: sq_entries 0, cq_entries 1, flags 2, features 5, sq_off from 10:
// head, tail, ring_mask, ring_entries, flags, dropped, array; cq_off from 20: head, tail,
// ring_mask, ring_entries, overflow, cqes, flags.
const PARAMS_WORDS = 30;
/** Words of `struct io_uring_params`. */
export const PARAMS_CQ_ENTRIES = 1;
export const PARAMS_FLAGS = 2;
export const PARAMS_FEATURES = 5;
export const PARAMS_SQ_OFF = 10;
export const PARAMS_CQ_OFF = 20;

/**
 * Flags to try, best first. A kernel refuses flags that it does not know (EINVAL), and the next set
 * has fewer:
 * - since 6.1 the kernel finishes operations when the process looks for completions, instead of
 *   interrupting its waits (EINTR);
 * - since 5.19 entries can have 128 bytes, and finishing does not interrupt running code;
 * - no flags: kernels since 5.8, which has the flag that silences the eventfd.
 */
const SETUPS = [
  IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER |
  IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
  IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SQE128 | IORING_SETUP_COOP_TASKRUN |
  IORING_SETUP_TASKRUN_FLAG,
  0,
];

/** A ring of the kernel. */
export interface RingSetup {
  readonly fd: number;
  /** The `struct io_uring_params` that the kernel filled, in words. */
  readonly params: Uint32Array<ArrayBuffer>;
}

/**
 * Creates a ring.
 *
 * @throws {SystemError} ENOSYS without io_uring, EPERM when it is forbidden.
 */
export function setUpRing(entries: number, completions: number): RingSetup {
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

/** Maps a part of a ring, IORING_OFF_*; returns its address. Throws `SystemError`. */
export function mapRing(fd: number, sizeBytes: number, offsetBytes: number): number {
  const flags = MAP_SHARED | MAP_POPULATE;
  const pointer = libc.mmap(0, sizeBytes, PROT_READ | PROT_WRITE, flags, fd, offsetBytes);
  const address = pointerAddress(pointer);
  if (address === 0 || address > Number.MAX_SAFE_INTEGER) {
    throw new SystemError(lastErrno(), `Cannot map ${sizeBytes} bytes of an io_uring`);
  }
  return address;
}
