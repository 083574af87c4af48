import { type Done, systemError } from "../../../ffi/errno.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";

/** How much is done in one turn of the loop. */
const A_TURN = 2;

/**
 * Calls `visit` with each item, a few in a turn of the loop, so that requests of disks do not wait for all of
 * them. An error ends it.
 */
export function inTurns<Item>(
  scheduler: Scheduler,
  items: readonly Item[],
  visit: (item: Item) => void,
  done: Done,
): void {
  let at = 0;
  const turn = (): void => {
    try {
      for (const item of items.slice(at, at + A_TURN)) visit(item);
    } catch (error) {
      return done(systemError(error, "Cannot go through the devices"));
    }
    at += A_TURN;
    if (at >= items.length) done(null);
    else scheduler.addTimer(0, turn);
  };
  turn();
}
