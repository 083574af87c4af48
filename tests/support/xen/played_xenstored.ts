/**
 * A xenstored for tests: a tree with permissions, watches, and transactions that fail when others
 * changed what they touched. It follows Xen's docs/misc/xenstore.txt. Streams to it are made in the same
 * process (`connect`), or on a UNIX socket (`listen`).
 *
 * @module
 */
import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { XenstoreStream } from "../../../src/xenstore/stream.ts";
import {
  decodeTexts,
  decodeXsMessage,
  encodeTexts,
  encodeXsMessage,
  XENSTORE_PAYLOAD_MAX,
  type XsMessage,
  XsType,
} from "../../../src/xenstore/wire.ts";
import { decodeName, encodeName } from "../../../ffi/names.ts";

interface Watch {
  readonly path: string;
  readonly token: string;
  readonly isRelative: boolean;
}

interface Transaction {
  readonly nodes: Map<string, string>;
  readonly touched: Set<string>;
  readonly written: string[];
  /** Nodes that were removed themselves, and not with a node above. */
  readonly removed: Set<string>;
  readonly start: number;
}

/** The errors that a request can end with. */
class XsError extends Error {}

/** Domain 0, whose relative paths begin here. */
const HOME = "/local/domain/0/";

/** A client's connection. */
export class PlayedClient {
  readonly watches: Watch[] = [];
  readonly transactions = new Map<number, Transaction>();
  readonly outbox: XsMessage[] = [];
  isClosed = false;
  /** Called when a message is put into the outbox. */
  notify: () => void = () => {};

  put(message: XsMessage): void {
    this.outbox.push(message);
    this.notify();
  }
}

function parentOf(path: string): string {
  return path.slice(0, path.lastIndexOf("/")) || "/";
}

/** A store, and its clients. */
export class PlayedXenstored {
  /** Values by path. */
  nodes = new Map<string, string>([["/", ""]]);
  readonly clients = new Set<PlayedClient>();
  /** Node by path: the number of the last change. */
  readonly #changed = new Map<string, number>();
  #changes = 0;
  #lastTransaction = 0;
  /** Called for each request, before it is done: for faults and races. It may throw `XsError`s. */
  beforeRequest: (message: XsMessage) => void = () => {};
  /** Called for each change that a client made: null for a node that was removed. */
  changed: (path: string, value: string | null) => void = () => {};
  #isClients = false;
  /** How often a transaction was in vain. */
  conflicts = 0;
  /** Paths that clients may not read. */
  readonly hidden = new Set<string>();
  /** Whether watches are answered as by the kernel's /dev/xen/xenbus: without a request's number. */
  isKernel = false;
  /** Whether answers may be longer than requests, as those of oxenstored. */
  sendsLongAnswers = false;

  /** A stream to it in this process. */
  connect(fd = -1): XenstoreStream & { readonly client: PlayedClient } {
    const client = new PlayedClient();
    this.clients.add(client);
    return {
      client,
      fd,
      send: (message) => {
        if (client.isClosed) throw new SystemError(Errno.EPIPE, "Cannot send");
        this.handle(client, message);
      },
      receive: () => {
        const message = client.outbox.shift() ?? null;
        if (message === null && client.isClosed) {
          throw new SystemError(Errno.EPIPE, "Cannot receive");
        }
        return message;
      },
      close: () => this.leave(client),
    };
  }

  /** Ends a client's connection. */
  leave(client: PlayedClient): void {
    client.isClosed = true;
    this.clients.delete(client);
  }

  /** Serves clients at a socket until it is closed. */
  async serve(listener: Deno.UnixListener): Promise<void> {
    for await (const connection of listener) void this.#serveOne(connection);
  }

  async #serveOne(connection: Deno.UnixConn): Promise<void> {
    const client = new PlayedClient();
    this.clients.add(client);
    let sending = Promise.resolve();
    client.notify = () => {
      const bytes = client.outbox.splice(0).map(encodeAnswer);
      sending = sending.then(async () => {
        for (const each of bytes) await writeAll(connection, each);
      }).catch(() => {});
    };
    let input = new Uint8Array();
    const buffer = new Uint8Array(65536);
    try {
      for (;;) {
        const got = await connection.read(buffer);
        if (got === null) break;
        input = new Uint8Array([...input, ...buffer.subarray(0, got)]);
        for (let next = decodeXsMessage(input); next !== null; next = decodeXsMessage(input)) {
          input = input.slice(next.lengthBytes);
          this.handle(client, next.message);
        }
        if (client.isClosed) break;
      }
    } catch {
      // The client has left.
    }
    this.leave(client);
    try {
      connection.close();
    } catch {
      // It is closed.
    }
  }

  /** Handles a request; the answers are put into the client's outbox. */
  handle(client: PlayedClient, message: XsMessage): void {
    const { type, request, transaction, payload } = message;
    try {
      this.beforeRequest(message);
      this.#isClients = true;
      const reply = this.#do(client, { type, transaction, payload });
      const isTooLong = reply.length > XENSTORE_PAYLOAD_MAX && !this.sendsLongAnswers;
      if (isTooLong) throw new XsError("E2BIG");
      const isWatch = type === XsType.WATCH || type === XsType.UNWATCH;
      const number = this.isKernel && isWatch ? 0 : request;
      client.put({ type, request: number, transaction, payload: reply });
      if (type === XsType.WATCH) {
        const watch = client.watches[client.watches.length - 1];
        client.put(eventFor(watch, decodeTexts(payload)[0]));
      }
    } catch (error) {
      if (!(error instanceof XsError)) throw error;
      client.put({ type: XsType.ERROR, request, transaction, payload: encodeTexts(error.message) });
    } finally {
      this.#isClients = false;
    }
  }

  #do(
    client: PlayedClient,
    { type, transaction, payload }: { type: number; transaction: number; payload: Uint8Array },
  ): Uint8Array {
    const inside = transaction === 0 ? null : client.transactions.get(transaction) ?? null;
    if (transaction !== 0 && inside === null) throw new XsError("ENOENT");
    const texts = decodeTexts(payload);
    const path = (): string => this.#absolute(texts[0] ?? "");
    switch (type) {
      case XsType.DIRECTORY:
        return encodeTexts(...this.#children(inside, path()));
      case XsType.DIRECTORY_PART:
        return this.#part(inside, path(), Number(texts[1]));
      case XsType.READ:
        return encodeName(this.#read(inside, path()));
      case XsType.GET_PERMS:
        this.#read(inside, path());
        return encodeTexts("n0");
      case XsType.WRITE: {
        const zero = payload.indexOf(0);
        if (zero < 0) throw new XsError("EINVAL");
        const to = this.#absolute(decodeName(payload.subarray(0, zero)));
        this.#write(inside, to, decodeName(payload.subarray(zero + 1)));
        return encodeTexts("OK");
      }
      case XsType.MKDIR:
        if (!this.#nodes(inside).has(path())) this.#write(inside, path(), "");
        return encodeTexts("OK");
      case XsType.RM:
        this.#remove(inside, path());
        return encodeTexts("OK");
      case XsType.WATCH:
        this.#watch(client, texts);
        return encodeTexts("OK");
      case XsType.UNWATCH:
        this.#unwatch(client, texts);
        return encodeTexts("OK");
      case XsType.TRANSACTION_START:
        return encodeTexts(String(this.#begin(client)));
      case XsType.TRANSACTION_END:
        this.#end(client, transaction, texts[0] === "T");
        return encodeTexts("OK");
      default:
        throw new XsError("ENOSYS");
    }
  }

  #absolute(path: string): string {
    const whole = path.startsWith("/") ? path : `${HOME}${path}`;
    if (/\/\//.test(whole) || (whole.length > 1 && whole.endsWith("/")) || whole.length > 3072) {
      throw new XsError("EINVAL");
    }
    if (!/^[A-Za-z0-9\-/_@]+$/.test(whole)) throw new XsError("EINVAL");
    return whole;
  }

  #nodes(inside: Transaction | null): Map<string, string> {
    return inside?.nodes ?? this.nodes;
  }

  #read(inside: Transaction | null, path: string): string {
    inside?.touched.add(path);
    if (this.hidden.has(path)) throw new XsError("EACCES");
    const value = this.#nodes(inside).get(path);
    if (value === undefined) throw new XsError("ENOENT");
    return value;
  }

  #children(inside: Transaction | null, path: string): string[] {
    this.#read(inside, path);
    const prefix = path === "/" ? "/" : `${path}/`;
    return [...this.#nodes(inside).keys()]
      .filter((each) => each.startsWith(prefix) && each !== path)
      .map((each) => each.slice(prefix.length))
      .filter((name) => !name.includes("/"));
  }

  #part(inside: Transaction | null, path: string, offset: number): Uint8Array {
    const all = this.#children(inside, path).map((name) => `${name}\0`);
    let text = all.join("").slice(offset);
    const room = 1024;
    if (text.length > room) text = text.slice(0, text.lastIndexOf("\0", room - 1) + 1);
    else text += "\0";
    return encodeName(`${this.#changed.get(path) ?? 0}\0${text}`);
  }

  #write(inside: Transaction | null, path: string, value: string): void {
    const nodes = this.#nodes(inside);
    const made: string[] = [];
    for (let up = parentOf(path); !nodes.has(up); up = parentOf(up)) made.push(up);
    // Nobody is told of these.
    for (const each of made.reverse()) this.#set(inside, each, "", "none");
    this.#set(inside, path, value);
  }

  /** @param told Who is told: all that watch the node or one above, only its own watches, nobody. */
  #set(
    inside: Transaction | null,
    path: string,
    value: string | null,
    told: "all" | "own" | "none" = "all",
  ): void {
    const nodes = this.#nodes(inside);
    const isNew = nodes.has(path) !== (value !== null);
    if (value === null) nodes.delete(path);
    else nodes.set(path, value);
    if (inside !== null) {
      inside.touched.add(path);
      if (isNew) inside.touched.add(parentOf(path));
      inside.written.push(path);
      return;
    }
    if (this.#isClients) this.changed(path, value);
    this.#changed.set(path, ++this.#changes);
    if (isNew) this.#changed.set(parentOf(path), this.#changes);
    if (told !== "none") this.#fire(path, told === "own");
  }

  #remove(inside: Transaction | null, path: string): void {
    const nodes = this.#nodes(inside);
    if (!nodes.has(path)) {
      if (nodes.has(parentOf(path))) return;
      throw new XsError("ENOENT");
    }
    const below = [...nodes.keys()].filter((each) => each === path || each.startsWith(`${path}/`));
    inside?.removed.add(path);
    for (const each of below.sort().reverse()) {
      this.#set(inside, each, null, each === path ? "all" : "own");
    }
  }

  #fire(path: string, isOwn = false): void {
    for (const client of this.clients) {
      for (const watch of client.watches) {
        const at = this.#absolute(watch.path);
        if (path === at || (!isOwn && path.startsWith(`${at}/`))) {
          client.put(eventFor(watch, watch.isRelative ? path.slice(HOME.length) : path));
        }
      }
    }
  }

  #watch(client: PlayedClient, [path = "", token = ""]: readonly string[]): void {
    this.#absolute(path);
    if (client.watches.some((each) => each.path === path && each.token === token)) {
      throw new XsError("EEXIST");
    }
    client.watches.push({ path, token, isRelative: !path.startsWith("/") });
  }

  #unwatch(client: PlayedClient, [path = "", token = ""]: readonly string[]): void {
    const at = client.watches.findIndex((each) => each.path === path && each.token === token);
    if (at < 0) throw new XsError("ENOENT");
    client.watches.splice(at, 1);
  }

  #begin(client: PlayedClient): number {
    const number = ++this.#lastTransaction;
    client.transactions.set(number, {
      nodes: new Map(this.nodes),
      touched: new Set(),
      written: [],
      removed: new Set(),
      start: this.#changes,
    });
    return number;
  }

  #end(client: PlayedClient, number: number, commit: boolean): void {
    const inside = client.transactions.get(number);
    client.transactions.delete(number);
    if (inside === undefined) throw new XsError("ENOENT");
    if (!commit) return;
    for (const path of inside.touched) {
      if ((this.#changed.get(path) ?? 0) > inside.start) {
        this.conflicts++;
        throw new XsError("EAGAIN");
      }
    }
    for (const path of inside.written) {
      const value = inside.nodes.get(path) ?? null;
      this.#set(null, path, value, value !== null || inside.removed.has(path) ? "all" : "own");
    }
  }

  // What a test does itself, as another client.

  /** Writes nodes, in order. */
  write(nodes: Readonly<Record<string, string>>): void {
    for (const [path, value] of Object.entries(nodes)) this.#write(null, path, value);
  }

  /** Removes a node and all below it. */
  remove(path: string): void {
    if (this.nodes.has(path)) this.#remove(null, path);
  }

  /** A value, or undefined. */
  get(path: string): string | undefined {
    return this.nodes.get(path);
  }

  /** An error that a request ends with, to be thrown by `beforeRequest`. */
  error(name: string): Error {
    return new XsError(name);
  }
}

/** An answer, which may be longer than a request. */
function encodeAnswer(message: XsMessage): Uint8Array<ArrayBuffer> {
  const head = encodeXsMessage({ ...message, payload: new Uint8Array() });
  new DataView(head.buffer).setUint32(12, message.payload.length, true);
  return new Uint8Array([...head, ...message.payload]);
}

function eventFor({ token }: Watch, path: string): XsMessage {
  const payload = encodeTexts(path, token);
  return { type: XsType.WATCH_EVENT, request: 0, transaction: 0, payload };
}

async function writeAll(connection: Deno.UnixConn, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += await connection.write(bytes.subarray(done));
}
