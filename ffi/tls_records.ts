/**
 * Records of TLS on a socket that the kernel encrypts and decrypts: their type comes and goes with them, as
 * control data of a message (linux/tls.h).
 *
 * @module
 */
import { Errno, lastErrno } from "./errno.ts";
import { addressOf, openLibcLater } from "./libc.ts";
import { IOVEC_BYTES, MSGHDR_BYTES, putNumber64 } from "./sockets.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // ssize_t recvmsg(int sockfd, struct msghdr *msg, int flags); lengths stay below 2 GiB
  recvmsg: { parameters: ["i32", "buffer", "i32"], result: "i32" },
  // ssize_t sendmsg(int sockfd, const struct msghdr *msg, int flags)
  sendmsg: { parameters: ["i32", "buffer", "i32"], result: "i32" },
});

const SOL_TLS = 282;
const TLS_SET_RECORD_TYPE = 1;
const TLS_GET_RECORD_TYPE = 2;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
/** The most data of a record. */
const RECORD_BYTES = 16 * 1024;
// struct cmsghdr (sys/socket.h): size_t cmsg_len @0, int cmsg_level @8, int cmsg_type @12, data @16: u8.
const CMSG_BYTES = 17;
const CMSG_SPACE = 24;

/** A record, or the first part of one. */
export interface TlsRecord {
  readonly type: number;
  readonly bytes: Uint8Array;
}

/** Receives a record that is none of data, without waiting; -errno when that fails. */
export function receiveRecord(fd: number): TlsRecord | number {
  const bytes = new Uint8Array(RECORD_BYTES);
  const control = new DataView(new ArrayBuffer(CMSG_SPACE));
  const message = messageOf(bytes, control);
  const got = libc.recvmsg(fd, message.header, MSG_DONTWAIT);
  if (got < 0) return -lastErrno();
  const isTyped = control.getInt32(8, true) === SOL_TLS &&
    control.getInt32(12, true) === TLS_GET_RECORD_TYPE;
  // They are used until here: only their addresses are in the message.
  if (!isTyped || message.iovec.length === 0) return -Errno.EPROTO;
  return { type: control.getUint8(16), bytes: bytes.subarray(0, got) };
}

/** Sends a record of a type, without waiting; returns its bytes, or -errno. */
export function sendRecord(fd: number, type: number, bytes: Uint8Array<ArrayBuffer>): number {
  const control = new DataView(new ArrayBuffer(CMSG_SPACE));
  control.setUint32(0, CMSG_BYTES, true);
  control.setInt32(8, SOL_TLS, true);
  control.setInt32(12, TLS_SET_RECORD_TYPE, true);
  control.setUint8(16, type);
  const message = messageOf(bytes, control);
  const sent = libc.sendmsg(fd, message.header, MSG_DONTWAIT | MSG_NOSIGNAL);
  const errno = sent < 0 ? lastErrno() : 0;
  const areKept = message.iovec.length > 0 && control.byteLength > 0;
  return errno === 0 && areKept ? sent : -errno;
}

/** A `struct msghdr` with one buffer. The buffers must live until the call has ended. */
function messageOf(
  bytes: Uint8Array<ArrayBuffer>,
  control: DataView<ArrayBuffer>,
): { header: Uint8Array<ArrayBuffer>; iovec: Uint8Array } {
  const iovec = new Uint8Array(IOVEC_BYTES);
  putNumber64(new DataView(iovec.buffer), 0, addressOf(bytes));
  putNumber64(new DataView(iovec.buffer), 8, bytes.length);
  // msg_name @0, msg_namelen @8, msg_iov @16, msg_iovlen @24, msg_control @32, msg_controllen @40,
  // msg_flags @48.
  const header = new Uint8Array(MSGHDR_BYTES);
  const view = new DataView(header.buffer);
  putNumber64(view, 16, addressOf(iovec));
  putNumber64(view, 24, 1);
  putNumber64(view, 32, addressOf(new Uint8Array(control.buffer)));
  putNumber64(view, 40, CMSG_SPACE);
  return { header, iovec };
}
