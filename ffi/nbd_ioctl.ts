/**
 * Commands to the kernel's nbd driver by ioctl, with the names of linux/nbd.h. They are for kernels
 * before 4.12, whose driver has no netlink interface.
 *
 * @module
 */
import { lastErrno } from "./errno.ts";
import { openLibcLater } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int ioctl(int fd, unsigned long request, unsigned long arg)
  ioctl: { parameters: ["i32", "usize", "usize"], result: "i32" },
  // int ioctl(int fd, unsigned long request, unsigned long arg), by another thread
  ioctlAside: {
    name: "ioctl",
    parameters: ["i32", "usize", "usize"],
    result: "i32",
    nonblocking: true,
  },
});

/** Requests of linux/nbd.h: _IO(0xab, …). */
const NBD_SET_SOCK = 0xab00;
const NBD_SET_BLKSIZE = 0xab01;
const NBD_DO_IT = 0xab03;
const NBD_CLEAR_SOCK = 0xab04;
const NBD_SET_SIZE_BLOCKS = 0xab07;
const NBD_DISCONNECT = 0xab08;
const NBD_SET_TIMEOUT = 0xab09;
const NBD_SET_FLAGS = 0xab0a;

function control(fd: number, request: number, argument: number): number {
  return libc.ioctl(fd, request, argument) < 0 ? lastErrno() : 0;
}

/** Parameters of a device. */
export interface NbdIoctlOptions {
  readonly blockSizeBytes: number;
  readonly blocks: number;
  /** NBD_FLAG_* of the transmission phase. */
  readonly serverFlags: number;
  /** Timeout of a request, seconds. */
  readonly timeoutSeconds: number;
  /** The sockets of the kernel: one end of each connection. */
  readonly sockets: readonly number[];
}

/**
 * Sets up an unused device; `nbdDoIt` starts it.
 *
 * @param fd The device, open.
 * @returns 0, or a positive errno, and the device is unchanged: EBUSY when another process is
 * setting it up, EINVAL when it was created by netlink.
 */
export function nbdSetUp(fd: number, options: NbdIoctlOptions): number {
  const { blockSizeBytes, blocks, serverFlags, timeoutSeconds, sockets } = options;
  let added = 0;
  let errno = 0;
  for (const socket of sockets) {
    errno ||= control(fd, NBD_SET_SOCK, socket);
    if (errno === 0) added++;
  }
  errno ||= control(fd, NBD_SET_BLKSIZE, blockSizeBytes) ||
    control(fd, NBD_SET_SIZE_BLOCKS, blocks) ||
    control(fd, NBD_SET_TIMEOUT, timeoutSeconds) ||
    control(fd, NBD_SET_FLAGS, serverFlags);
  // When no socket was added, the device belongs to another process.
  if (errno !== 0 && added > 0) nbdClearSock(fd);
  return errno;
}

/**
 * Runs the device by another thread, which it occupies until the device is disconnected or its
 * connections are closed.
 *
 * @returns The result of the ioctl: 0, or -1.
 */
export function nbdDoIt(fd: number): Promise<number> {
  return libc.ioctlAside(fd, NBD_DO_IT, 0);
}

/** Sets the size of a running device by another thread; false when that fails. */
export async function nbdSetBlocks(fd: number, blocks: number): Promise<boolean> {
  return await libc.ioctlAside(fd, NBD_SET_SIZE_BLOCKS, blocks) === 0;
}

/** Sends NBD_CMD_DISC to the server by another thread; false when that fails. */
export async function nbdSayDisconnect(fd: number): Promise<boolean> {
  return await libc.ioctlAside(fd, NBD_DISCONNECT, 0) === 0;
}

/** Removes the device's connections. Requests in flight fail. */
export function nbdClearSock(fd: number): void {
  control(fd, NBD_CLEAR_SOCK, 0);
}
