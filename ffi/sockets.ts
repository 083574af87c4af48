/**
 * Stream sockets that do not block, and transfers between them and memory by address.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { openLibc } from "./libc.ts";
import { memoryAddress } from "./memory.ts";
import { encodeName } from "./names.ts";

const libc = openLibc({
  // int socket(int domain, int type, int protocol)
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int bind(int sockfd, const struct sockaddr *addr, socklen_t addrlen)
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int listen(int sockfd, int backlog)
  listen: { parameters: ["i32", "i32"], result: "i32" },
  // int accept4(int sockfd, struct sockaddr *addr, socklen_t *addrlen, int flags)
  accept4: { parameters: ["i32", "usize", "usize", "i32"], result: "i32" },
  // int connect(int sockfd, const struct sockaddr *addr, socklen_t addrlen)
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int setsockopt(int sockfd, int level, int optname, const void *optval, socklen_t optlen)
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  // int getsockopt(int sockfd, int level, int optname, void *optval, socklen_t *optlen)
  getsockopt: { parameters: ["i32", "i32", "i32", "buffer", "buffer"], result: "i32" },
  // int socketpair(int domain, int type, int protocol, int sv[2])
  socketpair: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  // int close(int fd)
  close: { parameters: ["i32"], result: "i32" },
  // ssize_t recv(int sockfd, void *buf, size_t len, int flags); lengths stay below 2 GiB
  recv: { parameters: ["i32", "usize", "usize", "i32"], result: "i32" },
  // ssize_t send(int sockfd, const void *buf, size_t len, int flags)
  send: { parameters: ["i32", "usize", "usize", "i32"], result: "i32" },
  // ssize_t recvmsg(int sockfd, struct msghdr *msg, int flags)
  recvmsg: { parameters: ["i32", "pointer", "i32"], result: "i32" },
  // ssize_t sendmsg(int sockfd, const struct msghdr *msg, int flags)
  sendmsg: { parameters: ["i32", "pointer", "i32"], result: "i32" },
});

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_ERROR = 4;
const SO_SNDBUF = 7;
const SO_KEEPALIVE = 9;
const SO_SNDTIMEO = 21;
const SO_SNDBUFFORCE = 32;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const TCP_KEEPIDLE = 4;
const TCP_KEEPINTVL = 5;
const TCP_KEEPCNT = 6;
const TCP_USER_TIMEOUT = 18;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const SUN_PATH_BYTES = 108;

/** A `struct sockaddr_un` for a path. Throws `RangeError` when the path is too long for one. */
export function unixAddress(path: string): Uint8Array<ArrayBuffer> {
  // struct sockaddr_un: u16 family @0, char path[108] @2.
  const bytes = encodeName(path);
  if (bytes.length >= SUN_PATH_BYTES) {
    throw new RangeError(
      `Cannot use ${path} as a socket: the path has ${bytes.length} bytes, ` +
        `and ${SUN_PATH_BYTES - 1} are the most; choose a shorter folder`,
    );
  }
  const address = new Uint8Array(2 + SUN_PATH_BYTES);
  address[0] = AF_UNIX;
  address.set(bytes, 2);
  return address;
}

function unixSocket(flags: number): number {
  const fd = libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
  if (fd < 0) throw new SystemError(lastErrno(), "Cannot create a socket");
  return fd;
}

/** Two UNIX sockets that are connected to each other; both block. Throws `SystemError`. */
export function socketPair(): [number, number] {
  const fds = new Int32Array(2);
  if (libc.socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
    throw new SystemError(lastErrno(), "Cannot create a pair of sockets");
  }
  return [fds[0], fds[1]];
}

/** Checks the result of a call on a new socket, which is closed when the call failed. */
function checkSocket(fd: number, result: number, what: string): void {
  if (result >= 0) return;
  const errno = lastErrno();
  libc.close(fd);
  throw new SystemError(errno, what);
}

/** Binds a UNIX socket to `path`, which must not exist, and listens. Throws `SystemError`. */
export function unixListen(path: string, backlog = 128): number {
  const address = unixAddress(path);
  const fd = unixSocket(SOCK_NONBLOCK);
  checkSocket(fd, libc.bind(fd, address, address.length), `Cannot bind the socket ${path}`);
  checkSocket(fd, libc.listen(fd, backlog), `Cannot listen on the socket ${path}`);
  return fd;
}

/**
 * Connects to the UNIX socket at `path`; the descriptor blocks. A listener that does not accept and
 * whose queue is full is waited for. Throws `SystemError`: EAGAIN when `timeoutMs` has gone by.
 */
export function unixConnect(path: string, timeoutMs = Infinity): number {
  const address = unixAddress(path);
  const fd = unixSocket(0);
  if (timeoutMs !== Infinity) limitSending(fd, timeoutMs);
  checkSocket(fd, libc.connect(fd, address, address.length), `Cannot connect to ${path}`);
  return fd;
}

/** Sets how long connect(2) and send(2) wait on a UNIX socket: at least a millisecond. */
function limitSending(fd: number, timeoutMs: number): void {
  // struct timeval: i64 seconds @0, i64 microseconds @8. Zeros would mean no limit.
  const wholeMs = Math.max(1, Math.ceil(timeoutMs));
  const time = new BigInt64Array([
    BigInt(Math.floor(wholeMs / 1000)),
    BigInt((wholeMs % 1000) * 1000),
  ]);
  libc.setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, time, 16);
}

/**
 * Connects to the UNIX socket at `path` without waiting; the descriptor does not block. Throws
 * `SystemError`: EAGAIN when the listener's queue is full, ECONNREFUSED when nobody listens.
 */
export function unixConnectAtOnce(path: string): number {
  return beginConnect(unixAddress(path), path);
}

/**
 * Begins to connect to a `struct sockaddr`, without waiting: once the descriptor can be written to,
 * `connectionError` says how that ended. Throws `SystemError` for what fails at once.
 *
 * @param title What the address is called, for the error.
 */
export function beginConnect(address: Uint8Array<ArrayBuffer>, title: string): number {
  const family = new DataView(address.buffer, address.byteOffset).getUint16(0, true);
  const fd = libc.socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) throw new SystemError(lastErrno(), "Cannot create a socket");
  if (family !== AF_UNIX) watchOverTcp(fd);
  if (libc.connect(fd, address, address.length) < 0) {
    const errno = lastErrno();
    if (errno !== Errno.EINPROGRESS) {
      libc.close(fd);
      throw new SystemError(errno, `Cannot connect to ${title}`);
    }
  }
  return fd;
}

/** Small messages leave at once; a peer that has gone without a word is noticed in half a minute. */
function watchOverTcp(fd: number): void {
  const options = [
    [SOL_SOCKET, SO_KEEPALIVE, 1],
    [IPPROTO_TCP, TCP_NODELAY, 1],
    [IPPROTO_TCP, TCP_KEEPIDLE, 10],
    [IPPROTO_TCP, TCP_KEEPINTVL, 5],
    [IPPROTO_TCP, TCP_KEEPCNT, 4],
    [IPPROTO_TCP, TCP_USER_TIMEOUT, 30_000],
  ];
  for (const [level, option, value] of options) {
    libc.setsockopt(fd, level, option, new Int32Array([value]), 4);
  }
}

/** How connecting a descriptor ended: 0, or a positive error number. */
export function connectionError(fd: number): number {
  const error = new Int32Array(1);
  const size = new Uint32Array([4]);
  return libc.getsockopt(fd, SOL_SOCKET, SO_ERROR, error, size) < 0 ? lastErrno() : error[0];
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

/** The next waiting connection, not blocking; or a negative error number (-EAGAIN: none). */
export function acceptConnection(fd: number): number {
  const connection = libc.accept4(fd, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
  return connection >= 0 ? connection : -lastErrno();
}

/**
 * Asks for a send buffer of `sizeBytes`, beyond the system's limit where the process may. Less is
 * no error: transfers take more turns then.
 */
export function enlargeSendBuffer(fd: number, sizeBytes: number): void {
  const size = new Int32Array([sizeBytes]);
  if (libc.setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, size, 4) < 0) {
    libc.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, size, 4);
  }
}

/** Receives what is there into memory; returns bytes, 0 at the end, or a negative errno. */
export function receiveAt(fd: number, address: number, lengthBytes: number): number {
  const got = libc.recv(fd, address, lengthBytes, MSG_DONTWAIT);
  return got >= 0 ? got : -lastErrno();
}

/** Sends from memory what fits the send buffer; returns bytes or a negative errno. */
export function sendAt(fd: number, address: number, lengthBytes: number): number {
  const put = libc.send(fd, address, lengthBytes, MSG_DONTWAIT | MSG_NOSIGNAL);
  return put >= 0 ? put : -lastErrno();
}

/** Bytes of a `struct msghdr`. */
export const MSGHDR_BYTES = 56;
/** Bytes of a `struct iovec`. */
export const IOVEC_BYTES = 16;
/** The most iovecs that one call takes (UIO_MAXIOV). */
export const UIO_MAXIOV = 1024;

/** Writes a 64-bit field that holds an address or a length, without a BigInt. */
export function putNumber64(view: DataView, offset: number, value: number): void {
  view.setUint32(offset, value >>> 0, true);
  view.setUint32(offset + 4, (value / 0x1_0000_0000) >>> 0, true);
}

/** Writes a `struct iovec` at `offset`. */
export function putIovec(
  view: DataView,
  offset: number,
  address: number,
  lengthBytes: number,
): void {
  putNumber64(view, offset, address);
  putNumber64(view, offset + 8, lengthBytes);
}

/**
 * Writes a `struct iovec` at `offset` for bytes of I/O memory, from `offsetBytes` behind the start
 * of a sector on: unlike an address, these numbers stay in registers.
 */
export function putMemoryIovec(
  view: DataView,
  offset: number,
  memorySector: number,
  offsetBytes: number,
  lengthBytes: number,
): void {
  const address = memoryAddress(memorySector) + offsetBytes;
  view.setUint32(offset, address >>> 0, true);
  view.setUint32(offset + 4, (address / 0x1_0000_0000) >>> 0, true);
  view.setUint32(offset + 8, lengthBytes, true);
  view.setUint32(offset + 12, 0, true);
}

/** Changes how many iovecs the `struct msghdr` at `offset` has. */
export function putIovecCount(view: DataView, offset: number, iovecCount: number): void {
  view.setUint32(offset + 24, iovecCount, true);
}

/** Writes a `struct msghdr` at `offset` that has no name and no control data. */
export function putMsghdr(
  view: DataView,
  offset: number,
  iovecsAddress: number,
  iovecCount: number,
): void {
  // msg_name @0, msg_namelen @8, msg_iov @16, msg_iovlen @24, msg_control @32,
  // msg_controllen @40, msg_flags @48.
  putNumber64(view, offset + 16, iovecsAddress);
  putNumber64(view, offset + 24, iovecCount);
}

/** Receives by a `struct msghdr`; returns bytes, 0 at the end, or a negative errno. */
export function receiveMessage(fd: number, msghdr: Deno.PointerObject): number {
  const got = libc.recvmsg(fd, msghdr, MSG_DONTWAIT);
  return got >= 0 ? got : -lastErrno();
}

/** Sends by a `struct msghdr`; returns bytes or a negative errno. */
export function sendMessage(fd: number, msghdr: Deno.PointerObject): number {
  const put = libc.sendmsg(fd, msghdr, MSG_DONTWAIT | MSG_NOSIGNAL);
  return put >= 0 ? put : -lastErrno();
}
