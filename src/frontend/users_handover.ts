import type { HandedOverClient } from "./nbd/connection_host.ts";

/** The users of a disk at one of its frontends, as far as another process can go on with them. */
export interface UsersHandover {
  /** Why another process cannot go on with them; null when it can. */
  readonly whyStaying: string | null;
  /** What the other process must know of, as not all versions do; null for nothing. */
  readonly needs: string | null;
  /** Takes no more requests, from the ends of those that are being received; or takes them again. */
  hold(isHeld: boolean): void;
  /** Whether all are held, and nothing that they have asked for is under way. */
  readonly areQuiet: boolean;
  /** Closes the connections that are in the handshake. */
  dropGreetings(): void;
  /** Closes the connections of those that would not notice that another process had begun to serve them. */
  drop(why: string): void;
  /** The clients whose descriptors are handed over. */
  handOver(): HandedOverClient[];
  /** Serves a client of another process. Throws `SystemError`; its descriptor is closed then. */
  resume(client: HandedOverClient): void;
  /** Another process serves, and this one is about to end: looks at nothing that comes from here on. */
  leave?(): void;
  /** Another process serves, and this one ends at once: gives up what cannot be shared. */
  letGo?(): void;
}
