/**
 * An NBD client for tests, which can send correct and incorrect messages. It shares no code or
 * constants with the server: the layouts are those of doc/proto.md of the NBD project.
 *
 * @module
 */

/** Options of the handshake. */
export const Opt = {
  ExportName: 1,
  Abort: 2,
  List: 3,
  StartTls: 5,
  Info: 6,
  Go: 7,
  StructuredReply: 8,
  ListMetaContext: 9,
  SetMetaContext: 10,
} as const;

/** Types of a reply to an option. */
export const Rep = {
  Ack: 1,
  Server: 2,
  Info: 3,
  MetaContext: 4,
  ErrUnsup: 0x80000001,
  ErrPolicy: 0x80000002,
  ErrInvalid: 0x80000003,
  ErrUnknown: 0x80000006,
  ErrTooBig: 0x80000009,
} as const;

export const Cmd = {
  Read: 0,
  Write: 1,
  Disc: 2,
  Flush: 3,
  Trim: 4,
  Cache: 5,
  WriteZeroes: 6,
  BlockStatus: 7,
} as const;

export const CmdFlag = { Fua: 1, NoHole: 2, Df: 4, ReqOne: 8, FastZero: 16 } as const;

/** Errors on the wire. */
export const WireError = {
  Perm: 1,
  Io: 5,
  Inval: 22,
  NoSpace: 28,
  Overflow: 75,
  NotSupported: 95,
  Shutdown: 108,
} as const;

/** Types of a chunk of a structured reply. */
export const Chunk = {
  None: 0,
  OffsetData: 1,
  OffsetHole: 2,
  BlockStatus: 5,
  Error: 0x8001,
} as const;

const GREETING_MAGIC = 0x4e42444d41474943n;
const OLDSTYLE_MAGIC = 0x00420281861253n;
const OPTION_MAGIC = 0x49484156454f5054n;
const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;
const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
/** Default timeout of an answer. */
const SILENCE_MS = 60_000;

export interface OptionReply {
  readonly option: number;
  readonly type: number;
  readonly data: Uint8Array;
}

/** The export's properties from the handshake. */
export interface ExportInfo {
  readonly sizeBytes: number;
  readonly flags: number;
}

/** A request; omitted fields are 0. */
export interface Request {
  readonly command: number;
  readonly offset?: number | bigint;
  readonly length?: number;
  readonly flags?: number;
  readonly cookie?: number;
  readonly payload?: Uint8Array;
}

/** A reply to a request: a simple one, or all chunks of a structured one. */
export interface Reply {
  readonly cookie: number;
  /** 0, or the error on the wire. */
  readonly error: number;
  /** The data of a read. */
  readonly data: Uint8Array;
  /** Types of the chunks; empty for a simple reply. */
  readonly chunks: readonly number[];
  /** Extents of a block status: length and flags of each. */
  readonly extents: readonly (readonly [number, number])[];
}

/** Big-endian bytes of numbers: pairs of width in bytes and value. */
export function packed(...fields: readonly (readonly [number, number | bigint])[]): Uint8Array {
  const bytes = new Uint8Array(fields.reduce((sum, [width]) => sum + width, 0));
  let at = 0;
  for (const [width, value] of fields) {
    let rest = BigInt(value);
    for (let i = width - 1; i >= 0; i--, rest >>= 8n) bytes[at + i] = Number(rest & 0xffn);
    at += width;
  }
  return bytes;
}

export function joined(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** A text after its length. */
export function lengthAndText(value: string): Uint8Array {
  const bytes = new TextEncoder().encode(value);
  return joined(packed([4, bytes.length]), bytes);
}

/** The content of INFO and GO. */
export function infoContent(name: string, wanted: readonly number[] = []): Uint8Array {
  const list = wanted.map((type) => [2, type] as const);
  return joined(lengthAndText(name), packed([2, wanted.length], ...list));
}

/** The content of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function metaContent(name: string, queries: readonly string[]): Uint8Array {
  return joined(lengthAndText(name), packed([4, queries.length]), ...queries.map(lengthAndText));
}

export function requestHeader(
  { command, offset = 0, length = 0, flags = 0, cookie = 0 }: Request,
): Uint8Array {
  return packed([4, REQUEST_MAGIC], [2, flags], [2, command], [8, cookie], [8, offset], [
    4,
    length,
  ]);
}

/** Thrown when the server closes the connection within a message. */
export class HungUp extends Error {}

/** A connection to an NBD server. */
export class NbdClient implements Disposable {
  readonly #connection: Deno.UnixConn;
  /** Length of the data of each unanswered READ, by cookie. */
  readonly #readLengths = new Map<number, number>();
  readonly #silenceMs: number;
  #lastCookie = 0;

  private constructor(connection: Deno.UnixConn, silenceMs: number) {
    this.#connection = connection;
    this.#silenceMs = silenceMs;
  }

  /** Connects and sends nothing. */
  static async connect(socket: string, silenceMs: number = SILENCE_MS): Promise<NbdClient> {
    return new NbdClient(await Deno.connect({ transport: "unix", path: socket }), silenceMs);
  }

  /** Speaks on a connection that was made already. */
  static on(connection: Deno.UnixConn): NbdClient {
    return new NbdClient(connection, SILENCE_MS);
  }

  /** Receives the greeting of an oldstyle server, after which requests may be sent. */
  async oldstyle(): Promise<ExportInfo> {
    const view = await this.receive(152);
    if (view.getBigUint64(0) !== GREETING_MAGIC || view.getBigUint64(8) !== OLDSTYLE_MAGIC) {
      throw new Error("The server greets with other magic numbers");
    }
    return { sizeBytes: Number(view.getBigUint64(16)), flags: view.getUint32(24) };
  }

  /** Connects and completes the handshake. */
  static async open(
    socket: string,
    { structured = false, metaContext = false, silenceMs }: {
      structured?: boolean;
      metaContext?: boolean;
      silenceMs?: number;
    } = {},
  ): Promise<{ client: NbdClient; info: ExportInfo }> {
    const client = await NbdClient.connect(socket, silenceMs);
    await client.greet();
    if (structured || metaContext) await client.acknowledged(Opt.StructuredReply);
    if (metaContext) {
      await client.acknowledged(Opt.SetMetaContext, metaContent("", ["base:allocation"]));
    }
    const replies = await client.acknowledged(Opt.Go, infoContent(""));
    return { client, info: exportInfo(replies) };
  }

  async send(...parts: readonly Uint8Array[]): Promise<void> {
    const bytes = parts.length === 1 ? parts[0] : joined(...parts);
    for (let sent = 0; sent < bytes.length;) {
      sent += await this.#connection.write(bytes.subarray(sent));
    }
  }

  /**
   * Receives exactly `count` bytes. Throws `HungUp` when the server closes the connection before
   * that, and another error after a timeout.
   */
  async receive(count: number): Promise<DataView> {
    const bytes = new Uint8Array(count);
    for (let got = 0; got < count;) {
      const more = await this.#receiveSome(bytes.subarray(got));
      if (more === null) throw new HungUp(`The server hung up after ${got} of ${count} bytes`);
      got += more;
    }
    return new DataView(bytes.buffer);
  }

  async #receiveSome(into: Uint8Array): Promise<number | null> {
    const silence = Promise.withResolvers<never>();
    const error = new Error(`Nothing came for ${this.#silenceMs} ms`);
    const timer = setTimeout(() => silence.reject(error), this.#silenceMs);
    try {
      return await Promise.race([this.#connection.read(into), silence.promise]);
    } catch (error) {
      if (!(error instanceof Deno.errors.ConnectionReset)) throw error;
      return null;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Whether the server closed the connection without further data. */
  async hasHungUp(): Promise<boolean> {
    try {
      await this.receive(1);
      return false;
    } catch (error) {
      if (error instanceof HungUp) return true;
      throw error;
    }
  }

  /** Discards data until the server closes the connection. */
  async drain(): Promise<void> {
    const bytes = new Uint8Array(65536);
    while (await this.#receiveSome(bytes) !== null);
  }

  /** All data until the server closes the connection. */
  async collect(): Promise<Uint8Array<ArrayBuffer>> {
    const parts: Uint8Array[] = [];
    const bytes = new Uint8Array(1 << 20);
    for (;;) {
      const got = await this.#receiveSome(bytes);
      if (got === null) return joined(...parts);
      parts.push(bytes.slice(0, got));
    }
  }

  /** Receives and answers the server's greeting; returns the server's flags. */
  async greet(clientFlags = 3): Promise<number> {
    const view = await this.receive(18);
    if (view.getBigUint64(0) !== GREETING_MAGIC || view.getBigUint64(8) !== OPTION_MAGIC) {
      throw new Error("The server greets with other magic numbers");
    }
    await this.send(packed([4, clientFlags]));
    return view.getUint16(16);
  }

  async option(option: number, content: Uint8Array = new Uint8Array(0)): Promise<void> {
    await this.send(packed([8, OPTION_MAGIC], [4, option], [4, content.length]), content);
  }

  /** Receives one reply to an option. */
  async optionReply(): Promise<OptionReply> {
    const view = await this.receive(20);
    if (view.getBigUint64(0) !== OPTION_REPLY_MAGIC) throw new Error("Not an option's reply");
    const data = await this.receive(view.getUint32(16));
    return {
      option: view.getUint32(8),
      type: view.getUint32(12),
      data: new Uint8Array(data.buffer),
    };
  }

  /** Sends an option and receives all replies; the last one is an acknowledgement or an error. */
  async negotiate(
    option: number,
    content: Uint8Array = new Uint8Array(0),
  ): Promise<OptionReply[]> {
    await this.option(option, content);
    const replies: OptionReply[] = [];
    for (;;) {
      const reply = await this.optionReply();
      if (reply.option !== option) throw new Error(`A reply to another option: ${reply.option}`);
      replies.push(reply);
      if (reply.type === Rep.Ack || reply.type >= 0x80000000) return replies;
    }
  }

  /** Like `negotiate`, for an option that the server must acknowledge. */
  async acknowledged(option: number, content?: Uint8Array): Promise<OptionReply[]> {
    const replies = await this.negotiate(option, content);
    const last = replies[replies.length - 1];
    if (last.type !== Rep.Ack) {
      throw new Error(`The server refuses option ${option} with ${last.type.toString(16)}`);
    }
    return replies;
  }

  /** Sends a request; returns its cookie. */
  async request(request: Request): Promise<number> {
    const cookie = request.cookie ?? ++this.#lastCookie;
    if (request.command === Cmd.Read) this.#readLengths.set(cookie, request.length ?? 0);
    const length = request.length ?? request.payload?.length ?? 0;
    const header = requestHeader({ ...request, cookie, length });
    if (request.payload === undefined) await this.send(header);
    else await this.send(header, request.payload);
    return cookie;
  }

  /** Receives the next reply, of any request. */
  async reply(): Promise<Reply> {
    const magic = (await this.receive(4)).getUint32(0);
    if (magic === SIMPLE_REPLY_MAGIC) return await this.#simpleReply();
    if (magic === STRUCTURED_REPLY_MAGIC) return await this.#structuredReply();
    throw new Error(`Not a reply: ${magic.toString(16)}`);
  }

  async #simpleReply(): Promise<Reply> {
    const view = await this.receive(12);
    const error = view.getUint32(0);
    const cookie = Number(view.getBigUint64(4));
    const bytes = error === 0 ? this.#readLengths.get(cookie) ?? 0 : 0;
    this.#readLengths.delete(cookie);
    const data = new Uint8Array((await this.receive(bytes)).buffer);
    return { cookie, error, data, chunks: [], extents: [] };
  }

  async #structuredReply(): Promise<Reply> {
    const chunks: number[] = [];
    const extents: [number, number][] = [];
    let error = 0;
    let data: Uint8Array = new Uint8Array(0);
    for (;;) {
      if (chunks.length > 0) await this.receive(4);
      const view = await this.receive(16);
      const cookie = Number(view.getBigUint64(4));
      const type = view.getUint16(2);
      chunks.push(type);
      const content = await this.receive(view.getUint32(12));
      if (type >= 0x8000) error = content.getUint32(0);
      else if (type === Chunk.OffsetData) {
        data = joined(data, new Uint8Array(content.buffer, 8));
      } else if (type === Chunk.BlockStatus) {
        for (let at = 4; at < content.byteLength; at += 8) {
          extents.push([content.getUint32(at), content.getUint32(at + 4)]);
        }
      }
      if ((view.getUint16(0) & 1) === 0) continue;
      this.#readLengths.delete(cookie);
      return { cookie, error, data, chunks, extents };
    }
  }

  /** Sends one request and receives its reply; no other request may be in flight. */
  async ask(request: Request): Promise<Reply> {
    const cookie = await this.request(request);
    const reply = await this.reply();
    if (reply.cookie !== cookie) throw new Error(`The reply is to ${reply.cookie}, not ${cookie}`);
    return reply;
  }

  /** Like `ask`, for a request that must succeed. */
  async do(request: Request): Promise<Reply> {
    const reply = await this.ask(request);
    if (reply.error !== 0) {
      throw new Error(`${JSON.stringify(request)} ended with error ${reply.error}`);
    }
    return reply;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    return (await this.do({ command: Cmd.Read, offset, length })).data;
  }

  async write(offset: number, payload: Uint8Array, flags = 0): Promise<void> {
    await this.do({ command: Cmd.Write, offset, payload, flags });
  }

  async flush(): Promise<void> {
    await this.do({ command: Cmd.Flush });
  }

  /** Sends NBD_CMD_DISC; the server must close the connection. */
  async disconnect(): Promise<void> {
    await this.request({ command: Cmd.Disc });
    if (!await this.hasHungUp()) throw new Error("The server goes on after a goodbye");
    this.close();
  }

  /** Closes the connection at once. */
  close(): void {
    try {
      this.#connection.close();
    } catch (error) {
      if (!(error instanceof Deno.errors.BadResource)) throw error;
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Size and flags from the replies to INFO or GO. */
export function exportInfo(replies: readonly OptionReply[]): ExportInfo {
  for (const { type, data } of replies) {
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    if (type === Rep.Info && view.getUint16(0) === 0) {
      return { sizeBytes: Number(view.getBigUint64(2)), flags: view.getUint16(10) };
    }
  }
  throw new Error("No reply tells of the export");
}

/** Pseudo-random bytes from a seed. */
export function noise(lengthBytes: number, seed: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(Math.ceil(lengthBytes / 4));
  let state = (seed * 2654435761) >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  return new Uint8Array(words.buffer, 0, lengthBytes);
}
