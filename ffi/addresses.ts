/**
 * Addresses of hosts, from the resolver of the C library.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { cString, memoryAt, openLibc } from "./libc.ts";

const libc = openLibc({
  // int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
  //                 struct addrinfo **res)
  getaddrinfo: { parameters: ["buffer", "buffer", "buffer", "buffer"], result: "i32" },
  // int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
  //                 struct addrinfo **res), on another thread
  getaddrinfoAside: {
    name: "getaddrinfo",
    parameters: ["buffer", "buffer", "buffer", "buffer"],
    result: "i32",
    nonblocking: true,
  },
  // void freeaddrinfo(struct addrinfo *res)
  freeaddrinfo: { parameters: ["usize"], result: "void" },
  // const char *gai_strerror(int errcode)
  gai_strerror: { parameters: ["i32"], result: "pointer" },
});

const SOCK_STREAM = 1;
const AI_ADDRCONFIG = 0x20;
const EAI_SYSTEM = -11;
// struct addrinfo (netdb.h): i32 flags @0, family @4, socktype @8, protocol @12, u32 addrlen @16,
// sockaddr *addr @24, char *canonname @32, addrinfo *next @40.
const ADDRINFO_BYTES = 48;

function tcpHints(): Int32Array<ArrayBuffer> {
  const hints = new Int32Array(ADDRINFO_BYTES / 4);
  hints[0] = AI_ADDRCONFIG;
  hints[2] = SOCK_STREAM;
  return hints;
}

/**
 * Resolves a host to the addresses of one of its TCP ports. Blocks until the resolver answers,
 * which may take a query over the network.
 *
 * @returns Addresses in the resolver's order of preference, each a `struct sockaddr`.
 * @throws {SystemError} EHOSTUNREACH when the host has no address; else the resolver's error.
 */
export function resolveTcp(host: string, port: number): Uint8Array<ArrayBuffer>[] {
  const result = new BigUint64Array(1);
  const code = libc.getaddrinfo(cString(host), cString(String(port)), tcpHints(), result);
  return takeAddresses(code, result, { host, errno: code === EAI_SYSTEM ? lastErrno() : 0 });
}

/** As `resolveTcp`; another thread waits. The promise fails as that throws. */
export async function resolveTcpAside(
  host: string,
  port: number,
): Promise<Uint8Array<ArrayBuffer>[]> {
  const result = new BigUint64Array(1);
  // The thread reads them until the call has ended.
  const given = [cString(host), cString(String(port)), tcpHints()] as const;
  const code = await libc.getaddrinfoAside(...given, result);
  return takeAddresses(code, result, { host, errno: 0 });
}

function takeAddresses(
  code: number,
  result: BigUint64Array<ArrayBuffer>,
  { host, errno: systemErrno }: { host: string; errno: number },
): Uint8Array<ArrayBuffer>[] {
  if (code !== 0) {
    const errno = systemErrno === 0 ? Errno.EHOSTUNREACH : systemErrno;
    const text = libc.gai_strerror(code);
    const why = text === null ? `error ${code}` : Deno.UnsafePointerView.getCString(text);
    throw new SystemError(errno, `Cannot find the host ${host} (${why})`);
  }
  const first = Number(result[0]);
  try {
    return listAddresses(first);
  } finally {
    libc.freeaddrinfo(first);
  }
}

function listAddresses(first: number): Uint8Array<ArrayBuffer>[] {
  const addresses: Uint8Array<ArrayBuffer>[] = [];
  for (let at = first; at !== 0;) {
    const info = new DataView(memoryAt(at, ADDRINFO_BYTES));
    const address = Number(info.getBigUint64(24, true));
    const bytes = new Uint8Array(memoryAt(address, info.getUint32(16, true)));
    addresses.push(bytes.slice());
    at = Number(info.getBigUint64(40, true));
  }
  return addresses;
}
