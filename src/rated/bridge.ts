/**
 * `src/rated`: the bridge between disks that share a data rate, which td-rated is. Valves, which are
 * filters in front of images in any tapdisk, ask it for each byte that they pass; it answers as a
 * limiter allows. It must not know images or tapdisks, and must not print.
 *
 * This file has the socket and the connections.
 *
 * @module
 */
import { EPOLLIN } from "../../ffi/epoll.ts";
import { Errno, errnoName, errnoOf, SystemError } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import {
  acceptConnection,
  putNumber64,
  receiveAt,
  sendAt,
  unixAddress,
  unixConnectAtOnce,
  unixListen,
} from "../../ffi/sockets.ts";
import type { Log } from "../log/log.ts";
import { describeFault, type FaultOwner } from "../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../scheduler/scheduler.ts";
import type { Limiter, Waiting } from "./limiter.ts";
import {
  MOST_NEED_BYTES,
  numberAt,
  VALVE_CREDIT_BYTES,
  VALVE_REQUEST_BYTES,
} from "./valve_protocol.ts";

/** Valves at once (TD_RLB_CONN_MAX). */
const MOST_VALVES = 1024;
/** How long not to accept connections after an accept failed. */
const ACCEPT_RETRY_MS = 1_000;

/** A valve that is connected. */
class ConnectedValve implements FdHandler, FaultOwner, Waiting {
  failed = false;
  needBytes = 0;
  /** Bytes that were granted and have not ended. */
  grantedBytes = 0;
  /** Since when it waits, and how long it waited before, milliseconds. */
  #sinceMs = 0;
  #waitedMs = 0;
  readonly #input = new Uint8Array(32 * VALVE_REQUEST_BYTES);
  readonly #inputView = new DataView(this.#input.buffer);
  readonly #inputAddress = addressOf(this.#input);
  #received = 0;
  readonly #output = new Uint8Array(VALVE_CREDIT_BYTES);
  readonly #outputView = new DataView(this.#output.buffer);
  readonly #outputAddress = addressOf(this.#output);

  constructor(readonly number: number, readonly fd: number, readonly bridge: Bridge) {}

  fault(error: unknown): void {
    this.bridge.left(this, `a fault: ${describeFault(error)}`);
  }

  ready(): void {
    const room = this.#input.length - this.#received;
    const got = receiveAt(this.fd, this.#inputAddress + this.#received, room);
    if (got === -Errno.EAGAIN || got === -Errno.EINTR) return;
    if (got <= 0) return this.bridge.left(this, got === 0 ? null : errnoName(-got));
    this.#received += got;
    const whole = Math.floor(this.#received / VALVE_REQUEST_BYTES) * VALVE_REQUEST_BYTES;
    for (let at = 0; at < whole; at += VALVE_REQUEST_BYTES) {
      const wrong = this.#take(numberAt(this.#inputView, at), numberAt(this.#inputView, at + 8));
      if (wrong !== null) return this.bridge.left(this, wrong);
    }
    this.#input.copyWithin(0, whole, this.#received);
    this.#received -= whole;
    this.bridge.heard(this);
  }

  /** Takes a message; what is wrong with it, or null. */
  #take(need: number, done: number): string | null {
    if (done > this.grantedBytes) return "it has done more than it was granted";
    if (this.needBytes + need > MOST_NEED_BYTES) return "it needs too much at once";
    if (this.needBytes === 0) this.#sinceMs = this.bridge.nowMs;
    this.needBytes += need;
    this.grantedBytes -= done;
    return null;
  }

  /** Grants bytes of those that it needs. */
  grant(bytes: number): void {
    putNumber64(this.#outputView, 0, bytes);
    const put = sendAt(this.fd, this.#outputAddress, VALVE_CREDIT_BYTES);
    this.needBytes -= bytes;
    this.grantedBytes += bytes;
    if (this.needBytes === 0) this.#waitedMs += this.bridge.nowMs - this.#sinceMs;
    if (put === VALVE_CREDIT_BYTES) return;
    this.bridge.left(this, put < 0 ? errnoName(-put) : "it does not receive");
  }

  /** A line about it, for the log. */
  describe(): string {
    const ms = this.needBytes > 0 ? this.bridge.nowMs - this.#sinceMs : 0;
    const waited = ((this.#waitedMs + ms) / 1000).toFixed(3);
    return `valve ${this.number}: needs ${this.needBytes} bytes for ${Math.round(ms)} ms, ` +
      `${this.grantedBytes} are under way, waited ${waited} s in all`;
  }
}

/** A bridge at a socket. */
export class Bridge implements FdHandler, FaultOwner {
  readonly failed = false;
  readonly #scheduler: Scheduler;
  readonly #path: string;
  readonly #limiter: Limiter;
  readonly #log: Log;
  readonly #valves = new Set<ConnectedValve>();
  /** Those that need bytes, in the order of their turns. */
  readonly #waiting: ConnectedValve[] = [];
  #listener: number;
  #number = 0;
  #timer = 0;
  readonly #dispatch = (): void => {
    this.#timer = 0;
    this.#grant();
  };

  /** Listens at `path`. Throws `SystemError`: EADDRINUSE while another bridge does. */
  constructor(
    scheduler: Scheduler,
    path: string,
    { limiter, log }: { limiter: Limiter; log: Log },
  ) {
    this.#scheduler = scheduler;
    this.#path = path;
    this.#limiter = limiter;
    this.#log = log;
    this.#listener = listen(path);
    scheduler.watch(this.#listener, EPOLLIN, this, this);
  }

  get nowMs(): number {
    return this.#scheduler.lastMs[0];
  }

  fault(error: unknown): void {
    this.#log.error(`A valve was not taken: ${describeFault(error)}`);
    this.#listenLater("a fault");
  }

  ready(): void {
    while (this.#valves.size < MOST_VALVES) {
      const fd = acceptConnection(this.#listener);
      if (fd < 0) {
        if (fd !== -Errno.EAGAIN) this.#listenLater(errnoName(-fd));
        return;
      }
      const valve = new ConnectedValve(this.#number++, fd, this);
      try {
        this.#scheduler.watch(fd, EPOLLIN, valve, valve);
      } catch (error) {
        // A valve without a connection lets everything pass; one that is not watched would wait for ever.
        closeFile(fd);
        throw error;
      }
      this.#valves.add(valve);
      this.#log.info(`Valve ${valve.number} is connected`);
    }
    this.#listenLater(`there are ${MOST_VALVES}`);
  }

  #listenLater(why: string): void {
    this.#log.warn(`Takes no valves for a second (${why})`);
    this.#scheduler.rewatch(this.#listener, 0);
    this.#scheduler.addTimer(ACCEPT_RETRY_MS, () => {
      if (this.#listener >= 0) this.#scheduler.rewatch(this.#listener, EPOLLIN);
    });
  }

  /** A valve sent something. */
  heard(valve: ConnectedValve): void {
    if (valve.needBytes > 0 && !this.#waiting.includes(valve)) {
      if (this.#waiting.length === 0) this.#limiter.begin(this.nowMs);
      this.#waiting.push(valve);
    }
    this.#grant();
  }

  #grant(): void {
    const waiting = this.#waiting;
    while (waiting.length > 0) {
      const [valve] = waiting;
      const bytes = this.#limiter.take(valve.needBytes, this.nowMs, this.#pendingBytes);
      if (bytes === 0) break;
      waiting.shift();
      valve.grant(bytes);
      if (valve.needBytes > 0 && !valve.failed) waiting.push(valve);
    }
    this.#scheduler.cancelTimer(this.#timer);
    this.#timer = 0;
    if (waiting.length === 0) return;
    const delayMs = Math.max(1, this.#limiter.nextMs(this.nowMs) - this.nowMs);
    this.#timer = this.#scheduler.addTimer(delayMs, this.#dispatch, this);
  }

  /** Bytes that were granted and have not ended. */
  get #pendingBytes(): number {
    let bytes = 0;
    for (const { grantedBytes } of this.#valves) bytes += grantedBytes;
    return bytes;
  }

  /** A valve leaves. */
  left(valve: ConnectedValve, why: string | null): void {
    if (valve.failed) return;
    valve.failed = true;
    if (why === null) this.#log.info(`Valve ${valve.number} has left`);
    else this.#log.warn(`Valve ${valve.number} is closed: ${why}`);
    this.#scheduler.unwatch(valve.fd);
    closeFile(valve.fd);
    this.#valves.delete(valve);
    const at = this.#waiting.indexOf(valve);
    if (at >= 0) this.#waiting.splice(at, 1);
  }

  /** Lines about the limiter and each valve, for the log. */
  describe(): string[] {
    return [
      ...this.#limiter.describe(this.nowMs),
      ...Array.from(this.#valves, (valve) => valve.describe()),
    ];
  }

  /** Ends it, and removes the socket. */
  close(): void {
    this.#scheduler.cancelTimer(this.#timer);
    this.#scheduler.unwatch(this.#listener);
    closeFile(this.#listener);
    this.#listener = -1;
    for (const valve of [...this.#valves]) this.left(valve, null);
    try {
      Deno.removeSync(this.#path);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}

/** Listens at a path, where a bridge that was killed may have left its socket. */
function listen(path: string): number {
  try {
    unixAddress(path);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new SystemError(Errno.ENAMETOOLONG, why, { message: why });
  }
  try {
    return unixListen(path, MOST_VALVES);
  } catch (error) {
    if (errnoOf(error) !== Errno.EADDRINUSE || !isAbandoned(path)) throw error;
    Deno.removeSync(path);
    return unixListen(path, MOST_VALVES);
  }
}

/** Whether a path is a socket without a listener. */
function isAbandoned(path: string): boolean {
  if (Deno.lstatSync(path).isSocket !== true) return false;
  try {
    closeFile(unixConnectAtOnce(path));
    return false;
  } catch (error) {
    return errnoOf(error) === Errno.ECONNREFUSED;
  }
}
