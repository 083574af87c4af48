import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import type { NbdConnection } from "./connection.ts";
import type { ExportDescription } from "./handshake.ts";
import type { NbdSlots } from "./nbd_slots.ts";

/** What a connection needs of the server that accepted it. */
export interface ConnectionHost {
  readonly scheduler: Scheduler;
  readonly vbd: Vbd;
  readonly slots: NbdSlots;
  describe(): ExportDescription;
  /** The connection has answers to send at the end of the turn. */
  makeDue(connection: NbdConnection): void;
  /** The connection has more to do than one turn allows: `nextTurn` is called in the next. */
  makeDueNextTurn(connection: NbdConnection): void;
  /** The handshake is over. */
  negotiated(connection: NbdConnection): void;
  /** Closes a connection that breaks the rules, and logs why. */
  hangUp(connection: NbdConnection, why: string): void;
  /** The connection has closed its descriptor. */
  gone(connection: NbdConnection): void;
  /** The last of its requests has ended, too. */
  retire(connection: NbdConnection): void;
}
