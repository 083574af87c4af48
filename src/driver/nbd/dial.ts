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

/** How long a server may take from the first packet to the end of the handshake. */
const DIAL_TIMEOUT_MS = 5000;
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
  #tls: TlsStream | null = null;
  /** What TLS takes from the destination; kept until its handshake has ended. */
  #context: TlsContext | null = null;

  /** Throws `SystemError`. */
  constructor(destination: Destination) {
    this.#destination = destination;
    const { exportName, title, tls } = destination;
    this.#handshake = new ClientHandshake(exportName, title, tls !== undefined);
    this.#connecting = typeof destination.route !== "string";
    this.fd = socketTo(destination);
  }

  /** What the next step waits for: EPOLL* bits, which are those of poll(2). */
  get events(): number {
    if (this.#context !== null) return this.#tls?.wantsToSend ? EPOLLOUT : EPOLLIN;
    return this.#connecting || this.#handshake.toSend.length > 0 ? EPOLLOUT : EPOLLIN;
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
    if (settings === undefined) return true;
    if (this.#tls === null) {
      this.#context = clientContext(settings);
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

function timedOut(title: string): SystemError {
  return new SystemError(
    Errno.ETIMEDOUT,
    `Cannot open ${title} (no answer in ${DIAL_TIMEOUT_MS / 1000} s)`,
  );
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
 * tried in turn, each for at most five seconds.
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
 * Connects to the export of this name and waits for the connection, at most five seconds for each
 * address of the server's host. Only for programs that serve nothing else at that time.
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
  const attempt = new Attempt(destination);
  const untilMs = performance.now() + DIAL_TIMEOUT_MS;
  try {
    for (;;) {
      const leftMs = Math.ceil(untilMs - performance.now());
      if (leftMs <= 0) throw timedOut(destination.title);
      if (!waitForDescriptor(attempt.fd, attempt.events, leftMs)) continue;
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
  readonly #timer: number;
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
    this.#attempt = new Attempt(destination);
    this.#events = this.#attempt.events;
    try {
      scheduler.watch(this.#attempt.fd, this.#events, this);
    } catch (error) {
      this.#attempt.close();
      throw error;
    }
    this.#timer = scheduler.addTimer(DIAL_TIMEOUT_MS, () => {
      this.cancel();
      done(timedOut(destination.title));
    });
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
