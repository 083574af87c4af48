/**
 * Commands to the kernel's nbd driver by ioctl, with the names of linux/nbd.h: for kernels whose
 * driver has no netlink interface.
 *
 * @module
 */
import { lastErrno } from "./errno.ts";
import { openLibc } from "./libc.ts";

const libc = openLibc({
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

/** What a device is made of. */
export interface NbdIoctlOptions {
  readonly blockSizeBytes: number;
  readonly blocks: number;
  /** NBD_FLAG_* of the transmission phase. */
  readonly serverFlags: number;
  /** After how long a request is given up, seconds. */
  readonly timeoutSeconds: number;
  /** The kernel's ends of connections. */
  readonly sockets: readonly number[];
}

/**
 * Sets an open device up that nobody serves; `nbdDoIt` starts it. Returns 0, or a positive error
 * number, with nothing changed: EBUSY when another process is setting it up, EINVAL when it is one
 * that netlink made.
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
  // Without one of ours in it, the device is somebody else's.
  if (errno !== 0 && added > 0) nbdClearSock(fd);
  return errno;
}

/** Runs the device by another thread, until it is disconnected or its connections are closed. */
export function nbdDoIt(fd: number): Promise<number> {
  return libc.ioctlAside(fd, NBD_DO_IT, 0);
}

/** Sets the device's size while it runs, by another thread; false when that fails. */
export async function nbdSetBlocks(fd: number, blocks: number): Promise<boolean> {
  return await libc.ioctlAside(fd, NBD_SET_SIZE_BLOCKS, blocks) === 0;
}

/** Says good-bye to who serves the device, by another thread; false when that fails. */
export async function nbdSayDisconnect(fd: number): Promise<boolean> {
  return await libc.ioctlAside(fd, NBD_DISCONNECT, 0) === 0;
}

/** Takes the device's connections away: requests that wait fail. */
export function nbdClearSock(fd: number): void {
  control(fd, NBD_CLEAR_SOCK, 0);
}
