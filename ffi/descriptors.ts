/**
 * Descriptors that another process hands over on a UNIX socket (SCM_RIGHTS, unix(7)).
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { addressOf, openLibcLater } from "./libc.ts";
import { IOVEC_BYTES, MSGHDR_BYTES, putNumber64 } from "./sockets.ts";

const libc = openLibcLater({
  // ssize_t recvmsg(int sockfd, struct msghdr *msg, int flags); lengths stay below 2 GiB
  recvmsg: { parameters: ["i32", "buffer", "i32"], result: "i32" },
});

const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_CTRUNC = 0x8;
const MSG_DONTWAIT = 0x40;
const MSG_CMSG_CLOEXEC = 0x4000_0000;

// struct cmsghdr (sys/socket.h): size_t cmsg_len @0, int cmsg_level @8, int cmsg_type @12, data @16.
const CMSGHDR_BYTES = 16;
const DESCRIPTOR_BYTES = 4;
/**
 * Room for two descriptors. The kernel closes those beyond, so that a message with many takes no
 * more than two of this process; the second tells that there was more than one.
 */
const CONTROL_BYTES = CMSGHDR_BYTES + 2 * DESCRIPTOR_BYTES;

/** What came by one call. */
export interface HandedMessage {
  /** The bytes, a copy; none at the end of the stream. */
  readonly bytes: Uint8Array;
  /** The descriptors, which the caller owns. They are closed when a program is started. */
  readonly descriptors: readonly number[];
  /** Whether there were more descriptors, or this process could not take another one. */
  readonly hadMore: boolean;
}

/**
 * Receives bytes and the descriptors that came with them, without waiting.
 *
 * @param mostBytes How many bytes are taken at most.
 * @returns Null when there is nothing now.
 * @throws {SystemError}
 */
export function receiveDescriptors(fd: number, mostBytes: number): HandedMessage | null {
  const bytes = new Uint8Array(mostBytes);
  const control = new Uint8Array(CONTROL_BYTES);
  const iovec = new Uint8Array(IOVEC_BYTES);
  putNumber64(new DataView(iovec.buffer), 0, addressOf(bytes));
  putNumber64(new DataView(iovec.buffer), 8, mostBytes);
  // msg_name @0, msg_namelen @8, msg_iov @16, msg_iovlen @24, msg_control @32, msg_controllen @40,
  // msg_flags @48.
  const message = new Uint8Array(MSGHDR_BYTES);
  const view = new DataView(message.buffer);
  putNumber64(view, 16, addressOf(iovec));
  putNumber64(view, 24, 1);
  putNumber64(view, 32, addressOf(control));
  putNumber64(view, 40, CONTROL_BYTES);
  const got = libc.recvmsg(fd, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) {
    const errno = lastErrno();
    if (errno === Errno.EAGAIN || errno === Errno.EINTR) return null;
    throw new SystemError(errno, "Cannot receive a descriptor");
  }
  const controlBytes = view.getUint32(40, true);
  return {
    bytes: bytes.slice(0, got),
    descriptors: descriptorsIn(new DataView(control.buffer, 0, controlBytes)),
    hadMore: (view.getUint32(48, true) & MSG_CTRUNC) !== 0,
  };
}

function descriptorsIn(control: DataView): number[] {
  if (control.byteLength < CMSGHDR_BYTES) return [];
  const end = control.getUint32(0, true);
  const level = control.getInt32(8, true);
  const type = control.getInt32(12, true);
  if (level !== SOL_SOCKET || type !== SCM_RIGHTS || end > control.byteLength) return [];
  const descriptors: number[] = [];
  for (let at = CMSGHDR_BYTES; at + DESCRIPTOR_BYTES <= end; at += DESCRIPTOR_BYTES) {
    descriptors.push(control.getInt32(at, true));
  }
  return descriptors;
}
