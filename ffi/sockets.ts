/**
 * UNIX and TCP sockets, and transfers between them and memory by address.
 *
 * @module
 */
import { Errno, errnoName, lastErrno, SystemError } from "./errno.ts";
import { openLibc, openLibcLater } from "./libc.ts";
import { memoryAddress } from "./memory.ts";
import { encodeName } from "./names.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int socket(int domain, int type, int protocol)
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int bind(int sockfd, const struct sockaddr *addr, socklen_t addrlen)
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int fchmod(int fd, mode_t mode)
  fchmod: { parameters: ["i32", "u32"], result: "i32" },
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
  // int getpeername(int sockfd, struct sockaddr *addr, socklen_t *addrlen)
  getpeername: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  // int getsockname(int sockfd, struct sockaddr *addr, socklen_t *addrlen)
  getsockname: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  // int accept4(int sockfd, struct sockaddr *addr, socklen_t *addrlen, int flags)
  acceptFrom: {
    name: "accept4",
    parameters: ["i32", "buffer", "buffer", "i32"],
    result: "i32",
  },
  // int socketpair(int domain, int type, int protocol, int sv[2])
  socketpair: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  // int close(int fd)
  close: { parameters: ["i32"], result: "i32" },
  // ssize_t recv(int sockfd, void *buf, size_t len, int flags); lengths stay below 2 GiB
  recv: { parameters: ["i32", "usize", "usize", "i32"], result: "i32" },
  // ssize_t send(int sockfd, const void *buf, size_t len, int flags)
  send: { parameters: ["i32", "usize", "usize", "i32"], result: "i32" },
});

const data = /* @__PURE__ */ openLibc({
  // ssize_t recv(int sockfd, void *buf, size_t len, int flags); lengths stay below 2 GiB
  recv: { parameters: ["i32", "usize", "usize", "i32"], result: "i32" },
  // ssize_t send(int sockfd, const void *buf, size_t len, int flags)
  send: { parameters: ["i32", "usize", "usize", "i32"], result: "i32" },
});

const messages = /* @__PURE__ */ openLibc({
  // ssize_t recvmsg(int sockfd, struct msghdr *msg, int flags)
  recvmsg: { parameters: ["i32", "pointer", "i32"], result: "i32" },
  // ssize_t sendmsg(int sockfd, const struct msghdr *msg, int flags)
  sendmsg: { parameters: ["i32", "pointer", "i32"], result: "i32" },
});

const AF_UNIX = 1;
const AF_INET6 = 10;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_TYPE = 3;
const SO_ERROR = 4;
const SO_SNDBUF = 7;
const SO_KEEPALIVE = 9;
const SO_LINGER = 13;
const SO_SNDTIMEO = 21;
const SO_ACCEPTCONN = 30;
const SO_SNDBUFFORCE = 32;
const SO_DOMAIN = 39;
const IPPROTO_TCP = 6;
const IPPROTO_IPV6 = 41;
const IPV6_V6ONLY = 26;
const TCP_NODELAY = 1;
const TCP_KEEPIDLE = 4;
const TCP_KEEPINTVL = 5;
const TCP_KEEPCNT = 6;
const TCP_USER_TIMEOUT = 18;
const TCP_ULP = 31;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const SUN_PATH_BYTES = 108;
/** Bytes of a `struct sockaddr_storage`, which holds an address of any family. */
const SOCKADDR_BYTES = 128;
/** Mode of the sockets that others connect to by path: connecting takes the right to write. */
const SOCKET_MODE = 0o600;

/**
 * Encodes a `struct sockaddr_un`.
 *
 * @throws {RangeError} The path has more than 107 bytes.
 */
export function unixAddress(path: string): Uint8Array<ArrayBuffer> {
  // struct sockaddr_un (sys/un.h): u16 family @0, char path[108] @2.
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

/** Creates two connected UNIX sockets, which block. Throws `SystemError`. */
export function socketPair(): [number, number] {
  const fds = new Int32Array(2);
  if (libc.socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
    throw new SystemError(lastErrno(), "Cannot create a pair of sockets");
  }
  return [fds[0], fds[1]];
}

/** Throws for a failed call on a new socket, and closes the socket. */
function checkSocket(fd: number, result: number, what: string): void {
  if (result >= 0) return;
  const errno = lastErrno();
  libc.close(fd);
  throw new SystemError(errno, what);
}

/**
 * Binds a non-blocking UNIX socket to a path and listens. Only the owner can connect, whatever the
 * umask: bind(2) gives the name the mode that the socket has.
 *
 * @throws {SystemError} EADDRINUSE when the path exists.
 */
export function unixListen(path: string, backlog = 128): number {
  const address = unixAddress(path);
  const fd = unixSocket(SOCK_NONBLOCK);
  checkSocket(fd, libc.fchmod(fd, SOCKET_MODE), `Cannot set the mode of the socket ${path}`);
  checkSocket(fd, libc.bind(fd, address, address.length), `Cannot bind the socket ${path}`);
  checkSocket(fd, libc.listen(fd, backlog), `Cannot listen on the socket ${path}`);
  return fd;
}

/**
 * Connects to the UNIX socket at a path. It waits while the listener's queue is full. The
 * descriptor blocks.
 *
 * @throws {SystemError} EAGAIN when `timeoutMs` has passed.
 */
export function unixConnect(path: string, timeoutMs = Infinity): number {
  const address = unixAddress(path);
  const fd = unixSocket(0);
  if (timeoutMs !== Infinity) limitSending(fd, timeoutMs);
  checkSocket(fd, libc.connect(fd, address, address.length), `Cannot connect to ${path}`);
  return fd;
}

/** Sets the timeout of connect(2) and send(2) on a UNIX socket; at least a millisecond. */
function limitSending(fd: number, timeoutMs: number): void {
  // struct timeval (sys/time.h): i64 tv_sec @0, i64 tv_usec @8. Zeros mean no timeout.
  const wholeMs = Math.max(1, Math.ceil(timeoutMs));
  const time = new BigInt64Array([
    BigInt(Math.floor(wholeMs / 1000)),
    BigInt((wholeMs % 1000) * 1000),
  ]);
  libc.setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, time, 16);
}

/**
 * Connects to the UNIX socket at a path without waiting. The descriptor does not block.
 *
 * @throws {SystemError} EAGAIN when the listener's queue is full, ECONNREFUSED without a listener.
 */
export function unixConnectAtOnce(path: string): number {
  return beginConnect(unixAddress(path), path);
}

/**
 * Starts to connect to a `struct sockaddr`. The attempt has ended when the descriptor, which does
 * not block, is writable; `connectionError` returns its result.
 *
 * @param title Name of the address for the error.
 * @throws {SystemError} An attempt that fails at once.
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

/**
 * Listens on a `struct sockaddr` of TCP. The descriptor does not block. A socket of IPv6 takes clients
 * of IPv4 as well when `isDual`.
 *
 * @param title Name of the address for the error.
 * @throws {SystemError} EADDRINUSE when another process listens there.
 */
export function tcpListen(
  address: Uint8Array<ArrayBuffer>,
  title: string,
  { backlog, isDual }: { backlog: number; isDual: boolean },
): number {
  const family = new DataView(address.buffer, address.byteOffset).getUint16(0, true);
  const fd = libc.socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) throw new SystemError(lastErrno(), "Cannot create a socket");
  libc.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, new Int32Array([1]), 4);
  if (family === AF_INET6) {
    libc.setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, new Int32Array([isDual ? 0 : 1]), 4);
  }
  checkSocket(fd, libc.bind(fd, address, address.length), `Cannot listen on ${title}`);
  checkSocket(fd, libc.listen(fd, backlog), `Cannot listen on ${title}`);
  return fd;
}

/** The `struct sockaddr` that a socket is bound to. Throws `SystemError`. */
export function boundAddress(fd: number): Uint8Array<ArrayBuffer> {
  const address = new Uint8Array(SOCKADDR_BYTES);
  const size = new Uint32Array([SOCKADDR_BYTES]);
  if (libc.getsockname(fd, address, size) < 0) {
    throw new SystemError(lastErrno(), "Cannot get the address of a socket");
  }
  return address.slice(0, size[0]);
}

/** Disables Nagle's algorithm, and detects a peer that vanished within half a minute. */
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

/**
 * Prepares a connected TCP socket for TLS in the kernel; false where the kernel has none. The kernel
 * loads its module for a process with CAP_NET_ADMIN. The socket stays as it is until keys are set.
 */
export function prepareKernelTls(fd: number): boolean {
  return libc.setsockopt(fd, IPPROTO_TCP, TCP_ULP, encodeName("tls\0"), 4) === 0;
}

/** An option of a socket that is an int, or -errno. */
function socketOption(fd: number, option: number): number {
  const value = new Int32Array(1);
  const size = new Uint32Array([4]);
  return libc.getsockopt(fd, SOL_SOCKET, option, value, size) < 0 ? -lastErrno() : value[0];
}

/** The result of `beginConnect`: 0 or a positive errno. */
export function connectionError(fd: number): number {
  return Math.abs(socketOption(fd, SO_ERROR));
}

/** Why a descriptor is not a connected stream of bytes, such as "it listens"; null when it is one. */
export function streamFault(fd: number): string | null {
  const type = socketOption(fd, SO_TYPE);
  if (type < 0) return `it is no socket (${errnoName(-type)})`;
  if (type !== SOCK_STREAM) return "it is no stream socket";
  if (socketOption(fd, SO_ACCEPTCONN) !== 0) return "it listens for connections";
  const size = new Uint32Array([SOCKADDR_BYTES]);
  if (libc.getpeername(fd, new Uint8Array(SOCKADDR_BYTES), size) < 0) {
    return `it is not connected (${errnoName(lastErrno())})`;
  }
  return null;
}

/** Prepares a stream that another program made: one over TCP gets the options of `beginConnect`. */
export function adoptStream(fd: number): void {
  if (socketOption(fd, SO_DOMAIN) !== AF_UNIX) watchOverTcp(fd);
}

/**
 * Creates a non-blocking datagram socket that is connected to the UNIX socket at a path. Use
 * `sendAt` to send and `closeFile` to close.
 *
 * @throws {SystemError}
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

/**
 * Accepts a connection, whose descriptor does not block. Returns -EAGAIN without one, or -errno.
 */
export function acceptConnection(fd: number): number {
  const connection = libc.accept4(fd, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
  return connection >= 0 ? connection : -lastErrno();
}

/**
 * As `acceptConnection`, of a client over TCP, which gets the options of `beginConnect`.
 *
 * @param from Filled with the `struct sockaddr` of the client; 128 bytes.
 */
export function acceptTcp(fd: number, from: Uint8Array<ArrayBuffer>): number {
  const size = new Uint32Array([SOCKADDR_BYTES]);
  const connection = libc.acceptFrom(fd, from, size, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (connection < 0) return -lastErrno();
  watchOverTcp(connection);
  return connection;
}

/**
 * Requests a send buffer of `sizeBytes`, beyond the system's limit if the process has the right to.
 * A smaller buffer is no error: transfers take more calls then.
 */
export function enlargeSendBuffer(fd: number, sizeBytes: number): void {
  const size = new Int32Array([sizeBytes]);
  if (libc.setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, size, 4) < 0) {
    libc.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, size, 4);
  }
}

/**
 * Closing a TCP socket resets the connection from now on: what the peer has not been sent is dropped, and
 * the peer sees the end at once. For a UNIX socket it changes nothing.
 */
export function resetOnClose(fd: number): void {
  // struct linger (asm-generic/socket.h): int l_onoff, int l_linger.
  libc.setsockopt(fd, SOL_SOCKET, SO_LINGER, new Int32Array([1, 0]), 8);
}

/** Receives into memory without waiting. Returns bytes, 0 at the end of the stream, or -errno. */
export function receiveAt(fd: number, address: number, lengthBytes: number): number {
  const got = data.recv(fd, address, lengthBytes, MSG_DONTWAIT);
  return got >= 0 ? got : -lastErrno();
}

/** Sends from memory without waiting. Returns the bytes that the send buffer took, or -errno. */
export function sendAt(fd: number, address: number, lengthBytes: number): number {
  const put = data.send(fd, address, lengthBytes, MSG_DONTWAIT | MSG_NOSIGNAL);
  return put >= 0 ? put : -lastErrno();
}

/** As `receiveAt`, for programs that seldom receive: see `openLibcLater`. */
export function receiveSeldom(fd: number, address: number, lengthBytes: number): number {
  const got = libc.recv(fd, address, lengthBytes, MSG_DONTWAIT);
  return got >= 0 ? got : -lastErrno();
}

/** As `sendAt`, for programs that seldom send. */
export function sendSeldom(fd: number, address: number, lengthBytes: number): number {
  const put = libc.send(fd, address, lengthBytes, MSG_DONTWAIT | MSG_NOSIGNAL);
  return put >= 0 ? put : -lastErrno();
}

/** Bytes of a `struct msghdr` (sys/socket.h). */
export const MSGHDR_BYTES = 56;
/** Bytes of a `struct iovec` (sys/uio.h): void *iov_base @0, size_t iov_len @8. */
export const IOVEC_BYTES = 16;
/** The most iovecs of one call (linux/uio.h). */
export const UIO_MAXIOV = 1024;

/** Writes a 64-bit field, such as an address or a length, from a number. */
export function putNumber64(view: DataView, offset: number, value: number): void {
  view.setUint32(offset, value >>> 0, true);
  view.setUint32(offset + 4, (value / 0x1_0000_0000) >>> 0, true);
}

/**
 * Writes a `struct iovec` at `offset` for bytes of I/O memory. The memory begins `offsetBytes`
 * after the start of a sector: unlike an address, these numbers stay in registers.
 */
export function putIovec(
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

/**
 * Moves the `struct iovec` at `offset` past its first `bytes` bytes.
 *
 * @param bytes Less than the length of the iovec.
 */
export function shortenIovec(view: DataView, offset: number, bytes: number): void {
  const low = view.getUint32(offset, true) + bytes;
  view.setUint32(offset, low >>> 0, true);
  if (low > 0xffff_ffff) view.setUint32(offset + 4, view.getUint32(offset + 4, true) + 1, true);
  view.setUint32(offset + 8, view.getUint32(offset + 8, true) - bytes, true);
}

/** Sets the number of iovecs of the `struct msghdr` at `offset`. */
export function putIovecCount(view: DataView, offset: number, iovecCount: number): void {
  view.setUint32(offset + 24, iovecCount, true);
}

/**
 * Writes a `struct msghdr` at `offset`, in zeroed memory: it has no name and no control data. Its
 * iovecs begin `iovecsAt` bytes after the start of a sector of I/O memory.
 */
export function putMsghdr(
  view: DataView,
  offset: number,
  memorySector: number,
  iovecsAt: number,
  iovecCount: number,
): void {
  // msg_name @0, msg_namelen @8, msg_iov @16, msg_iovlen @24, msg_control @32,
  // msg_controllen @40, msg_flags @48.
  const address = memoryAddress(memorySector) + iovecsAt;
  view.setUint32(offset + 16, address >>> 0, true);
  view.setUint32(offset + 20, (address / 0x1_0000_0000) >>> 0, true);
  putIovecCount(view, offset, iovecCount);
}

/** Receives by a `struct msghdr` without waiting. Returns as `receiveAt` does. */
export function receiveMessage(fd: number, msghdr: Deno.PointerObject): number {
  const got = messages.recvmsg(fd, msghdr, MSG_DONTWAIT);
  return got >= 0 ? got : -lastErrno();
}

/** Sends by a `struct msghdr` without waiting. Returns as `sendAt` does. */
export function sendMessage(fd: number, msghdr: Deno.PointerObject): number {
  const put = messages.sendmsg(fd, msghdr, MSG_DONTWAIT | MSG_NOSIGNAL);
  return put >= 0 ? put : -lastErrno();
}
