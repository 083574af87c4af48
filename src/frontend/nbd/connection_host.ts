import type { SecureStream } from "../../../ffi/secure_stream.ts";
import type { Deferred } from "../../driver/deferral.ts";
import type { Meter } from "../../metrics/meter.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import type { ClientSeat } from "./client_seat.ts";
import type { ExportDescription, GreetingStyle, Handshake, HandshakeState } from "./handshake.ts";
import type { NbdSlots } from "./nbd_slots.ts";

/** A client that has ended its handshake on a port that disks share. */
export interface EnteredClient {
  readonly handshake: Handshake;
  /** What it has sent behind the handshake. */
  readonly rest: Uint8Array;
  /** Its TLS; null without. */
  readonly tls: SecureStream | null;
  /** Where it entered. */
  readonly place: PortPlace;
  /** Called when it has gone. */
  left(): void;
}

/** The export of a port that a client uses, and where the client comes from. */
export interface PortPlace {
  /** The addresses and the port, as they are written; a process of an earlier version does not tell. */
  readonly at?: string;
  readonly port: number;
  readonly name: string;
  readonly from: string;
}

/** A client that owes and is owed nothing. */
export interface HandedClient {
  readonly fd: number;
  readonly handshake: HandshakeState;
  /** What it has sent and was not carried out. */
  readonly rest: Uint8Array<ArrayBuffer>;
}

/** What another process must know of a client to go on with it. */
export interface ClientState {
  readonly style: GreetingStyle;
  readonly handedOver: boolean;
  readonly handshake: HandshakeState;
  /** Of a client that came over TCP. */
  readonly place?: PortPlace;
}

/** A client that owes and is owed nothing, for another process. */
export interface HandedOverClient {
  readonly fd: number;
  readonly state: ClientState;
  /** What it has sent and was not carried out. */
  readonly rest: Uint8Array<ArrayBuffer>;
  /** Whether it has TLS, which the kernel encrypts and decrypts. */
  readonly isTls: boolean;
}

/** A client that another process served before. */
export interface ResumedClient {
  readonly state: ClientState;
  /** What it has sent and the other process did not carry out. */
  readonly rest: Uint8Array;
  /** Its TLS; null without. */
  readonly tls: SecureStream | null;
  /** Called when it has gone. */
  left(): void;
}

/** What is known of a client when it comes. */
export interface ClientKind {
  /** Of a client whose handshake has ended already. */
  readonly entered?: EnteredClient;
  /** Of a client of another process. */
  readonly resumed?: ResumedClient;
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
  /** What was known of it when it came. */
  readonly kind: ClientKind;
  /** Takes no more requests, from the end of the one that is being received; or takes them again. */
  hold(isHeld: boolean): void;
  /** Whether it is held, and owes nothing. */
  readonly isQuiet: boolean;
  /** A client that is quiet, for another process to go on with. */
  handOver(): HandedClient;
  /**
   * Closes a connection whose client has hung up, before another client makes requests. What it sent
   * before NBD_CMD_DISC is begun, as far as there are slots; what had no answer else is given up.
   */
  leaveIfGone(): void;
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
