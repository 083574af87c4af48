/**
 * Descriptors that another process hands over on a UNIX socket (SCM_RIGHTS, unix(7)).
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { addressOf, openLibcLater } from "./libc.ts";
import { IOVEC_BYTES, MSGHDR_BYTES, putNumber64 } from "./sockets.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // ssize_t recvmsg(int sockfd, struct msghdr *msg, int flags); lengths stay below 2 GiB
  recvmsg: { parameters: ["i32", "buffer", "i32"], result: "i32" },
  // ssize_t sendmsg(int sockfd, const struct msghdr *msg, int flags)
  sendmsg: { parameters: ["i32", "buffer", "i32"], result: "i32" },
  // int getsockopt(int sockfd, int level, int optname, void *optval, socklen_t *optlen)
  getsockopt: { parameters: ["i32", "i32", "i32", "buffer", "buffer"], result: "i32" },
  // int fcntl(int fd, int op, int arg)
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
});

const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const SO_PEERCRED = 17;
const F_GETFL = 3;
const F_DUPFD_CLOEXEC = 1030;
const FIRST_DUPLICATE = 3;
const MSG_CTRUNC = 0x8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;

// struct cmsghdr (sys/socket.h): size_t cmsg_len @0, int cmsg_level @8, int cmsg_type @12, data @16.
const CMSGHDR_BYTES = 16;
const DESCRIPTOR_BYTES = 4;
/**
 * Room for two descriptors. The kernel closes those beyond, so that a message with many takes no
 * more than two of this process; the second tells that there was more than one.
 */
const FEW = 2;
/** The most descriptors of a message (SCM_MAX_FD of net/scm.h). */
export const MOST_OF_A_MESSAGE = 253;

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
 * @param mostDescriptors How many descriptors are taken at most.
 * @returns Null when there is nothing now.
 * @throws {SystemError}
 */
export function receiveDescriptors(
  fd: number,
  mostBytes: number,
  mostDescriptors: number = FEW,
): HandedMessage | null {
  const bytes = new Uint8Array(mostBytes);
  const control = new Uint8Array(CMSGHDR_BYTES + mostDescriptors * DESCRIPTOR_BYTES);
  const { message, view } = messageOf(bytes, control);
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

/** A `struct msghdr` with one buffer. The buffers must live until the call has ended. */
function messageOf(
  bytes: Uint8Array<ArrayBuffer>,
  control: Uint8Array<ArrayBuffer>,
): { message: Uint8Array<ArrayBuffer>; view: DataView; iovec: Uint8Array } {
  const iovec = new Uint8Array(IOVEC_BYTES);
  putNumber64(new DataView(iovec.buffer), 0, addressOf(bytes));
  putNumber64(new DataView(iovec.buffer), 8, bytes.length);
  // msg_name @0, msg_namelen @8, msg_iov @16, msg_iovlen @24, msg_control @32, msg_controllen @40,
  // msg_flags @48.
  const message = new Uint8Array(MSGHDR_BYTES);
  const view = new DataView(message.buffer);
  putNumber64(view, 16, addressOf(iovec));
  putNumber64(view, 24, 1);
  if (control.length > 0) {
    putNumber64(view, 32, addressOf(control));
    putNumber64(view, 40, control.length);
  }
  return { message, view, iovec };
}

/**
 * Sends bytes and, with the first of them, descriptors, without waiting. The descriptors stay open here.
 *
 * @param descriptors At most `MOST_OF_A_MESSAGE`.
 * @returns How many bytes were sent; -EAGAIN when the socket is full, or another -errno.
 */
export function sendDescriptors(
  fd: number,
  bytes: Uint8Array<ArrayBuffer>,
  descriptors: readonly number[],
): number {
  const control = new Uint8Array(
    descriptors.length === 0 ? 0 : CMSGHDR_BYTES + descriptors.length * DESCRIPTOR_BYTES,
  );
  if (descriptors.length > 0) {
    const view = new DataView(control.buffer);
    view.setUint32(0, control.length, true);
    view.setInt32(8, SOL_SOCKET, true);
    view.setInt32(12, SCM_RIGHTS, true);
    descriptors.forEach((descriptor, i) =>
      view.setInt32(CMSGHDR_BYTES + i * DESCRIPTOR_BYTES, descriptor, true)
    );
  }
  const { message, iovec } = messageOf(bytes, control);
  const sent = libc.sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL);
  const errno = sent < 0 ? lastErrno() : 0;
  // They are used until here: only their addresses are in the message.
  return iovec.length > 0 && errno === 0 ? sent : -errno;
}

/** Another descriptor of the same open file, with its locks. Throws `SystemError`. */
export function duplicate(fd: number): number {
  const copy = libc.fcntl(fd, F_DUPFD_CLOEXEC, FIRST_DUPLICATE);
  if (copy < 0) throw new SystemError(lastErrno(), "Cannot duplicate a descriptor");
  return copy;
}

/** The O_* flags that an open file has now. Throws `SystemError`. */
export function descriptorFlags(fd: number): number {
  const flags = libc.fcntl(fd, F_GETFL, 0);
  if (flags < 0) throw new SystemError(lastErrno(), "Cannot get the flags of a descriptor");
  return flags;
}

/** The process at the other end of a UNIX socket when it connected, or began to listen. */
export function peerOf(fd: number): { pid: number; uid: number } {
  // struct ucred (bits/types/struct_ucred.h): pid_t pid @0, uid_t uid @4, gid_t gid @8.
  const credentials = new Uint8Array(12);
  if (libc.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials, new Uint32Array([12])) < 0) {
    throw new SystemError(lastErrno(), "Cannot find out who is at the other end of a socket");
  }
  const view = new DataView(credentials.buffer);
  return { pid: view.getInt32(0, true), uid: view.getUint32(4, true) };
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
