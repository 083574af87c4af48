/**
 * Generic netlink: commands to a subsystem of the kernel, called a family, and their results.
 * Layouts are those of linux/netlink.h and linux/genetlink.h.
 *
 * @module
 */
import { Errno, lastErrno } from "./errno.ts";
import { openLibcLater } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int socket(int domain, int type, int protocol)
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // ssize_t send(int sockfd, const void *buf, size_t len, int flags)
  send: { parameters: ["i32", "buffer", "usize", "i32"], result: "i32" },
  // ssize_t send(int sockfd, const void *buf, size_t len, int flags), by another thread: the kernel
  // executes a command before send returns
  sendAside: {
    name: "send",
    parameters: ["i32", "buffer", "usize", "i32"],
    result: "i32",
    nonblocking: true,
  },
  // ssize_t recv(int sockfd, void *buf, size_t len, int flags)
  recv: { parameters: ["i32", "buffer", "usize", "i32"], result: "i32" },
  // int close(int fd)
  close: { parameters: ["i32"], result: "i32" },
});

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const NETLINK_GENERIC = 16;
const MSG_DONTWAIT = 0x40;

const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLMSG_ERROR = 2;
const NLA_TYPE_MASK = 0x3fff;
const NLA_F_NESTED = 0x8000;

/** The family that lists the families. */
const GENL_ID_CTRL = 16;
const CTRL_VERSION = 2;
const CTRL_CMD_GETFAMILY = 3;
const CTRL_ATTR_FAMILY_ID = 1;
const CTRL_ATTR_FAMILY_NAME = 2;

// struct nlmsghdr: u32 length @0, u16 type @4, u16 flags @6, u32 sequence @8, u32 port @12;
// struct genlmsghdr: u8 command @16, u8 version @17, u16 reserved @18; attributes from 20 on.
const NLMSG_HEADER_BYTES = 16;
const HEADERS_BYTES = 20;
// struct nlattr: u16 length @0 (these four bytes included), u16 type @2.
const ATTRIBUTE_HEADER_BYTES = 4;
const ANSWER_BYTES = 64 * 1024;

/** Builds the attributes of a message, each aligned to four bytes. */
export class AttributeWriter {
  readonly #bytes: number[] = [];

  /** The bytes of all attributes. */
  done(): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.#bytes);
  }

  #add(type: number, payload: Uint8Array): this {
    const length = ATTRIBUTE_HEADER_BYTES + payload.length;
    this.#bytes.push(length & 0xff, length >>> 8, type & 0xff, type >>> 8, ...payload);
    while (this.#bytes.length % 4 !== 0) this.#bytes.push(0);
    return this;
  }

  /** Adds an NLA_U32. */
  u32(type: number, value: number): this {
    return this.#add(type, new Uint8Array(new Uint32Array([value]).buffer));
  }

  /** Adds an NLA_U64; the value is a safe integer. */
  u64(type: number, value: number): this {
    return this.#add(type, new Uint8Array(new BigUint64Array([BigInt(value)]).buffer));
  }

  /** Adds an NLA_NUL_STRING. */
  text(type: number, value: string): this {
    return this.#add(type, new TextEncoder().encode(`${value}\0`));
  }

  /** Adds an NLA_NESTED. */
  nested(type: number, content: AttributeWriter): this {
    return this.#add(type | NLA_F_NESTED, content.done());
  }
}

/**
 * Decodes attributes to a map by type. The last of several attributes of one type wins. Decoding
 * stops at the first malformed attribute.
 */
export function readAttributes(bytes: Uint8Array<ArrayBuffer>): Map<number, DataView<ArrayBuffer>> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = new Map<number, DataView<ArrayBuffer>>();
  for (let at = 0; at + ATTRIBUTE_HEADER_BYTES <= bytes.length;) {
    const length = view.getUint16(at, true);
    if (length < ATTRIBUTE_HEADER_BYTES || at + length > bytes.length) break;
    const start = bytes.byteOffset + at + ATTRIBUTE_HEADER_BYTES;
    const content = new DataView(bytes.buffer, start, length - ATTRIBUTE_HEADER_BYTES);
    found.set(view.getUint16(at + 2, true) & NLA_TYPE_MASK, content);
    at += (length + 3) & ~3;
  }
  return found;
}

/** A command of a family. */
export interface GenericRequest {
  /** The family's name, such as `nbd`. */
  readonly family: string;
  readonly version: number;
  readonly command: number;
  readonly attributes: AttributeWriter;
}

/** The result of a command. */
export interface GenericAnswer {
  /** 0 or a positive errno. */
  readonly errno: number;
  /** Whether the kernel has the family. ENOENT alone does not tell: a command may return it. */
  readonly known: boolean;
  /** Attributes of the reply; empty without one. */
  readonly attributes: Map<number, DataView<ArrayBuffer>>;
}

/** Encodes a message to the family with a number. */
export function encodeMessage(
  family: number,
  { version, command, attributes }: Omit<GenericRequest, "family">,
): Uint8Array<ArrayBuffer> {
  const content = attributes.done();
  const message = new Uint8Array(HEADERS_BYTES + content.length);
  const view = new DataView(message.buffer);
  view.setUint32(0, message.length, true);
  view.setUint16(4, family, true);
  view.setUint16(6, NLM_F_REQUEST | NLM_F_ACK, true);
  view.setUint8(16, command);
  view.setUint8(17, version);
  message.set(content, HEADERS_BYTES);
  return message;
}

type Attributes = Map<number, DataView<ArrayBuffer>>;

/** Receives the replies that wait, up to the acknowledgement of the command. */
function receiveAnswer(fd: number): { errno: number; attributes: Attributes } {
  const buffer = new Uint8Array(ANSWER_BYTES);
  const view = new DataView(buffer.buffer);
  let attributes: Attributes = new Map();
  for (;;) {
    const got = libc.recv(fd, buffer, buffer.length, MSG_DONTWAIT);
    if (got < NLMSG_HEADER_BYTES) return { errno: got < 0 ? lastErrno() : Errno.EIO, attributes };
    for (let at = 0; at + NLMSG_HEADER_BYTES <= got;) {
      const length = view.getUint32(at, true);
      if (length < NLMSG_HEADER_BYTES || at + length > got) break;
      if (view.getUint16(at + 4, true) === NLMSG_ERROR) {
        return { errno: 0 - view.getInt32(at + NLMSG_HEADER_BYTES, true), attributes };
      }
      attributes = readAttributes(buffer.slice(at + HEADERS_BYTES, at + length));
      at += (length + 3) & ~3;
    }
  }
}

/** The exchange of a command: a message that asks for the family's number, then the command. */
class Exchange {
  readonly #fd: number;
  readonly #request: GenericRequest;
  #family = -1;
  #answer: GenericAnswer = { errno: 0, known: false, attributes: new Map() };

  constructor(request: GenericRequest) {
    this.#request = request;
    this.#fd = libc.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    if (this.#fd < 0) this.#answer = { ...this.#answer, errno: lastErrno() };
  }

  get fd(): number {
    return this.#fd;
  }

  /** The first message to send; null when there is no socket. */
  first(): Uint8Array<ArrayBuffer> | null {
    if (this.#fd < 0) return null;
    return encodeMessage(GENL_ID_CTRL, {
      version: CTRL_VERSION,
      command: CTRL_CMD_GETFAMILY,
      attributes: new AttributeWriter().text(CTRL_ATTR_FAMILY_NAME, this.#request.family),
    });
  }

  /** Receives the reply to the last message; returns the next message, or null at the end. */
  next(): Uint8Array<ArrayBuffer> | null {
    const answer = receiveAnswer(this.#fd);
    if (this.#family >= 0) {
      this.#answer = { ...answer, known: true };
      return null;
    }
    this.#family = answer.attributes.get(CTRL_ATTR_FAMILY_ID)?.getUint16(0, true) ?? -1;
    if (this.#family >= 0) return encodeMessage(this.#family, this.#request);
    this.#answer = { errno: answer.errno || Errno.ENOENT, known: false, attributes: new Map() };
    return null;
  }

  /** Closes the socket and returns the result. */
  finish(): GenericAnswer {
    if (this.#fd >= 0) libc.close(this.#fd);
    return this.#answer;
  }
}

/** Executes a command, and blocks until it ends. The result carries its error. */
export function requestNow(request: GenericRequest): GenericAnswer {
  const exchange = new Exchange(request);
  for (let message = exchange.first(); message !== null; message = exchange.next()) {
    libc.send(exchange.fd, message, message.length, 0);
  }
  return exchange.finish();
}

/**
 * Executes a command by another thread. The promise does not reject; the result carries the error.
 */
export async function requestAside(request: GenericRequest): Promise<GenericAnswer> {
  const exchange = new Exchange(request);
  for (let message = exchange.first(); message !== null; message = exchange.next()) {
    await libc.sendAside(exchange.fd, message, message.length, 0);
  }
  return exchange.finish();
}
