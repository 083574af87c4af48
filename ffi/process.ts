/**
 * Processes: standard streams, resource limits, core dumps, and whether a process exists.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { O_RDWR, openFile } from "./files.ts";
import { openLibcLater } from "./libc.ts";
import { namesInFolder } from "./paths.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int kill(pid_t pid, int sig)
  kill: { parameters: ["i32", "i32"], result: "i32" },
  // uid_t geteuid(void)
  geteuid: { parameters: [], result: "u32" },
  // int dup2(int oldfd, int newfd)
  dup2: { parameters: ["i32", "i32"], result: "i32" },
  // long syscall(SYS_close_range, unsigned int first, unsigned int last, unsigned int flags)
  closeRange: { name: "syscall", parameters: ["i64", "u32", "u32", "u32"], result: "i32" },
  // int fcntl(int fd, int op, int arg)
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
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

const SYS_close_range = 436;
const CLOSE_RANGE_CLOEXEC = 4;
const LAST_DESCRIPTOR = 0xffff_ffff;
const F_SETFD = 2;
const FD_CLOEXEC = 1;
const RLIMIT_NOFILE = 7;
const PR_SET_DUMPABLE = 4;
const PR_SET_IO_FLUSHER = 57;

/** The largest number that a pid_t holds. */
const PID_T_MAX = 0x7fff_ffff;

/**
 * Whether a process of any owner exists and has not ended. A zombie has ended: where the first process
 * of a container waits for no children, zombies stay for ever.
 */
export function isAlive(pid: number): boolean {
  if (!(pid >= 1 && pid <= PID_T_MAX)) return false;
  if (libc.kill(pid, 0) !== 0 && lastErrno() === Errno.ESRCH) return false;
  try {
    // The state follows the name, which is in parentheses and may contain any character.
    const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
    return stat.charAt(stat.lastIndexOf(")") + 2) !== "Z";
  } catch (error) {
    // It has ended meanwhile, or /proc hides the processes of others.
    return !(error instanceof Deno.errors.NotFound) || libc.kill(pid, 0) === 0;
  }
}

/** The effective user ID of this process. Unlike the runtime's, it needs no permission. */
export function effectiveUser(): number {
  return libc.geteuid();
}

/** Redirects standard input, output and error to /dev/null. Throws `SystemError`. */
export function detachStandardStreams(): void {
  const nothing = openFile("/dev/null", O_RDWR);
  for (let fd = 0; fd <= 2; fd++) {
    if (libc.dup2(nothing, fd) < 0) {
      throw new SystemError(lastErrno(), `Cannot redirect descriptor ${fd} to /dev/null`);
    }
  }
  libc.close(nothing);
}

/**
 * Marks all descriptors but the standard streams as close-on-exec, also those that the caller of this
 * process left open. A child that lives long would keep his locks, and the ends of his pipes.
 */
export function keepDescriptorsFromChildren(): void {
  if (libc.closeRange(SYS_close_range, 3, LAST_DESCRIPTOR, CLOSE_RANGE_CLOEXEC) === 0) return;
  // Before Linux 5.11. The descriptor of the listing itself is closed by now, which does no harm.
  for (const name of namesInFolder("/proc/self/fd")) {
    if (Number(name) > 2) libc.fcntl(Number(name), F_SETFD, FD_CLOEXEC);
  }
}

/** Disables core dumps and tracing of this process. Throws `SystemError`. */
export function hideMemory(): void {
  if (libc.prctl(PR_SET_DUMPABLE, 0) !== 0) {
    throw new SystemError(lastErrno(), "Cannot keep this process out of core dumps");
  }
}

/**
 * Marks this thread as the server of a block device. When the thread allocates memory, the kernel
 * then does not write dirty pages to that device to free some: the write would wait for the thread. Threads
 * that it makes later inherit that (prctl(2)).
 *
 * @returns False without CAP_SYS_RESOURCE, or before Linux 5.6.
 */
export function becomeIoFlusher(): boolean {
  return libc.prctlAll(PR_SET_IO_FLUSHER, 1, 0, 0, 0) === 0;
}

/** How many more descriptors this process may open. Throws `SystemError`. */
export function descriptorsLeft(): number {
  const limit = new BigUint64Array(2);
  if (libc.getrlimit(RLIMIT_NOFILE, limit) < 0) {
    throw new SystemError(lastErrno(), "Cannot get the limit of open descriptors");
  }
  return Number(limit[0]) - namesInFolder("/proc/self/fd").length;
}

/**
 * Raises the soft limit of open descriptors to the hard limit. Each layer of a chain and each
 * client takes a descriptor.
 *
 * @returns The new soft limit.
 * @throws {SystemError}
 */
export function raiseDescriptorLimit(): number {
  // struct rlimit (sys/resource.h): u64 rlim_cur @0, u64 rlim_max @8.
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
