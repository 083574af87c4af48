/**
 * What xapi does to hand a connection over: one message on a UNIX socket, with a text and descriptors
 * (SCM_RIGHTS). It shares no code with the side that receives.
 *
 * @module
 */
import { closeFile } from "../../ffi/files.ts";
import { unixConnect } from "../../ffi/sockets.ts";

const libc = Deno.dlopen("libc.so.6", {
  // ssize_t sendmsg(int sockfd, const struct msghdr *msg, int flags)
  sendmsg: { parameters: ["i32", "buffer", "i32"], result: "isize" },
  // int socket(int domain, int type, int protocol)
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int bind(int sockfd, const struct sockaddr *addr, socklen_t addrlen)
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int listen(int sockfd, int backlog)
  listen: { parameters: ["i32", "i32"], result: "i32" },
  // int getsockname(int sockfd, struct sockaddr *addr, socklen_t *addrlen)
  getsockname: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  // int connect(int sockfd, const struct sockaddr *addr, socklen_t addrlen)
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int accept(int sockfd, struct sockaddr *addr, socklen_t *addrlen)
  accept: { parameters: ["i32", "pointer", "pointer"], result: "i32" },
  // int pipe(int pipefd[2])
  pipe: { parameters: ["buffer"], result: "i32" },
}).symbols;

export const AF_UNIX = 1;
export const AF_INET = 2;
export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_NOSIGNAL = 0x4000;
const SOCKADDR_IN_BYTES = 16;

function addressOf(bytes: Uint8Array<ArrayBuffer>): bigint {
  return Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes));
}

/** Sends a text and descriptors in one message on a connected socket. */
export function sendDescriptors(socket: number, text: string | Uint8Array, fds: number[]): void {
  const bytes = Uint8Array.from(typeof text === "string" ? new TextEncoder().encode(text) : text);
  const control = new Uint8Array(16 + 8 * Math.ceil(fds.length / 2));
  const controlView = new DataView(control.buffer);
  controlView.setBigUint64(0, BigInt(16 + 4 * fds.length), true);
  controlView.setInt32(8, SOL_SOCKET, true);
  controlView.setInt32(12, SCM_RIGHTS, true);
  fds.forEach((fd, i) => controlView.setInt32(16 + 4 * i, fd, true));
  const iovec = new Uint8Array(16);
  const iovecView = new DataView(iovec.buffer);
  iovecView.setBigUint64(0, addressOf(bytes), true);
  iovecView.setBigUint64(8, BigInt(bytes.length), true);
  const message = new Uint8Array(56);
  const view = new DataView(message.buffer);
  view.setBigUint64(16, addressOf(iovec), true);
  view.setBigUint64(24, 1n, true);
  if (fds.length > 0) {
    view.setBigUint64(32, addressOf(control), true);
    view.setBigUint64(40, BigInt(control.length), true);
  }
  const sent = Number(libc.sendmsg(socket, message, MSG_NOSIGNAL));
  if (sent !== bytes.length) throw new Error(`sendmsg sent ${sent} of ${bytes.length} bytes`);
}

/** Hands descriptors over at the socket `path`, and closes this process's copies. */
export function handOver(path: string, text: string | Uint8Array, ...fds: number[]): void {
  const socket = unixConnect(path);
  try {
    sendDescriptors(socket, text, fds);
  } finally {
    closeFile(socket);
    for (const fd of fds) closeFile(fd);
  }
}

/** A socket that is not connected. */
export function plainSocket(domain: number, type: number): number {
  const fd = libc.socket(domain, type, 0);
  if (fd < 0) throw new Error("No socket");
  return fd;
}

/** A TCP socket that listens on a free port of this machine, and its address. */
export function tcpListener(): { fd: number; address: Uint8Array<ArrayBuffer> } {
  const fd = plainSocket(AF_INET, SOCK_STREAM);
  // struct sockaddr_in: u16 family @0, port @2 and address @4 in network order.
  const address = new Uint8Array(SOCKADDR_IN_BYTES);
  address.set([AF_INET, 0, 0, 0, 127, 0, 0, 1]);
  const length = new Uint32Array([SOCKADDR_IN_BYTES]);
  const isBound = libc.bind(fd, address, SOCKADDR_IN_BYTES) === 0 && libc.listen(fd, 4) === 0 &&
    libc.getsockname(fd, address, length) === 0;
  if (!isBound) throw new Error("Cannot listen on TCP");
  return { fd, address };
}

/** Two connected TCP sockets, as two hosts have them. */
export function tcpPair(): [number, number] {
  const { fd: listener, address } = tcpListener();
  const one = plainSocket(AF_INET, SOCK_STREAM);
  if (libc.connect(one, address, SOCKADDR_IN_BYTES) !== 0) throw new Error("Cannot connect");
  const other = libc.accept(listener, null, null);
  closeFile(listener);
  if (other < 0) throw new Error("Cannot accept");
  return [one, other];
}

/** The two ends of a pipe. */
export function pipePair(): [number, number] {
  const fds = new Int32Array(2);
  if (libc.pipe(fds) !== 0) throw new Error("No pipe");
  return [fds[0], fds[1]];
}
