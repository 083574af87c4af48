/**
 * Records of TLS on a socket that the kernel encrypts and decrypts: their type comes and goes with them, as
 * control data of a message (linux/tls.h).
 *
 * @module
 */
import { assert } from "./assert.ts";
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

/** A `struct msghdr` with one buffer and one piece of control data, and all that it leads to. */
class Message {
  readonly header = new Uint8Array(MSGHDR_BYTES);
  readonly bytes = new Uint8Array(RECORD_BYTES);
  readonly control = new Uint8Array(CMSG_SPACE);
  readonly controlView = new DataView(this.control.buffer);
  readonly #iovec = new Uint8Array(IOVEC_BYTES);

  /** Fills it in, for so many bytes. */
  prepare(bytes: number): void {
    const iovec = new DataView(this.#iovec.buffer);
    putNumber64(iovec, 0, addressOf(this.bytes));
    putNumber64(iovec, 8, bytes);
    // msg_name @0, msg_namelen @8, msg_iov @16, msg_iovlen @24, msg_control @32, msg_controllen @40,
    // msg_flags @48.
    const header = new DataView(this.header.buffer);
    putNumber64(header, 16, addressOf(this.#iovec));
    putNumber64(header, 24, 1);
    putNumber64(header, 32, addressOf(this.control));
    putNumber64(header, 40, CMSG_SPACE);
    this.control.fill(0);
  }
}

/** The message of all calls. It stays: the memory of an array of which only the address is kept may be freed. */
let kept: Message | null = null;

function messageFor(bytes: number): Message {
  assert(bytes <= RECORD_BYTES, "A record of TLS has at most 16 KiB");
  kept ??= new Message();
  kept.prepare(bytes);
  return kept;
}

/** Receives a record that is none of data, without waiting; -errno when that fails. */
export function receiveRecord(fd: number): TlsRecord | number {
  const { header, bytes, controlView } = messageFor(RECORD_BYTES);
  const got = libc.recvmsg(fd, header, MSG_DONTWAIT);
  if (got < 0) return -lastErrno();
  const isTyped = controlView.getInt32(8, true) === SOL_TLS &&
    controlView.getInt32(12, true) === TLS_GET_RECORD_TYPE;
  return isTyped ? { type: controlView.getUint8(16), bytes: bytes.slice(0, got) } : -Errno.EPROTO;
}

/** Sends a record of a type, of up to 16 KiB, without waiting; returns its bytes, or -errno. */
export function sendRecord(fd: number, type: number, record: Uint8Array): number {
  const { header, bytes, controlView } = messageFor(record.length);
  bytes.set(record);
  controlView.setUint32(0, CMSG_BYTES, true);
  controlView.setInt32(8, SOL_TLS, true);
  controlView.setInt32(12, TLS_SET_RECORD_TYPE, true);
  controlView.setUint8(16, type);
  const sent = libc.sendmsg(fd, header, MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent < 0 ? -lastErrno() : sent;
}
