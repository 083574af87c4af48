import { resolveTcp, resolveTcpAside } from "../../../ffi/addresses.ts";
import { EPOLLIN, EPOLLOUT } from "../../../ffi/epoll.ts";
import { Errno, errnoName, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { addressOf } from "../../../ffi/libc.ts";
import { waitForDescriptor } from "../../../ffi/poll.ts";
import {
  beginConnect,
  connectionError,
  receiveAt,
  sendAt,
  unixAddress,
} from "../../../ffi/sockets.ts";
import type { TlsContext } from "../../../ffi/tls_context.ts";
import { TlsStream } from "../../../ffi/tls_stream.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import { clientContext, type ClientTls } from "../../tls/tls.ts";
import type { ExportName, TcpServer } from "./export_name.ts";
import { handedOver } from "./handed_over.ts";
import { ClientHandshake, type RemoteExport } from "./handshake.ts";

/** How long a connection may take; another address is tried then. */
const CONNECT_MS = 5000;
/**
 * How long a server may be silent after that. The handshake of TLS takes seconds of a processor that
 * many programs share, so a server that goes on is waited for.
 */
const SILENCE_MS = 15_000;
/** How long all of it may take. */
const DIAL_MS = 60_000;
/** How long after its limit an attempt is looked at again that the socket has something for. */
const LATE_MS = 1000;
const RECEIVE_BYTES = 4096;
/** Addresses of a host that are tried. */
const MOST_ADDRESSES = 8;
/** Receives of one step: the loop has a turn in between. */
const MOST_RECEIVES = 16;

/** A connection on which requests can be made. */
export interface Connected {
  /** The socket, which the receiver closes with `closeConnected`. */
  readonly fd: number;
  /** Its TLS; null without. */
  readonly tls: TlsStream | null;
  readonly remote: RemoteExport;
  /** What worked, to dial again without asking the resolver. */
  readonly destination: Destination;
  /** Other addresses that have the export. */
  readonly others: readonly Destination[];
}

/** Closes a connection that is not used. */
export function closeConnected({ fd, tls }: Pick<Connected, "fd" | "tls">): void {
  tls?.close();
  closeFile(fd);
}

/** A way to a server: a `struct sockaddr`, or the name of a descriptor that was handed over. */
type Route = Uint8Array<ArrayBuffer> | string;

/** Where to dial. */
export interface Destination {
  readonly exportName: string;
  /** What the export is called in errors. */
  readonly title: string;
  readonly route: Route;
  /** How TLS is used; missing without. */
  readonly tls?: ClientTls;
  /** The host that the server's certificate must have. */
  readonly host?: string;
}

/** A socket on its way to a server. Throws `SystemError`. */
function socketTo({ route, title }: Destination): number {
  return typeof route === "string" ? handedOver.take(route, title) : beginConnect(route, title);
}

/** One attempt: a socket on its way to being connected, and the handshake on it. */
class Attempt {
  readonly fd: number;
  readonly #destination: Destination;
  readonly #handshake: ClientHandshake;
  readonly #buffer = new Uint8Array(RECEIVE_BYTES);
  #connecting: boolean;
  readonly #nowMs: () => number;
  readonly #startMs: number;
  #tls: TlsStream | null = null;
  /** What TLS takes from the destination; kept until its handshake has ended. */
  #context: TlsContext | null;

  /** Throws `SystemError`. */
  constructor(destination: Destination, nowMs: () => number) {
    this.#destination = destination;
    this.#nowMs = nowMs;
    const { exportName, title, tls } = destination;
    this.#handshake = new ClientHandshake(exportName, title, tls !== undefined);
    this.#connecting = typeof destination.route !== "string";
    // Before a server waits for it: to load a library and to read files takes a while.
    this.#context = tls === undefined ? null : clientContext(tls);
    try {
      this.fd = socketTo(destination);
    } catch (error) {
      this.#closeContext();
      throw error;
    }
    this.#startMs = nowMs();
  }

  /** What the next step waits for: EPOLL* bits, which are those of poll(2). */
  get events(): number {
    if (this.#handshake.isSecuring) return this.#tls?.wantsToSend ? EPOLLOUT : EPOLLIN;
    const sends = this.#handshake.toSend.length > 0 || this.#tls?.hasUnsent === true;
    return this.#connecting || sends ? EPOLLOUT : EPOLLIN;
  }

  /** How long the next step may have to wait. Each step shows that the server goes on. */
  get patienceMs(): number {
    return this.#connecting ? CONNECT_MS : SILENCE_MS;
  }

  /** Why it is given up after `patienceMs`, or after `DIAL_MS` in all. */
  get tooSlow(): SystemError {
    const { title } = this.#destination;
    const why = this.isOver
      ? `the handshake has not ended in ${DIAL_MS / 1000} s`
      : `no answer in ${this.patienceMs / 1000} s`;
    return new SystemError(Errno.ETIMEDOUT, `Cannot open ${title} (${why})`);
  }

  /** Whether it has had all its time. */
  get isOver(): boolean {
    return this.leftMs <= 0;
  }

  /** The time that is left for it. */
  get leftMs(): number {
    return this.#startMs + DIAL_MS - this.#nowMs();
  }

  /** Goes as far as it can without waiting; null while it is not through. Throws `SystemError`. */
  step(): Connected | null {
    if (this.#connecting) {
      const errno = connectionError(this.fd);
      if (errno !== 0) throw new SystemError(errno, `Cannot connect to ${this.#destination.title}`);
      this.#connecting = false;
    }
    for (let i = 0; this.#handshake.result === null; i++) {
      if (this.#handshake.isSecuring && !this.#secure()) return null;
      if (!this.#send()) return null;
      // What OpenSSL has received, the socket does not show.
      if (i >= MOST_RECEIVES && !this.#tls?.hasPending) return null;
      if (!this.#receive()) return null;
    }
    const remote = this.#handshake.result;
    const destination = this.#destination;
    return { fd: this.fd, tls: this.#tls, remote, destination, others: [] };
  }

  /** Goes on with the handshake of TLS; false while it waits. Throws `SystemError`. */
  #secure(): boolean {
    const { tls: settings, host, title } = this.#destination;
    if (settings === undefined || this.#context === null) return true;
    if (this.#tls === null) {
      const name = settings.hostname ?? host;
      const peer = settings.verifyPeer && name !== undefined ? { host: name } : undefined;
      this.#tls = new TlsStream(this.fd, this.#context, peer);
    }
    const result = this.#tls.handshake();
    if (result === -Errno.EAGAIN) return false;
    if (result < 0) {
      const why = this.#tls.why === "" ? errnoName(-result) : this.#tls.why;
      throw new SystemError(-result, `Cannot open ${title} (TLS failed: ${why})`);
    }
    this.#closeContext();
    this.#handshake.secured();
    return true;
  }

  #closeContext(): void {
    this.#context?.close();
    this.#context = null;
  }

  /** Gives it up. */
  close(): void {
    this.#tls?.close();
    this.#closeContext();
    closeFile(this.fd);
  }

  /** Sends what there is; false when the socket takes no more now. */
  #send(): boolean {
    const { toSend } = this.#handshake;
    while (toSend.length > 0) {
      const bytes = Uint8Array.from(toSend[0]);
      const sent = bytes.length === 0
        ? 0
        : this.#tls === null
        ? sendAt(this.fd, addressOf(bytes), bytes.length)
        : this.#tls.sendBytes(bytes);
      if (sent < 0) return this.#mayWait(-sent);
      if (sent < bytes.length) toSend[0] = bytes.slice(sent);
      else toSend.shift();
    }
    const left = this.#tls?.flush() ?? 0;
    return left < 0 ? this.#mayWait(-left) : true;
  }

  #receive(): boolean {
    const got = this.#tls === null
      ? receiveAt(this.fd, addressOf(this.#buffer), RECEIVE_BYTES)
      : this.#tls.receiveBytes(this.#buffer);
    if (got < 0) return this.#mayWait(-got);
    if (got === 0) return this.#mayWait(Errno.ECONNRESET);
    this.#handshake.receive(this.#buffer.subarray(0, got));
    return true;
  }

  #mayWait(errno: number): false {
    if (errno === Errno.EAGAIN || errno === Errno.EINTR) return false;
    const { title } = this.#destination;
    const why = this.#tls?.why ?? "";
    const ended = why === "" ? "the server ended the connection" : `TLS failed: ${why}`;
    throw new SystemError(errno, `Cannot open ${title} (${ended})`);
  }
}

/** A route, and the host that it leads to. */
interface HostRoute {
  readonly route: Route;
  readonly host?: string;
}

function toHost(host: string, addresses: readonly Uint8Array<ArrayBuffer>[]): HostRoute[] {
  return addresses.slice(0, MOST_ADDRESSES).map((route) => ({ route, host }));
}

/** The servers that have the export, the first one first. */
function serversOf(server: { readonly others?: readonly TcpServer[] } & TcpServer): TcpServer[] {
  return [server, ...(server.others ?? [])];
}

function routesTo({ server }: ExportName): HostRoute[] {
  if (server.kind === "descriptor") return [{ route: server.name }];
  if (server.kind === "unix") return [{ route: unixAddress(server.path) }];
  const servers = serversOf(server);
  const failures: unknown[] = [];
  const routes = servers.flatMap(({ host, port }) => {
    try {
      return toHost(host, resolveTcp(host, port));
    } catch (error) {
      failures.push(error);
      return [];
    }
  });
  if (routes.length === 0) throw failures[0];
  return routes;
}

/**
 * Connects to the export of this name while the loop goes on. The addresses of the server's host are
 * tried in turn: each has five seconds to connect, then a minute in which it is not silent for long.
 *
 * @returns Gives it up; `done` is not called then.
 */
export function dial(
  { server, exportName, tls }: ExportName,
  title: string,
  { scheduler, done }: { scheduler: Scheduler; done: (result: Connected | Error) => void },
): () => void {
  let current: Dial | null = null;
  let isGivenUp = false;
  let all: readonly Destination[] = [];
  const tryNext = (routes: readonly Destination[], failure: Error | null): void => {
    const [next, ...rest] = routes;
    if (next === undefined) {
      return done(failure ?? new SystemError(Errno.EHOSTUNREACH, `Cannot connect to ${title}`));
    }
    const ended = (result: Connected | Error): void => {
      current = null;
      if (!(result instanceof Error)) return done(withOthers(result, all));
      // Not within the call that failed. The first failure says most.
      scheduler.addTimer(0, () => isGivenUp || tryNext(rest, failure ?? result));
    };
    try {
      current = new Dial(scheduler, next, ended);
    } catch (error) {
      ended(toError(error));
    }
  };
  scheduler.settle(routesAside(server), (found) => {
    if (isGivenUp) return;
    if (found instanceof Error) return done(found);
    all = found.map((route) => ({ exportName, title, tls, ...route }));
    tryNext(all, null);
  });
  return () => {
    isGivenUp = true;
    current?.cancel();
  };
}

/** A connection, with the other addresses that have the export. */
function withOthers(connected: Connected, all: readonly Destination[]): Connected {
  return { ...connected, others: all.filter((each) => each !== connected.destination) };
}

async function routesAside(server: ExportName["server"]): Promise<HostRoute[] | Error> {
  if (server.kind === "descriptor") return [{ route: server.name }];
  if (server.kind === "unix") return [{ route: unixAddress(server.path) }];
  const found = await Promise.all(
    serversOf(server).map(async ({ host, port }) => {
      try {
        return toHost(host, await resolveTcpAside(host, port));
      } catch (error) {
        return toError(error);
      }
    }),
  );
  const routes = found.flatMap((each) => each instanceof Error ? [] : each);
  const failure = found.find((each) => each instanceof Error);
  return routes.length === 0 && failure !== undefined ? failure : routes;
}

/** What was thrown, as an error. */
export function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

/**
 * Connects to the export of this name and waits for the connection, for each address of the
 * server's host as long as `dial` does. Only for programs that serve nothing else at that time.
 *
 * @throws {SystemError}
 */
export function dialAndWait(name: ExportName, title: string): Connected {
  const { exportName, tls } = name;
  let failure: unknown = null;
  const all = routesTo(name).map((route) => ({ exportName, title, tls, ...route }));
  for (const destination of all) {
    try {
      return withOthers(waitFor(destination), all);
    } catch (error) {
      failure ??= error;
    }
  }
  throw failure ?? new SystemError(Errno.EHOSTUNREACH, `Cannot connect to ${title}`);
}

function waitFor(destination: Destination): Connected {
  const attempt = new Attempt(destination, () => performance.now());
  try {
    for (;;) {
      // What the steps take here is no silence of the server.
      const waitMs = Math.max(0, Math.min(attempt.patienceMs, attempt.leftMs));
      const isReady = waitForDescriptor(attempt.fd, attempt.events, waitMs);
      if (!isReady || attempt.isOver) throw attempt.tooSlow;
      const connected = attempt.step();
      if (connected !== null) return connected;
    }
  } catch (error) {
    attempt.close();
    throw error;
  }
}

/** An attempt that runs on the loop, beside everything else. */
export class Dial implements FdHandler {
  readonly #scheduler: Scheduler;
  readonly #attempt: Attempt;
  readonly #done: (result: Connected | Error) => void;
  #timer: number;
  #events: number;

  /**
   * @param done Told once how it ended, unless `cancel` comes first.
   * @throws {SystemError} For what fails at once.
   */
  constructor(
    scheduler: Scheduler,
    destination: Destination,
    done: (result: Connected | Error) => void,
  ) {
    this.#scheduler = scheduler;
    this.#done = done;
    this.#attempt = new Attempt(destination, () => scheduler.nowMs());
    this.#events = this.#attempt.events;
    try {
      scheduler.watch(this.#attempt.fd, this.#events, this);
    } catch (error) {
      this.#attempt.close();
      throw error;
    }
    this.#timer = this.#wait(this.#attempt.patienceMs);
  }

  #wait(patienceMs: number): number {
    const delayMs = Math.max(0, Math.min(patienceMs, this.#attempt.leftMs));
    return this.#scheduler.addTimer(delayMs, () => this.#late());
  }

  #late(): void {
    const attempt = this.#attempt;
    // When the loop itself was late, what has come meanwhile was not looked at.
    if (!attempt.isOver && waitForDescriptor(attempt.fd, attempt.events, 0)) {
      this.#timer = this.#wait(LATE_MS);
      return;
    }
    const why = attempt.tooSlow;
    this.cancel();
    this.#done(why);
  }

  ready(_events: number): void {
    let connected: Connected | null;
    try {
      connected = this.#attempt.step();
    } catch (error) {
      this.cancel();
      return this.#done(toError(error));
    }
    if (connected !== null) {
      this.#leaveLoop();
      return this.#done(connected);
    }
    this.#scheduler.cancelTimer(this.#timer);
    this.#timer = this.#wait(this.#attempt.patienceMs);
    const { events } = this.#attempt;
    if (events === this.#events) return;
    this.#events = events;
    this.#scheduler.rewatch(this.#attempt.fd, events);
  }

  #leaveLoop(): void {
    this.#scheduler.cancelTimer(this.#timer);
    this.#scheduler.unwatch(this.#attempt.fd);
  }

  /** Gives up and closes the socket. */
  cancel(): void {
    this.#leaveLoop();
    this.#attempt.close();
  }
}
