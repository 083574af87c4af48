import type { TlsStream } from "../../../ffi/tls_stream.ts";
import type { Deferred } from "../../driver/deferral.ts";
import type { Meter } from "../../metrics/meter.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import type { ClientSeat } from "./client_seat.ts";
import type { ExportDescription, GreetingStyle, Handshake } from "./handshake.ts";
import type { NbdSlots } from "./nbd_slots.ts";

/** A client that has ended its handshake on a port that disks share. */
export interface EnteredClient {
  readonly handshake: Handshake;
  /** What it has sent behind the handshake. */
  readonly rest: Uint8Array;
  /** Its TLS; null without. */
  readonly tls: TlsStream | null;
  /** Called when it has gone. */
  left(): void;
}

/** What is known of a client when it comes. */
export interface ClientKind {
  /** Of a client whose handshake has ended already. */
  readonly entered?: EnteredClient;
  readonly style: GreetingStyle;
  /**
   * Whether another process handed the client's descriptor over. Its client may take long to answer
   * the greeting, and comes back on the same descriptor after NBD_CMD_DISC, as in the reference.
   */
  readonly handedOver: boolean;
}

/** A connection, as the server that accepted it sees it. */
export interface ServedConnection extends Deferred {
  /** The memory of the client. */
  readonly seat: ClientSeat;
  /** Whether the client sent NBD_CMD_DISC. */
  readonly hasLeft: boolean;
  /** Continues in a new turn, after `makeDueNextTurn`. */
  nextTurn(): void;
  /** Drops the client. Its requests in flight end by themselves. */
  close(): void;
}

/** What a connection needs of the server that accepted it. */
export interface ConnectionHost {
  readonly scheduler: Scheduler;
  readonly vbd: Vbd;
  readonly slots: NbdSlots;
  /** Counts requests for monitoring programs, by the slot of their head. */
  readonly meter: Meter;
  /** The export as it is now. */
  describe(): ExportDescription;
  /** The connection has replies to send at the end of the turn. */
  makeDue(connection: ServedConnection): void;
  /** The connection has more work than a turn allows: `nextTurn` is called in the next turn. */
  makeDueNextTurn(connection: ServedConnection): void;
  /** The handshake has ended. */
  negotiated(connection: ServedConnection): void;
  /** Closes a connection that violates the protocol or a limit, and logs why. */
  hangUp(connection: ServedConnection, why: string): void;
  /** The connection has ended, and hands its descriptor back. */
  gone(connection: ServedConnection, fd: number, kind: ClientKind): void;
  /** The last request of a closed connection has ended. */
  retire(connection: ServedConnection): void;
}
