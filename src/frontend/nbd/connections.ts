import { assert } from "../../../ffi/assert.ts";
import { closeFile } from "../../../ffi/files.ts";
import type { SecureStream } from "../../../ffi/secure_stream.ts";
import { Deferral } from "../../driver/deferral.ts";
import type { Scheduler, TurnWork } from "../../scheduler/scheduler.ts";
import { Meter } from "../../metrics/meter.ts";
import { SLOTS } from "../../vbd/slots.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import { clientMemoryOf } from "./client_memory.ts";
import { ClientSeat } from "./client_seat.ts";
import { NbdConnection } from "./connection.ts";
import type {
  ClientKind,
  ConnectionHost,
  HandedOverClient,
  ResumedClient,
  ServedConnection,
} from "./connection_host.ts";
import type { ExportDescription, GreetingStyle } from "./handshake.ts";
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

/** Describes the export of a device. */
export function describeExport(vbd: Vbd): ExportDescription {
  const common = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
    NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN;
  const access = vbd.readOnly
    ? NBD_FLAG_READ_ONLY
    : NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES;
  // Also while it is paused: a block status then waits for the end of the pause.
  const hasLog = vbd.changedBlocksLog !== null;
  return { sizeBytes: vbd.sectors * SECTOR_BYTES, flags: common | access, hasLog };
}

/** Receives the ends of connections. */
export interface ConnectionsOwner {
  /** A connection has closed. Some of its requests may still be in flight. */
  connectionGone(connection: ServedConnection): void;
  /** The last request of a closed connection has ended, and its memory is free. */
  connectionRetired(connection: ServedConnection): void;
}

/** Whether a client has a handshake before it, whose time is limited. */
function isGreeted({ style, handedOver, entered, resumed }: ClientKind): boolean {
  const isOver = entered !== undefined || resumed?.state.handshake.stage === "transmission";
  return style === "newstyle" && !handedOver && !isOver;
}

/** Time limit of a handshake. That of TLS takes seconds where many programs share a processor. */
export const HANDSHAKE_MS = 30_000;

/** The TLS of a client; null without. */
function tlsOf({ entered, resumed }: ClientKind): SecureStream | null {
  return (entered ?? resumed)?.tls ?? null;
}

/**
 * Closes the socket of a client, and its TLS.
 *
 * @param isHeld Whether the process that served a client before may yet go on with it: that client is told nothing.
 */
function closeClient(fd: number, { entered, resumed }: ClientKind, isHeld: boolean): void {
  entered?.tls?.close();
  if (!isHeld) resumed?.tls?.close();
  closeFile(fd);
  (entered ?? resumed)?.left();
}

/** The connections to one device. */
export class NbdConnections implements ConnectionHost, TurnWork {
  readonly scheduler: Scheduler;
  readonly vbd: Vbd;
  readonly slots = new NbdSlots();
  readonly meter: Meter;
  readonly #owner: ConnectionsOwner | null;
  readonly #log: (message: string) => void;
  readonly #connections = new Set<ServedConnection>();
  /** Connections in the handshake, and the time of its start; the oldest first. */
  readonly #greeting = new Map<ServedConnection, number>();
  #greetingTimer = 0;
  /** Connections with replies to send. */
  readonly #due: Deferral;
  /** Clients that have done the work of one turn, and have more; and those of this turn. The lists keep their memory. */
  #dueNextTurn: (ServedConnection | null)[] = [];
  #started: (ServedConnection | null)[] = [];
  #dueCount = 0;
  #nextTurnTimer = 0;
  /** Seats by the offset of their memory. They are kept for the next client. */
  readonly #seats = new Map<number, ClientSeat>();
  #retired: ServedConnection[] = [];
  /**
   * The connection that was retired last. It keeps an object of the class alive: without one the
   * runtime discards the compiled code of the class, and the next client starts slowly.
   */
  readonly #lastRetired: ServedConnection[] = [];
  #isHeld = false;
  #isClosing = false;
  #closed = false;

  /**
   * @param log Writes a line to the log, which limits the number of similar ones.
   * @param meter Counts the requests; without it, they are not counted.
   */
  constructor(
    scheduler: Scheduler,
    vbd: Vbd,
    { owner = null, log = () => {}, meter }: {
      owner?: ConnectionsOwner | null;
      log?: (message: string) => void;
      meter?: Meter;
    } = {},
  ) {
    this.scheduler = scheduler;
    this.vbd = vbd;
    this.meter = meter ?? new Meter(SLOTS, scheduler.lastMs);
    this.#owner = owner;
    this.#log = log;
    this.#due = new Deferral(scheduler);
    scheduler.addTurnWork(this, vbd);
  }

  /** The number of connections. */
  get size(): number {
    return this.#connections.size;
  }

  /**
   * Serves a client. When that fails, it closes the descriptor and logs why.
   *
   * @param memory What `ClientMemory.take` gave for it.
   */
  add(fd: number, memory: number, kind: ClientKind): void {
    const connection = new NbdConnection(fd, this.#seatAt(memory), this, kind);
    // The client may leave, and `gone` be called, within `start`.
    this.#connections.add(connection);
    if (isGreeted(kind)) this.#noteGreeting(connection);
    try {
      connection.start(this.#isHeld);
    } catch (error) {
      // The loop has the descriptor, and requests may need the memory: the connection ends itself.
      if (!connection.failed) return connection.fault(error);
      this.#forget(connection);
      closeClient(fd, kind, this.#isHeld);
      clientMemoryOf(this.vbd.requests).give(memory);
      this.note(`a client cannot be served: ${messageOf(error)}`);
    }
  }

  /**
   * Takes no more requests of any client, from the ends of those that are being received; or takes them
   * again.
   */
  hold(isHeld: boolean): void {
    this.#isHeld = isHeld;
    for (const connection of [...this.#connections]) {
      try {
        connection.hold(isHeld);
        // Ahead of the requests of those that came later.
        if (!isHeld) connection.leaveIfGone();
      } catch (error) {
        // The other clients do not wait for ever because of this one.
        this.scheduler.contain(error, connection.faults);
      }
    }
  }

  /** Whether all clients are held, and are owed nothing. */
  get areQuiet(): boolean {
    return this.#connections.values().every(({ isQuiet }) => isQuiet);
  }

  /** Why its clients cannot be handed over; null when they can. */
  get whyStaying(): string | null {
    const isSecret = this.#connections.values().some(({ kind }) =>
      tlsOf(kind)?.isInKernel === false
    );
    return isSecret
      ? "a client is connected with TLS that is not in the kernel both ways: its keys are in this process; " +
        "it must disconnect first"
      : null;
  }

  /** Whether a client has TLS. */
  get haveTls(): boolean {
    return this.#connections.values().some(({ kind }) => tlsOf(kind) !== null);
  }

  /** The clients, which must be quiet, for another process. */
  handOver(): HandedOverClient[] {
    assert(this.whyStaying === null, "A client with TLS would go on without it");
    return Array.from(this.#connections, (connection) => {
      const { fd, handshake, rest } = connection.handOver();
      const { style, handedOver, entered, resumed } = connection.kind;
      const { place } = entered ?? resumed?.state ?? {};
      const isTls = tlsOf(connection.kind) !== null;
      return { fd, state: { style, handedOver, handshake, place }, rest, isTls };
    });
  }

  /** Serves a client of another process. Throws `SystemError`: EUSERS. */
  resume(fd: number, resumed: ResumedClient): void {
    const memory = clientMemoryOf(this.vbd.requests).take();
    if (memory < 0) {
      closeFile(fd);
      throw new SystemError(Errno.EUSERS, `Cannot take over a client of minor ${this.vbd.minor}`);
    }
    const { style, handedOver } = resumed.state;
    const before = this.#connections.size;
    this.add(fd, memory, { style, handedOver, resumed });
    if (this.#connections.size > before) return;
    throw new SystemError(
      Errno.EIO,
      `Cannot serve a client of minor ${this.vbd.minor} (see the log)`,
    );
  }

  #seatAt(memory: number): ClientSeat {
    let seat = this.#seats.get(memory);
    if (seat === undefined) {
      seat = new ClientSeat(this.vbd.requests.memory, memory);
      this.#seats.set(memory, seat);
    }
    return seat;
  }

  #noteGreeting(connection: ServedConnection): void {
    this.#greeting.set(connection, this.scheduler.nowMs());
    if (this.#greetingTimer === 0) this.#awaitOldest(HANDSHAKE_MS);
  }

  #awaitOldest(delayMs: number): void {
    this.#greetingTimer = this.scheduler.addTimer(delayMs, () => {
      this.#greetingTimer = 0;
      const nowMs = this.scheduler.nowMs();
      for (const [connection, sinceMs] of this.#greeting) {
        const leftMs = sinceMs + HANDSHAKE_MS - nowMs;
        if (leftMs > 0) return this.#awaitOldest(leftMs);
        const seconds = HANDSHAKE_MS / 1000;
        this.hangUp(connection, `it did not finish the handshake in ${seconds} s`);
      }
    });
  }

  /** Closes the oldest connection in the handshake; false when there is none. */
  dropOldestGreeting(): boolean {
    const [oldest] = this.#greeting.keys();
    if (oldest === undefined) return false;
    this.hangUp(oldest, "it had not finished the handshake when others wanted to connect");
    return true;
  }

  describe(): ExportDescription {
    return describeExport(this.vbd);
  }

  makeDue(connection: ServedConnection): void {
    this.#due.add(connection);
  }

  makeDueNextTurn(connection: ServedConnection): void {
    this.#dueNextTurn[this.#dueCount++] = connection;
    if (this.#nextTurnTimer !== 0) return;
    this.#nextTurnTimer = this.scheduler.addTimer(0, this.#startNextTurn);
  }

  /** One function for all turns: beside other clients there are many. */
  readonly #startNextTurn = (): void => {
    this.#nextTurnTimer = 0;
    const due = this.#dueNextTurn;
    const count = this.#dueCount;
    this.#dueNextTurn = this.#started;
    this.#started = due;
    this.#dueCount = 0;
    for (let i = 0; i < count; i++) {
      const connection = due[i];
      due[i] = null;
      connection?.nextTurn();
    }
  };

  negotiated(connection: ServedConnection): void {
    this.#greeting.delete(connection);
    // Of clients of another process, none has come now. Those that have gone leave at the end of the hold.
    if (this.#isHeld) return;
    for (const other of [...this.#connections]) {
      if (other === connection) continue;
      try {
        other.leaveIfGone();
      } catch (error) {
        this.scheduler.contain(error, other.faults);
      }
    }
  }

  hangUp(connection: ServedConnection, why: string): void {
    this.note(`hung up on an NBD client: ${why}`);
    connection.close();
  }

  /** Closes all connections, and logs why. */
  hangUpAll(why: string): void {
    for (const connection of [...this.#connections]) this.hangUp(connection, why);
  }

  /** Logs an event of a client. */
  note(what: string): void {
    this.#log(`Minor ${this.vbd.minor}: ${what}`);
  }

  gone(connection: ServedConnection, fd: number, kind: ClientKind): void {
    this.#forget(connection);
    const why = tlsOf(kind)?.why ?? "";
    if (why !== "") this.note(`the TLS of an NBD client failed: ${why}`);
    if (kind.handedOver && connection.hasLeft) this.addHandedOver(fd, kind.style);
    else closeClient(fd, kind, this.#isHeld);
    this.#owner?.connectionGone(connection);
  }

  /** Serves a client whose descriptor was handed over; logs why when that fails, and closes it. */
  addHandedOver(fd: number, style: GreetingStyle): void {
    const memory = this.#isClosing ? -1 : clientMemoryOf(this.vbd.requests).take();
    if (memory >= 0) return this.add(fd, memory, { style, handedOver: true });
    closeFile(fd);
    if (!this.#isClosing) this.note("a client cannot be served: the disk has too many");
  }

  #forget(connection: ServedConnection): void {
    this.#connections.delete(connection);
    this.#greeting.delete(connection);
  }

  retire(connection: ServedConnection): void {
    // A method of the connection may be running: its memory is freed at the end of the turn.
    if (this.#closed) this.#release(connection);
    else this.#retired.push(connection);
  }

  endOfTurn(): boolean {
    if (this.#retired.length > 0) this.#releaseRetired();
    return this.#due.endOfTurn();
  }

  /** Drops all clients. None may be added afterwards. */
  close(): void {
    if (this.#isClosing) return;
    this.#isClosing = true;
    this.scheduler.removeTurnWork(this);
    this.scheduler.cancelTimer(this.#greetingTimer);
    this.scheduler.cancelTimer(this.#nextTurnTimer);
    for (const connection of this.#connections) connection.close();
    this.#releaseRetired();
    this.#closed = true;
  }

  #releaseRetired(): void {
    for (const connection of this.#retired.splice(0)) {
      this.#release(connection);
      this.#lastRetired[0] = connection;
      this.#owner?.connectionRetired(connection);
    }
  }

  #release({ seat }: ServedConnection): void {
    clientMemoryOf(this.vbd.requests).give(seat.base);
  }
}
