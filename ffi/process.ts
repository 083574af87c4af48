/**
 * Processes, waiting locks, waiting for one descriptor, and datagrams: what the control programs
 * need of libc beyond files and stream sockets.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { O_RDWR, openFile } from "./files.ts";
import { openLibc } from "./libc.ts";
import { unixAddress } from "./sockets.ts";

const libc = openLibc({
  // int kill(pid_t pid, int sig)
  kill: { parameters: ["i32", "i32"], result: "i32" },
  // int dup2(int oldfd, int newfd)
  dup2: { parameters: ["i32", "i32"], result: "i32" },
  // int close(int fd)
  close: { parameters: ["i32"], result: "i32" },
  // int flock(int fd, int operation)
  flock: { parameters: ["i32", "i32"], result: "i32" },
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
  // int poll(struct pollfd *fds, nfds_t nfds, int timeout)
  poll: { parameters: ["buffer", "usize", "i32"], result: "i32" },
  // int socket(int domain, int type, int protocol)
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int connect(int sockfd, const struct sockaddr *addr, socklen_t addrlen)
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
});

const LOCK_EX = 2;
const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const RLIMIT_NOFILE = 7;
const PR_SET_DUMPABLE = 4;
const PR_SET_IO_FLUSHER = 57;

/** Events of poll(2). */
export const POLLIN = 0x001;
export const POLLOUT = 0x004;

/** The largest number that a pid_t holds. */
const PID_T_MAX = 0x7fff_ffff;
/** The longest time that poll(2) is asked to wait, milliseconds; a longer one is waited in parts. */
const LONGEST_POLL_MS = 0x7fff_ffff;

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

/** Takes the exclusive flock(2) of an open file or folder, waiting for it. Throws `SystemError`. */
export function lockExclusive(fd: number): void {
  while (libc.flock(fd, LOCK_EX) < 0) {
    if (lastErrno() !== Errno.EINTR) throw new SystemError(lastErrno(), "Cannot lock the file");
  }
}

/**
 * Waits until a descriptor is ready for `events` (POLLIN, POLLOUT), has failed or has ended; false
 * when `timeoutMs` has gone by first. Infinity waits for as long as it takes. Throws `SystemError`.
 */
export function waitForDescriptor(fd: number, events: number, timeoutMs: number): boolean {
  return waitForDescriptors([fd], events, timeoutMs).length > 0;
}

/**
 * Waits until at least one of several descriptors is ready, as `waitForDescriptor` does for one.
 * Returns those that are; none when `timeoutMs` has gone by. Throws `SystemError`.
 */
export function waitForDescriptors(
  fds: readonly number[],
  events: number,
  timeoutMs: number,
): number[] {
  // struct pollfd: int fd @0, short events @4, short revents @6.
  const polled = new Uint8Array(8 * fds.length);
  const view = new DataView(polled.buffer);
  fds.forEach((fd, index) => {
    view.setInt32(8 * index, fd, true);
    view.setInt16(8 * index + 4, events, true);
  });
  const untilMs = performance.now() + timeoutMs;
  for (;;) {
    const leftMs = Math.max(0, untilMs - performance.now());
    const waitMs = Math.min(Math.ceil(leftMs), LONGEST_POLL_MS);
    const ready = libc.poll(polled, fds.length, leftMs === Infinity ? -1 : waitMs);
    if (ready > 0 || (ready === 0 && leftMs <= LONGEST_POLL_MS)) {
      return fds.filter((_, index) => view.getInt16(8 * index + 6, true) !== 0);
    }
    if (ready < 0 && lastErrno() !== Errno.EINTR) {
      throw new SystemError(lastErrno(), `Cannot wait for descriptors ${fds.join(", ")}`);
    }
  }
}

/**
 * A datagram socket that is connected to the UNIX socket at `path` and never blocks. Throws
 * `SystemError`. Send with `sendAt`, close with `closeFile`.
 */
export function connectDatagrams(path: string): number {
  const fd = libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) throw new SystemError(lastErrno(), "Cannot create a socket");
  const address = unixAddress(path);
  if (libc.connect(fd, address, address.length) < 0) {
    const errno = lastErrno();
    libc.close(fd);
    throw new SystemError(errno, `Cannot connect to ${path}`);
  }
  return fd;
}
