import { Deferral } from "../../driver/deferral.ts";
import type { Scheduler, TurnWork } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { NbdConnection } from "./connection.ts";
import type { ConnectionHost } from "./connection_host.ts";
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
  connectionGone(connection: NbdConnection): void;
  /** The last of its requests has ended, and its memory is free again. */
  connectionRetired(connection: NbdConnection): void;
}

/** The connections to one device, wherever they come from. */
export class NbdConnections implements ConnectionHost, TurnWork {
  readonly scheduler: Scheduler;
  readonly vbd: Vbd;
  readonly slots = new NbdSlots();
  readonly #owner: ConnectionsOwner | null;
  readonly #connections = new Set<NbdConnection>();
  /** Those with answers to send. */
  readonly #due: Deferral;
  #retired: NbdConnection[] = [];
  /**
   * The client that left last. While there is no object of a class, the runtime forgets what it has
   * learnt of the class, machine code with it: each client would start slow after a quiet moment.
   */
  readonly #lastRetired: NbdConnection[] = [];
  #closed = false;

  constructor(scheduler: Scheduler, vbd: Vbd, owner: ConnectionsOwner | null = null) {
    this.scheduler = scheduler;
    this.vbd = vbd;
    this.#owner = owner;
    this.#due = new Deferral(scheduler);
    scheduler.addTurnWork(this, vbd);
  }

  /** How many there are. */
  get size(): number {
    return this.#connections.size;
  }

  /**
   * Serves a client.
   *
   * @param memory What `Requests.takeClientMemory` gave for it.
   * @param negotiated Whether requests follow at once, without a handshake.
   */
  add(fd: number, memory: number, { negotiated }: { negotiated: boolean }): void {
    const stage = negotiated ? "transmission" : "flags";
    this.#connections.add(new NbdConnection(fd, memory, this, stage));
  }

  describe(): ExportDescription {
    return describeExport(this.vbd);
  }

  makeDue(connection: NbdConnection): void {
    this.#due.add(connection);
  }

  gone(connection: NbdConnection): void {
    this.#connections.delete(connection);
    this.#owner?.connectionGone(connection);
  }

  retire(connection: NbdConnection): void {
    // Its handler may be running: its memory goes at the end of the turn.
    if (this.#closed) connection.release();
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
    for (const connection of this.#connections) connection.close();
    this.#releaseRetired();
    this.#closed = true;
  }

  #releaseRetired(): void {
    for (const connection of this.#retired.splice(0)) {
      connection.release();
      this.#lastRetired[0] = connection;
      this.#owner?.connectionRetired(connection);
    }
  }
}
