/**
 * Frontends: how requests come in. They turn a protocol's requests into a device's slots and back;
 * they know nothing of images.
 *
 * This one is an NBD server on a UNIX socket, any number of clients to one export.
 *
 * @module
 */
import { EPOLLIN } from "../../../ffi/epoll.ts";
import { Errno } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { acceptConnection, unixListen } from "../../../ffi/sockets.ts";
import type { FdHandler, Scheduler, TurnWork } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { NbdConnection } from "./connection.ts";
import type { ExportDescription } from "./handshake.ts";
import { NbdSlots } from "./nbd_slots.ts";
import {
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
} from "../../nbd/protocol.ts";

const SECTOR_BYTES = 512;
/** How long a client waits that could not be accepted, before it is tried again. */
const ACCEPT_AGAIN_MS = 50;

/** Serves one device on one socket. */
export class NbdServer implements FdHandler, TurnWork {
  readonly scheduler: Scheduler;
  readonly vbd: Vbd;
  readonly slots = new NbdSlots();
  readonly socketPath: string;
  readonly #fd: number;
  readonly #connections = new Set<NbdConnection>();
  #due: NbdConnection[] = [];
  #sending: NbdConnection[] = [];
  #retired: NbdConnection[] = [];
  #closed = false;
  #acceptTimer = 0;

  /**
   * Listens on `socketPath`; what a dead process left there is replaced.
   *
   * @throws {SystemError}
   */
  constructor(scheduler: Scheduler, vbd: Vbd, socketPath: string) {
    this.scheduler = scheduler;
    this.vbd = vbd;
    this.socketPath = socketPath;
    removeSocket(socketPath);
    this.#fd = unixListen(socketPath);
    scheduler.watch(this.#fd, EPOLLIN, this);
    scheduler.addTurnWork(this);
  }

  /** How many clients are connected. */
  get clients(): number {
    return this.#connections.size;
  }

  /** A client wants to connect. */
  ready(_events: number): void {
    const memory = this.vbd.requests.takeClientMemory();
    // More clients than a device serves: the next waits until one of the others goes.
    if (memory < 0) return this.#stopAccepting();
    const fd = acceptConnection(this.#fd);
    if (fd >= 0) return void this.#connections.add(new NbdConnection(fd, memory, this));
    this.vbd.requests.giveClientMemory(memory);
    // Without a free descriptor (EMFILE) the client stays in line, and the loop is not to spin.
    if (fd !== -Errno.EAGAIN) this.#stopAccepting();
  }

  /** Leaves those who want to connect waiting for a moment. */
  #stopAccepting(): void {
    this.scheduler.rewatch(this.#fd, 0);
    this.#acceptTimer = this.scheduler.addTimer(ACCEPT_AGAIN_MS, () => {
      this.scheduler.rewatch(this.#fd, EPOLLIN);
    });
  }

  /** The export, for a client that asks. */
  describe(): ExportDescription {
    const common = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
      NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN;
    const access = this.vbd.readOnly
      ? NBD_FLAG_READ_ONLY
      : NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES;
    return { sizeBytes: this.vbd.sectors * SECTOR_BYTES, flags: common | access };
  }

  makeDue(connection: NbdConnection): void {
    if (connection.isDue) return;
    connection.isDue = true;
    this.#due.push(connection);
  }

  gone(connection: NbdConnection): void {
    this.#connections.delete(connection);
  }

  retire(connection: NbdConnection): void {
    // Its handler may be running: its memory goes at the end of the turn.
    if (this.#closed) connection.release();
    else this.#retired.push(connection);
  }

  endOfTurn(): boolean {
    if (this.#retired.length > 0) this.#releaseRetired();
    if (this.#due.length === 0) return false;
    const list = this.#due;
    this.#due = this.#sending;
    this.#sending = list;
    for (let i = 0; i < list.length; i++) {
      list[i].isDue = false;
      list[i].flush();
    }
    list.length = 0;
    return true;
  }

  /** Drops all clients and takes the socket away. */
  close(): void {
    this.scheduler.cancelTimer(this.#acceptTimer);
    this.scheduler.unwatch(this.#fd);
    this.scheduler.removeTurnWork(this);
    closeFile(this.#fd);
    removeSocket(this.socketPath);
    for (const connection of this.#connections) connection.close();
    this.#releaseRetired();
    this.#closed = true;
  }

  #releaseRetired(): void {
    for (const connection of this.#retired.splice(0)) connection.release();
  }
}

function removeSocket(path: string): void {
  try {
    if (Deno.lstatSync(path).isSocket) Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
