import { Errno } from "../../../ffi/errno.ts";
import { TapdiskError } from "../../control/client/connection.ts";

/**
 * Runs an order for whose refusal by a tapdisk the original ends with EINVAL, whatever the reason is.
 * The message tells the reason.
 */
export function statusOfOriginal(order: () => void): void {
  try {
    order();
  } catch (error) {
    if (!(error instanceof TapdiskError)) throw error;
    throw new TapdiskError(Errno.EINVAL, error.message);
  }
}
