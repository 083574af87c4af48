import { resolveTcp, resolveTcpAside } from "../../../ffi/addresses.ts";
import { EPOLLIN, EPOLLOUT } from "../../../ffi/epoll.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
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
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import { type ExportName, parseExportName } from "./export_name.ts";
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
  /** The socket, which the receiver closes. */
  readonly fd: number;
  readonly remote: RemoteExport;
  /** What worked, to dial again without asking the resolver. */
  readonly destination: Destination;
}

/** A way to a server: a `struct sockaddr`, or the name of a descriptor that was handed over. */
type Route = Uint8Array<ArrayBuffer> | string;

/** Where to dial. */
export interface Destination {
  readonly exportName: string;
  /** What the export is called in errors. */
  readonly title: string;
  readonly route: Route;
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

  /** Throws `SystemError`. */
  constructor(destination: Destination) {
    this.#destination = destination;
    this.#handshake = new ClientHandshake(destination.exportName, destination.title);
    this.#connecting = typeof destination.route !== "string";
    this.fd = socketTo(destination);
  }

  /** What the next step waits for: EPOLL* bits, which are those of poll(2). */
  get events(): number {
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
      if (i === MOST_RECEIVES || !this.#send() || !this.#receive()) return null;
    }
    return { fd: this.fd, remote: this.#handshake.result, destination: this.#destination };
  }

  /** Sends what there is; false when the socket takes no more now. */
  #send(): boolean {
    const { toSend } = this.#handshake;
    while (toSend.length > 0) {
      const bytes = Uint8Array.from(toSend[0]);
      const sent = bytes.length === 0 ? 0 : sendAt(this.fd, addressOf(bytes), bytes.length);
      if (sent < 0) return this.#mayWait(-sent);
      if (sent < bytes.length) toSend[0] = bytes.slice(sent);
      else toSend.shift();
    }
    return true;
  }

  #receive(): boolean {
    const got = receiveAt(this.fd, addressOf(this.#buffer), RECEIVE_BYTES);
    if (got < 0) return this.#mayWait(-got);
    if (got === 0) return this.#mayWait(Errno.ECONNRESET);
    this.#handshake.receive(this.#buffer.subarray(0, got));
    return true;
  }

  #mayWait(errno: number): false {
    if (errno === Errno.EAGAIN || errno === Errno.EINTR) return false;
    const { title } = this.#destination;
    throw new SystemError(errno, `Cannot open ${title} (the server ended the connection)`);
  }
}

function timedOut(title: string): SystemError {
  return new SystemError(
    Errno.ETIMEDOUT,
    `Cannot open ${title} (no answer in ${DIAL_TIMEOUT_MS / 1000} s)`,
  );
}

function routesTo({ server }: ExportName): Route[] {
  if (server.kind === "descriptor") return [server.name];
  return server.kind === "unix" ? [unixAddress(server.path)] : resolveTcp(server.host, server.port);
}

/**
 * Connects to the export of this name while the loop goes on. The addresses of the server's host are
 * tried in turn, each for at most five seconds.
 *
 * @returns Gives it up; `done` is not called then.
 * @throws {SystemError} EINVAL for a name that is none.
 */
export function dial(
  name: string,
  title: string,
  { scheduler, done }: { scheduler: Scheduler; done: (result: Connected | Error) => void },
): () => void {
  const { server, exportName } = parseExportName(name);
  let current: Dial | null = null;
  let isGivenUp = false;
  const tryNext = (routes: readonly Route[], failure: Error | null): void => {
    const [route, ...others] = routes;
    if (route === undefined) {
      return done(failure ?? new SystemError(Errno.EHOSTUNREACH, `Cannot connect to ${title}`));
    }
    const ended = (result: Connected | Error): void => {
      current = null;
      if (!(result instanceof Error)) return done(result);
      // Not within the call that failed. The first failure says most.
      scheduler.addTimer(0, () => isGivenUp || tryNext(others, failure ?? result));
    };
    try {
      current = new Dial(scheduler, { exportName, title, route }, ended);
    } catch (error) {
      ended(toError(error));
    }
  };
  scheduler.settle(routesAside(server), (found) => {
    if (isGivenUp) return;
    if (found instanceof Error) done(found);
    else tryNext(found.slice(0, MOST_ADDRESSES), null);
  });
  return () => {
    isGivenUp = true;
    current?.cancel();
  };
}

async function routesAside(server: ExportName["server"]): Promise<Route[] | Error> {
  try {
    if (server.kind === "descriptor") return [server.name];
    if (server.kind === "unix") return [unixAddress(server.path)];
    return await resolveTcpAside(server.host, server.port);
  } catch (error) {
    return toError(error);
  }
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
export function dialAndWait(name: string, title: string): Connected {
  const parsed = parseExportName(name);
  let failure: unknown = null;
  for (const route of routesTo(parsed)) {
    try {
      return waitFor({ exportName: parsed.exportName, title, route });
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
    closeFile(attempt.fd);
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
      closeFile(this.#attempt.fd);
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
    closeFile(this.#attempt.fd);
  }
}
