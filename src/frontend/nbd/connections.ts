import { closeFile } from "../../../ffi/files.ts";
import { Deferral } from "../../driver/deferral.ts";
import type { Scheduler, TurnWork } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { SeldomLog } from "../../log/seldom_log.ts";
import { messageOf } from "../../../ffi/errno.ts";
import { clientMemoryOf } from "./client_memory.ts";
import { ClientSeat } from "./client_seat.ts";
import { NbdConnection } from "./connection.ts";
import type { ConnectionHost, ServedConnection } from "./connection_host.ts";
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

/** A device, for a client that asks. */
export function describeExport(vbd: Vbd): ExportDescription {
  const common = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
    NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN;
  const access = vbd.readOnly
    ? NBD_FLAG_READ_ONLY
    : NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES;
  return { sizeBytes: vbd.sectors * SECTOR_BYTES, flags: common | access };
}

/** Whom the connections to a device tell of their ends. */
export interface ConnectionsOwner {
  /** A connection has closed; some of its requests may still be under way. */
  connectionGone(connection: ServedConnection): void;
  /** The last of its requests has ended, and its memory is free again. */
  connectionRetired(connection: ServedConnection): void;
}

/** How long a client may take for its handshake. */
const HANDSHAKE_MS = 10_000;
/** How often the log tells of clients that are hung up on, for each reason. */
const TELL_EVERY_MS = 10_000;

/** The connections to one device, wherever they come from. */
export class NbdConnections implements ConnectionHost, TurnWork {
  readonly scheduler: Scheduler;
  readonly vbd: Vbd;
  readonly slots = new NbdSlots();
  readonly #owner: ConnectionsOwner | null;
  readonly #log: SeldomLog;
  readonly #connections = new Set<ServedConnection>();
  /** Those whose handshake is not over, and when each began; the oldest first. */
  readonly #greeting = new Map<ServedConnection, number>();
  #greetingTimer = 0;
  /** Those with answers to send. */
  readonly #due: Deferral;
  /** Those that took as many requests as a turn allows. */
  readonly #dueNextTurn: ServedConnection[] = [];
  #nextTurnTimer = 0;
  /** What was made of clients' memory, by its offset. */
  readonly #seats = new Map<number, ClientSeat>();
  #retired: ServedConnection[] = [];
  /**
   * The client that left last. While there is no object of a class, the runtime forgets what it has
   * learnt of the class, machine code with it: each client would start slow after a quiet moment.
   */
  readonly #lastRetired: ServedConnection[] = [];
  #closed = false;

  /** @param log Writes a line to the log. */
  constructor(
    scheduler: Scheduler,
    vbd: Vbd,
    { owner = null, log = () => {} }: {
      owner?: ConnectionsOwner | null;
      log?: (message: string) => void;
    } = {},
  ) {
    this.scheduler = scheduler;
    this.vbd = vbd;
    this.#owner = owner;
    this.#log = new SeldomLog(scheduler, log, TELL_EVERY_MS);
    this.#due = new Deferral(scheduler);
    scheduler.addTurnWork(this, vbd);
  }

  /** How many there are. */
  get size(): number {
    return this.#connections.size;
  }

  /**
   * Serves a client, or closes its descriptor when that cannot be.
   *
   * @param memory What `ClientMemory.take` gave for it.
   * @param negotiated Whether requests follow at once, without a handshake.
   */
  add(fd: number, memory: number, { negotiated }: { negotiated: boolean }): void {
    const stage = negotiated ? "transmission" : "flags";
    const connection = new NbdConnection(fd, this.#seatAt(memory), this, stage);
    // It may hang up, and be taken out again, while it is greeted.
    this.#connections.add(connection);
    if (!negotiated) this.#noteGreeting(connection);
    try {
      connection.start();
    } catch (error) {
      this.#forget(connection);
      closeFile(fd);
      clientMemoryOf(this.vbd.requests).give(memory);
      this.note(`a client cannot be served: ${messageOf(error)}`);
    }
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

  /** Hangs up on whoever has been in the handshake for longest; false when nobody is. */
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
    this.#dueNextTurn.push(connection);
    if (this.#nextTurnTimer !== 0) return;
    this.#nextTurnTimer = this.scheduler.addTimer(0, () => {
      this.#nextTurnTimer = 0;
      for (const due of this.#dueNextTurn.splice(0)) due.nextTurn();
    });
  }

  negotiated(connection: ServedConnection): void {
    this.#greeting.delete(connection);
  }

  hangUp(connection: ServedConnection, why: string): void {
    this.note(`hung up on an NBD client: ${why}`);
    connection.close();
  }

  /** Tells the log of something about a client, unless it has been told of such a thing just now. */
  note(what: string): void {
    this.#log.write(what, `Minor ${this.vbd.minor}: ${what}`);
  }

  gone(connection: ServedConnection): void {
    this.#forget(connection);
    this.#owner?.connectionGone(connection);
  }

  #forget(connection: ServedConnection): void {
    this.#connections.delete(connection);
    this.#greeting.delete(connection);
  }

  retire(connection: ServedConnection): void {
    // Its handler may be running: its memory goes at the end of the turn.
    if (this.#closed) this.#release(connection);
    else this.#retired.push(connection);
  }

  endOfTurn(): boolean {
    if (this.#retired.length > 0) this.#releaseRetired();
    return this.#due.endOfTurn();
  }

  /** Drops all clients; none comes after that. */
  close(): void {
    if (this.#closed) return;
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
