/**
 * This process and others: standard streams, limits, core dumps, and whether a process exists.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { O_RDWR, openFile } from "./files.ts";
import { openLibc } from "./libc.ts";

const libc = openLibc({
  // int kill(pid_t pid, int sig)
  kill: { parameters: ["i32", "i32"], result: "i32" },
  // int dup2(int oldfd, int newfd)
  dup2: { parameters: ["i32", "i32"], result: "i32" },
  // int close(int fd)
  close: { parameters: ["i32"], result: "i32" },
  // int prctl(int option, unsigned long arg2)
  prctl: { parameters: ["i32", "usize"], result: "i32" },
  // int prctl(int option, unsigned long arg2, ...), whose other arguments must be 0
  prctlAll: {
    name: "prctl",
    parameters: ["i32", "usize", "usize", "usize", "usize"],
    result: "i32",
  },
  // int getrlimit(int resource, struct rlimit *rlim)
  getrlimit: { parameters: ["i32", "buffer"], result: "i32" },
  // int setrlimit(int resource, const struct rlimit *rlim)
  setrlimit: { parameters: ["i32", "buffer"], result: "i32" },
});

const RLIMIT_NOFILE = 7;
const PR_SET_DUMPABLE = 4;
const PR_SET_IO_FLUSHER = 57;

/** The largest number that a pid_t holds. */
const PID_T_MAX = 0x7fff_ffff;

/** Whether a process of this number exists, whoever owns it. */
export function processExists(pid: number): boolean {
  if (!(pid >= 1 && pid <= PID_T_MAX)) return false;
  return libc.kill(pid, 0) === 0 || lastErrno() !== Errno.ESRCH;
}

/** Points standard input, output and error to /dev/null, as a daemon does. Throws `SystemError`. */
export function detachStandardStreams(): void {
  const nothing = openFile("/dev/null", O_RDWR);
  for (let fd = 0; fd <= 2; fd++) {
    if (libc.dup2(nothing, fd) < 0) {
      throw new SystemError(lastErrno(), `Cannot redirect descriptor ${fd} to /dev/null`);
    }
  }
  libc.close(nothing);
}

/** From now on there are no core dumps of this process, and others of its user cannot trace it. */
export function hideMemory(): void {
  if (libc.prctl(PR_SET_DUMPABLE, 0) !== 0) {
    throw new SystemError(lastErrno(), "Cannot keep this process out of core dumps");
  }
}

/**
 * Tells the kernel that this thread serves a block device: when it wants memory, the kernel is not
 * to write to that device to get some, which would wait for this thread. False without the right
 * to (CAP_SYS_RESOURCE), or before Linux 5.6.
 */
export function becomeIoFlusher(): boolean {
  return libc.prctlAll(PR_SET_IO_FLUSHER, 1, 0, 0, 0) === 0;
}

/**
 * Raises the soft limit of open descriptors to the hard one: each layer of a chain and each client
 * takes one. Returns the limit that holds now. Throws `SystemError`.
 */
export function raiseDescriptorLimit(): number {
  // struct rlimit: rlim_t rlim_cur @0, rlim_t rlim_max @8; both have 64 bits.
  const limit = new BigUint64Array(2);
  if (libc.getrlimit(RLIMIT_NOFILE, limit) < 0) {
    throw new SystemError(lastErrno(), "Cannot get the limit of open descriptors");
  }
  if (limit[0] < limit[1]) {
    limit[0] = limit[1];
    if (libc.setrlimit(RLIMIT_NOFILE, limit) < 0) {
      throw new SystemError(
        lastErrno(),
        `Cannot raise the limit of open descriptors to ${limit[1]}`,
      );
    }
  }
  return Number(limit[0]);
}
