/**
 * An NBD server with rare or incorrect behaviour, in its own thread. The name of the export selects
 * the behaviour: see `Habit`. The server posts the path of its socket once it listens.
 *
 * @module
 */
import { Handshake } from "../../src/frontend/nbd/handshake.ts";

/** Size of every export. */
export const SCRIPTED_BYTES = 1024 * 1024;

/** The behaviour of the server. */
export type Habit =
  /** Answers in the reverse order of the requests, four at a time. */
  | "reverse"
  /** Splits the answers to reads into chunks of data and holes, from the last to the first. */
  | "chunks"
  /** Answers the third request of the first connection with an unknown cookie. */
  | "stranger"
  /** Closes the connection within the data or extents of the first connection's third request. */
  | "cut"
  /** Closes the first connection at its third request. */
  | "leaves"
  /** Answers the first connection's third request with an error. */
  | "fails"
  /** Sends extents that end within sectors, extents of zero bytes, and too many extents. */
  | "odd"
  /** Like "odd"; the export has another size from the second connection on. */
  | "shrinks"
  /**
   * Answers the third request of the first connection with a chunk beyond the end of the request.
   */
  | "overrun"
  /** Answers reads with EPERM, in a chunk with a text. */
  | "forbids"
  /** Receives requests and answers none. */
  | "hangs"
  /** Closes the connection right after the handshake, from the second connection on. */
  | "flaps"
  /** Sends NBD_REP_INFO without end, and never NBD_REP_ACK. */
  | "endless";

/** One answer to NBD_OPT_GO: NBD_REP_INFO, with NBD_INFO_EXPORT. */
const EXPORT_INFO = Uint8Array.from([
  ...[0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, ...u32(7), ...u32(3), ...u32(12)],
  ...[0, 0, ...u32(0), ...u32(SCRIPTED_BYTES), 0, 1],
]);
const FLAGS = 1 | 4 | 8 | 32 | 64 | 128;
const content = Uint8Array.from({ length: SCRIPTED_BYTES }, (_, i) => (i >> 9) * 7 + 1);
const connections = new Map<string, number>();

interface Request {
  readonly command: number;
  readonly cookie: bigint;
  readonly offset: number;
  readonly length: number;
  readonly data: Uint8Array;
}

class Client {
  #buffer = new Uint8Array(0);

  constructor(readonly socket: Deno.Conn) {}

  async send(...parts: Uint8Array[]): Promise<void> {
    for (const part of parts) {
      for (let at = 0; at < part.length;) at += await this.socket.write(part.subarray(at));
    }
  }

  /** Receives exactly `count` bytes; throws at the end of the connection. */
  async take(count: number): Promise<Uint8Array<ArrayBuffer>> {
    while (this.#buffer.length < count) await this.more();
    const taken = this.#buffer.slice(0, count);
    this.#buffer = this.#buffer.slice(count);
    return taken;
  }

  async more(): Promise<Uint8Array<ArrayBuffer>> {
    const chunk = new Uint8Array(65536);
    const got = await this.socket.read(chunk);
    if (got === null) throw new Deno.errors.UnexpectedEof("The client has gone");
    const all = new Uint8Array(this.#buffer.length + got);
    all.set(this.#buffer);
    all.set(chunk.subarray(0, got), this.#buffer.length);
    this.#buffer = all;
    return all;
  }

  async request(): Promise<Request> {
    const header = new DataView((await this.take(28)).buffer);
    const length = header.getUint32(24);
    const command = header.getUint16(6);
    const data = await this.take(command === 1 ? length : 0);
    const offset = Number(header.getBigUint64(16));
    return { command, cookie: header.getBigUint64(8), offset, length, data };
  }
}

function simple(cookie: bigint): Uint8Array {
  const reply = new DataView(new ArrayBuffer(16));
  reply.setUint32(0, 0x67446698);
  reply.setBigUint64(8, cookie);
  return new Uint8Array(reply.buffer);
}

function chunk(
  cookie: bigint,
  type: number,
  { payload, isLast }: { payload: readonly number[]; isLast: boolean },
): Uint8Array {
  const header = new DataView(new ArrayBuffer(20));
  header.setUint32(0, 0x668e33ef);
  header.setUint16(4, isLast ? 1 : 0);
  header.setUint16(6, type);
  header.setBigUint64(8, cookie);
  header.setUint32(16, payload.length);
  return Uint8Array.from([...new Uint8Array(header.buffer), ...payload]);
}

function u32(value: number): number[] {
  return [24, 16, 8, 0].map((shift) => (value >>> shift) & 0xff);
}

function dataChunk(cookie: bigint, offset: number, bytes: Uint8Array, isLast: boolean): Uint8Array {
  return chunk(cookie, 1, { payload: [...u32(0), ...u32(offset), ...bytes], isLast });
}

/** Chunks of 700 bytes from the end to the start, all-zero chunks as holes, and an empty chunk. */
function chunksOf({ cookie, offset, length }: Request): Uint8Array[] {
  const parts: Uint8Array[] = [];
  for (let end = offset + length; end > offset;) {
    const start = Math.max(offset, end - 700);
    const bytes = content.subarray(start, end);
    const isHole = bytes.every((byte) => byte === 0);
    const hole = [...u32(0), ...u32(start), ...u32(end - start)];
    parts.push(
      isHole
        ? chunk(cookie, 2, { payload: hole, isLast: false })
        : dataChunk(cookie, start, bytes, false),
    );
    end = start;
  }
  return [...parts, chunk(cookie, 0, { payload: [], isLast: true })];
}

/** Extents of eight sectors each, data and zeros in turn; the first is data. */
function extentsOf({ offset, length }: Request, habit: string): number[] {
  const odd = [...u32(700), ...u32(3), ...u32(9999), ...u32(0)];
  const empty = [...u32(0), ...u32(3)];
  const extents: number[] = [];
  for (let at = offset; at < offset + length;) {
    const end = Math.min(offset + length, (Math.floor(at / 4096) + 1) * 4096);
    extents.push(...u32(end - at), ...u32(Math.floor(at / 4096) % 2 === 0 ? 0 : 3));
    at = end;
  }
  if (habit === "odd") extents.unshift(...offset === 0 ? odd : empty);
  if (habit === "odd") extents.push(...extents);
  return [...u32(1), ...extents];
}

function answer(request: Request, habit: string): Uint8Array[] {
  const { command, cookie, offset, length, data } = request;
  const end = offset + length;
  if (command === 1) content.set(data, offset);
  if (command === 4 || command === 6) content.fill(0, offset, end);
  if (command === 7) {
    return [chunk(cookie, 5, { payload: extentsOf(request, habit), isLast: true })];
  }
  if (command !== 0) return [simple(cookie)];
  if (habit === "forbids") {
    const text = new TextEncoder().encode("not for you");
    const payload = [...u32(1), 0, text.length, ...text];
    return [chunk(cookie, 0x8001, { payload, isLast: true })];
  }
  if (habit === "chunks") return chunksOf(request);
  return [dataChunk(cookie, offset, content.subarray(offset, end), true)];
}

function broken(request: Request, habit: string): Uint8Array | null {
  const { command, cookie, offset, length } = request;
  if (habit === "stranger") return simple(cookie + 77n);
  if (habit === "leaves") return new Uint8Array(0);
  if (habit === "fails") return chunk(cookie, 0x8001, { payload: [...u32(5), 0, 0], isLast: true });
  if (habit === "cut" && command === 7) return answer(request, habit)[0].subarray(0, 30);
  const bytes = content.subarray(offset, offset + length);
  if (habit === "cut" || habit === "shrinks") {
    return dataChunk(cookie, offset, bytes, true).subarray(0, 28 + length / 2);
  }
  if (habit === "overrun") return dataChunk(cookie, offset + 512, bytes, true);
  return null;
}

/** The server's side of the handshake; returns the name of the export. */
async function negotiate(client: Client, nth: (name: string) => number): Promise<string> {
  const waiting: Uint8Array[] = [];
  let name = "";
  const handshake = new Handshake(
    () => ({
      sizeBytes: name === "shrinks" && nth(name) > 0 ? SCRIPTED_BYTES / 2 : SCRIPTED_BYTES,
      flags: FLAGS,
      hasLog: false,
    }),
    (bytes) => void waiting.push(bytes.slice()),
  );
  handshake.start();
  for (;;) {
    while (name === "endless") await client.send(EXPORT_INFO);
    await client.send(...waiting.splice(0));
    if (handshake.stage === "transmission") return name;
    const bytes = await client.more();
    // NBD_OPT_GO: the name follows a header of 16 bytes and a length of 4 bytes.
    const view = new DataView(bytes.buffer);
    for (let at = 0; at + 20 <= bytes.length; at++) {
      if (view.getUint32(at) !== 0x49484156 || view.getUint32(at + 8) !== 7) continue;
      name = new TextDecoder().decode(bytes.slice(at + 20, at + 20 + view.getUint32(at + 16)));
    }
    await client.take(handshake.consume(view));
  }
}

async function serve(client: Client): Promise<void> {
  const name = await negotiate(client, (asked) => connections.get(asked) ?? 0);
  const nth = connections.get(name) ?? 0;
  connections.set(name, nth + 1);
  if (name === "flaps" && nth > 0) return;
  const held: Uint8Array[][] = [];
  for (let count = 1;; count++) {
    const request = await client.request();
    if (request.command === 2) return;
    if (name === "flaps" && nth === 0 && count === 2) return;
    if (name === "hangs") continue;
    const bad = nth === 0 && count === 3 ? broken(request, name) : null;
    if (bad !== null) await client.send(bad);
    if (bad !== null && ["cut", "shrinks", "leaves"].includes(name)) return;
    if (bad !== null && name === "fails") continue;
    held.unshift(answer(request, name));
    if (name === "reverse" && held.length < 4 && request.command !== 3) continue;
    for (const parts of held.splice(0)) await client.send(...parts);
  }
}

async function listen(path: string): Promise<void> {
  const listener = Deno.listen({ transport: "unix", path });
  self.postMessage(path);
  for await (const socket of listener) {
    serve(new Client(socket)).catch(() => {}).finally(() => socket.close());
  }
}

/** Starts the server in its own thread; returns a function that ends it and its connections. */
export async function startScriptedServer(path: string): Promise<() => void> {
  const worker = new Worker(import.meta.url, { type: "module" });
  const listening = new Promise((resolve) => worker.onmessage = resolve);
  worker.postMessage(path);
  await listening;
  return () => worker.terminate();
}

declare const self: {
  postMessage(message: string): void;
  onmessage: ((event: MessageEvent<string>) => void) | null;
};
if ("WorkerGlobalScope" in globalThis) self.onmessage = ({ data }) => void listen(data);
