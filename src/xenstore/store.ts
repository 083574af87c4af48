/**
 * `src/xenstore`: a client of xenstored, the database through which the parts of a Xen machine find
 * each other. The folder must not know what is stored there, and must not print.
 *
 * This file has what can be asked. The calls block until xenstored has answered, which takes some
 * microseconds: its answers come from memory. A caller in an event loop watches `fd` and takes the
 * events of its watches.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { decodeName, encodeName } from "../../ffi/names.ts";
import { openXenstoreStream, RefusedMessage, type XenstoreStream } from "./stream.ts";
import {
  decodeTexts,
  encodeTexts,
  errnoOfXsError,
  XENSTORE_PAYLOAD_MAX,
  type XsMessage,
  XsType,
} from "./wire.ts";

/** How long xenstored may take to answer. */
const ANSWER_TIMEOUT_MS = 30_000;
/** How often a transaction is tried at once while others change what it read. */
const MOST_TRIES = 16;
/** Events that wait to be taken: beyond this number the connection is given up. */
const MOST_EVENTS = 1 << 16;
/** How often a long list is read again because it changed. */
const MOST_LISTS = 100;

/** Something below a watched path changed. */
export interface WatchEvent {
  /** The path that changed; relative if the watch is. */
  readonly path: string;
  /** The token of the watch. */
  readonly token: string;
}

/** What can be read and changed, in a transaction and outside. */
export interface Nodes {
  /** The value of a node; null when there is none, or it must not be read. Throws `SystemError`. */
  read(path: string): string | null;
  /** The names of a node's children; null when there is no node. Throws `SystemError`. */
  list(path: string): string[] | null;
  /** Writes a node, and makes it and those above it. Throws `SystemError`. */
  write(path: string, value: string): void;
  /** Makes a node without a value, unless it exists. Throws `SystemError`. */
  make(path: string): void;
  /** Removes a node and all below it, if it exists. Throws `SystemError`. */
  remove(path: string): void;
  /** Who may read and write a node, in xenstored's notation (`n0`, `r3`). Throws `SystemError`. */
  permissions(path: string): string[];
}

/** A connection to xenstored. Every call may throw `SystemError`; `isLost` tells when it is over. */
export class Xenstore implements Nodes {
  readonly #stream: XenstoreStream;
  /** Events that wait, by what they say: one that is said again says nothing new. */
  readonly #events = new Map<string, WatchEvent>();
  /** The paths of watches, by token, whose events do not tell what changed below. */
  readonly #closed = new Map<string, string>();
  #lastRequest = 0;
  #isLost = false;

  /** @param stream Ends with this. */
  constructor(stream: XenstoreStream = openXenstoreStream()) {
    this.#stream = stream;
  }

  /** Is readable when events have arrived. */
  get fd(): number {
    return this.#stream.fd;
  }

  /** Whether the connection has failed: every later call fails too. */
  get isLost(): boolean {
    return this.#isLost;
  }

  read(path: string): string | null {
    return this.readIn(0, path);
  }

  list(path: string): string[] | null {
    return this.listIn(0, path);
  }

  write(path: string, value: string): void {
    this.writeIn(0, path, value);
  }

  make(path: string): void {
    this.ask(XsType.MKDIR, encodeTexts(path));
  }

  remove(path: string): void {
    this.removeIn(0, path);
  }

  permissions(path: string): string[] {
    return decodeTexts(this.ask(XsType.GET_PERMS, encodeTexts(path)));
  }

  /**
   * Watches a node and all below it. There is one event at once. Throws `SystemError`: EEXIST.
   *
   * @param options.tellsBelow Whether events have the paths of what changed below. Without them, a guest
   * that makes many nodes there causes one event.
   */
  watch(path: string, token: string, { tellsBelow = true } = {}): void {
    this.ask(XsType.WATCH, encodeTexts(path, token));
    if (!tellsBelow) this.#closed.set(token, path);
  }

  /** Ends a watch, if there is one. Events of it that wait are dropped. Throws `SystemError`. */
  unwatch(path: string, token: string): void {
    this.#closed.delete(token);
    allowing(Errno.ENOENT, () => this.ask(XsType.UNWATCH, encodeTexts(path, token)));
    for (const [key, event] of this.#events) {
      if (event.token === token) this.#events.delete(key);
    }
  }

  /** The next event, without waiting; null when there is none. Throws `SystemError`. */
  nextEvent(): WatchEvent | null {
    for (const [key, event] of this.#events) {
      this.#events.delete(key);
      return event;
    }
    const message = this.#whole(() => this.#stream.receive(0));
    if (message === null) return null;
    if (message.type === XsType.WATCH_EVENT) return this.#eventOf(message);
    throw this.#lost(Errno.EPROTO, `it sent message ${message.type}, which was not asked for`);
  }

  /**
   * Does work in a transaction: what it reads does not change meanwhile, and all that it writes
   * becomes visible at once. It is done again when others changed what it read or wrote.
   *
   * @param work Returns false to write nothing.
   * @returns What `work` returned.
   * @throws {SystemError} EAGAIN when it was in vain many times.
   */
  transaction(work: (nodes: Nodes) => boolean): boolean {
    for (let tries = 0; tries < MOST_TRIES; tries++) {
      const done = this.#try(work);
      if (done !== null) return done;
    }
    const what = `Cannot end a transaction of xenstored (${MOST_TRIES} were in vain)`;
    throw new SystemError(Errno.EAGAIN, what);
  }

  /** One transaction; null when it was in vain. */
  #try(work: (nodes: Nodes) => boolean): boolean | null {
    const number = Number(decodeTexts(this.ask(XsType.TRANSACTION_START, encodeTexts("")))[0]);
    if (!Number.isInteger(number) || number <= 0 || number > 0xffff_ffff) {
      throw this.#lost(Errno.EPROTO, "it gave a transaction no number");
    }
    let wanted = false;
    try {
      wanted = work(new TransactionNodes(this, number));
    } catch (error) {
      if (!this.#isLost) this.#end(number, false);
      if (error instanceof SystemError && error.errno === Errno.EAGAIN) return null;
      throw error;
    }
    return this.#end(number, wanted) ? wanted : null;
  }

  /** Ends a transaction; false when it was in vain. */
  #end(number: number, commit: boolean): boolean {
    try {
      this.ask(XsType.TRANSACTION_END, encodeTexts(commit ? "T" : "F"), number);
      return true;
    } catch (error) {
      const inVain = error instanceof SystemError && error.errno === Errno.EAGAIN;
      // A transaction that changes nothing may be over already.
      if (inVain || (!commit && !this.#isLost)) return !inVain || !commit;
      throw error;
    }
  }

  /** As `read`, in a transaction. */
  readIn(transaction: number, path: string): string | null {
    const reply = unlessHidden(() => this.ask(XsType.READ, encodeTexts(path), transaction));
    return reply === null ? null : decodeName(reply);
  }

  /** As `list`, in a transaction. */
  listIn(transaction: number, path: string): string[] | null {
    try {
      const reply = unlessHidden(() => this.ask(XsType.DIRECTORY, encodeTexts(path), transaction));
      return reply === null ? null : decodeTexts(reply);
    } catch (error) {
      if (!(error instanceof SystemError) || error.errno !== Errno.E2BIG) throw error;
      return this.#longList(transaction, path);
    }
  }

  /** A list that is too long for one message, in parts. */
  #longList(transaction: number, path: string): string[] {
    for (let tries = 0; tries < MOST_LISTS; tries++) {
      const list = this.#listInParts(transaction, path);
      if (list !== null) return list;
    }
    throw new SystemError(
      Errno.EAGAIN,
      `Cannot list ${path} of xenstored (it changes all the time)`,
    );
  }

  #listInParts(transaction: number, path: string): string[] | null {
    let text = "";
    let generation: string | null = null;
    for (let offset = 0;;) {
      const request = encodeTexts(path, String(offset));
      const payload = this.ask(XsType.DIRECTORY_PART, request, transaction);
      // "GENERATION\0", then names that each end with a zero; one more zero ends the last part.
      const zero = payload.indexOf(0);
      if (zero < 0) throw this.#lost(Errno.EPROTO, "a part of a list has no generation");
      const now = decodeName(payload.subarray(0, zero));
      if (generation !== null && now !== generation) return null;
      generation = now;
      const part = payload.subarray(zero + 1);
      const isLast = part.length === 0 || part.at(-2) === 0 || (part.length === 1 && part[0] === 0);
      text += decodeName(part);
      offset += part.length;
      if (isLast) return text.split("\0").filter((name) => name !== "");
    }
  }

  /** As `write`, in a transaction. */
  writeIn(transaction: number, path: string, value: string): void {
    this.ask(XsType.WRITE, encodeName(`${path}\0${value}`), transaction);
  }

  /** As `remove`, in a transaction. */
  removeIn(transaction: number, path: string): void {
    allowing(Errno.ENOENT, () => this.ask(XsType.RM, encodeTexts(path), transaction));
  }

  /**
   * Sends a request and waits for its answer; events that arrive meanwhile are kept.
   *
   * @throws {SystemError} xenstored refused, or the connection is over.
   */
  ask(type: number, payload: Uint8Array, transaction = 0): Uint8Array {
    if (payload.length > XENSTORE_PAYLOAD_MAX) {
      throw new SystemError(Errno.E2BIG, `Cannot ask xenstored for ${payload.length} bytes`);
    }
    const request = this.#lastRequest = (this.#lastRequest + 1) >>> 0;
    const answer = this.#whole(() => {
      this.#stream.send({ type, request, transaction, payload });
      return this.#answer(request);
    });
    if (answer.type === XsType.ERROR) {
      const [path] = decodeTexts(payload);
      throw new SystemError(
        errnoOfXsError(answer.payload),
        `xenstored refused request ${type} on '${path ?? ""}'`,
      );
    }
    if (answer.type === type) return answer.payload;
    throw this.#lost(Errno.EPROTO, `it answered request ${type} with message ${answer.type}`);
  }

  #answer(request: number): XsMessage {
    for (;;) {
      const message = this.#stream.receive(ANSWER_TIMEOUT_MS);
      if (message === null) throw this.#lost(Errno.ETIMEDOUT, "it does not answer");
      if (message.type !== XsType.WATCH_EVENT) {
        if (message.request === request || isKernels(message)) return message;
        throw this.#lost(Errno.EPROTO, "it answered another request");
      }
      if (this.#events.size === MOST_EVENTS) throw this.#lost(Errno.ENOBUFS, "too many events");
      const event = this.#eventOf(message);
      this.#events.set(`${event.path}\0${event.token}`, event);
    }
  }

  #eventOf(message: XsMessage): WatchEvent {
    const [path = "", token = ""] = decodeTexts(message.payload);
    return { path: this.#closed.get(token) ?? path, token };
  }

  /** Does a transfer; the connection is over when it fails. */
  #whole<Result>(transfer: () => Result): Result {
    try {
      return transfer();
    } catch (error) {
      if (!(error instanceof RefusedMessage)) this.#isLost = true;
      throw error;
    }
  }

  #lost(errno: number, why: string): SystemError {
    this.#isLost = true;
    return new SystemError(errno, `Lost the connection to xenstored (${why})`);
  }

  /** Closes the connection, which ends its watches and transactions. */
  close(): void {
    this.#isLost = true;
    this.#stream.close();
  }
}

/** What can be read and changed in a transaction. */
class TransactionNodes implements Nodes {
  constructor(readonly store: Xenstore, readonly number: number) {}

  read(path: string): string | null {
    return this.store.readIn(this.number, path);
  }

  list(path: string): string[] | null {
    return this.store.listIn(this.number, path);
  }

  write(path: string, value: string): void {
    this.store.writeIn(this.number, path, value);
  }

  make(path: string): void {
    this.store.ask(XsType.MKDIR, encodeTexts(path), this.number);
  }

  remove(path: string): void {
    this.store.removeIn(this.number, path);
  }

  permissions(path: string): string[] {
    return decodeTexts(this.store.ask(XsType.GET_PERMS, encodeTexts(path), this.number));
  }
}

/**
 * Whether the kernel itself has answered, as it does for the watches of /dev/xen/xenbus: its answer does
 * not have the number of the request (xenbus_write_watch of Linux's xenbus_dev_frontend.c).
 */
function isKernels({ type, request }: XsMessage): boolean {
  return request === 0 && (type === XsType.WATCH || type === XsType.UNWATCH);
}

function allowing(errno: number, call: () => unknown): void {
  try {
    call();
  } catch (error) {
    if (!(error instanceof SystemError) || error.errno !== errno) throw error;
  }
}

/** What xenstored says of a node that does not exist, is not for this domain, or has a wrong path. */
const HIDDEN: readonly number[] = [Errno.ENOENT, Errno.EACCES, Errno.EINVAL];

/** The answer of a call; null for a node that cannot be read. */
function unlessHidden(call: () => Uint8Array): Uint8Array | null {
  try {
    return call();
  } catch (error) {
    if (error instanceof SystemError && HIDDEN.includes(error.errno)) return null;
    throw error;
  }
}
