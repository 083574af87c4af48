/**
 * Addresses of hosts, from the resolver of the C library.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { cString, memoryAt, openLibcLater } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
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
const AI_PASSIVE = 0x01;
const AI_NUMERICHOST = 0x04;
const AI_ADDRCONFIG = 0x20;
const AF_INET = 2;
const AF_INET6 = 10;
const EAI_SYSTEM = -11;
// struct addrinfo (netdb.h): i32 flags @0, family @4, socktype @8, protocol @12, u32 addrlen @16,
// sockaddr *addr @24, char *canonname @32, addrinfo *next @40.
const ADDRINFO_BYTES = 48;

function tcpHints(flags = AI_ADDRCONFIG): Int32Array<ArrayBuffer> {
  const hints = new Int32Array(ADDRINFO_BYTES / 4);
  hints[0] = flags;
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

/** The `struct sockaddr` of a port of an address in numbers; never asks a server. Throws as `resolveTcp`. */
export function tcpAddress(address: string, port: number): Uint8Array<ArrayBuffer> {
  const result = new BigUint64Array(1);
  const hints = tcpHints(AI_NUMERICHOST);
  const code = libc.getaddrinfo(cString(address), cString(String(port)), hints, result);
  return takeAddresses(code, result, { host: address, errno: 0 })[0];
}

/** The addresses of a host on which a server can listen, in numbers. Blocks as `resolveTcp` does. */
export function listeningAddresses(host: string): string[] {
  const result = new BigUint64Array(1);
  const code = libc.getaddrinfo(cString(host), cString("0"), tcpHints(AI_PASSIVE), result);
  const errno = code === EAI_SYSTEM ? lastErrno() : 0;
  return takeAddresses(code, result, { host, errno }).map(addressText);
}

/** Groups of an IPv6 address as text, with `::` for the longest run of zeros (RFC 5952). */
function groupsText(groups: readonly number[]): string {
  let best = { at: -1, length: 1 };
  for (let at = 0; at < groups.length; at++) {
    let length = 0;
    while (groups[at + length] === 0) length++;
    if (length > best.length) best = { at, length };
  }
  const text = (part: readonly number[]): string =>
    part.map((group) => group.toString(16)).join(":");
  if (best.at < 0) return text(groups);
  return `${text(groups.slice(0, best.at))}::${text(groups.slice(best.at + best.length))}`;
}

/** The address in a `struct sockaddr`, in numbers: `192.0.2.1`, `2001:db8::1`. */
export function addressText(address: Uint8Array): string {
  // sockaddr_in: u16 family @0, u16 port @2 (big-endian), u8 addr[4] @4.
  // sockaddr_in6: u16 family @0, u16 port @2, u32 flow @4, u8 addr[16] @8.
  const view = new DataView(address.buffer, address.byteOffset, address.byteLength);
  const family = view.getUint16(0, true);
  if (family === AF_INET) return Array.from(address.subarray(4, 8)).join(".");
  if (family !== AF_INET6) return "";
  const groups = Array.from({ length: 8 }, (_, i) => view.getUint16(8 + 2 * i, false));
  const isMapped = groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff;
  if (isMapped) return Array.from(address.subarray(20, 24)).join(".");
  return groupsText(groups);
}

/**
 * What clients are counted by: an address of IPv4, or a /64 network of IPv6, which is what a site has
 * at least. The bytes are those of a `struct sockaddr`.
 */
export function siteText(address: Uint8Array): string {
  const text = addressText(address);
  if (!text.includes(":")) return text;
  const network = address.slice();
  network.fill(0, 16, 24);
  return `${addressText(network)}/64`;
}

/** The port in a `struct sockaddr` of TCP. */
export function addressPort(address: Uint8Array): number {
  return address[2] * 256 + address[3];
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
