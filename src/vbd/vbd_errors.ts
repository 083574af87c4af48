/**
 * Why a device does not do what it is asked, in its present state. Each message says all.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";

/** A device, as its errors name it. */
interface Named {
  readonly minor: number;
  /** Name of its image; empty without one. */
  readonly name: string;
}

/** An error whose message is all of `message`. */
function sayingAll(errno: number, message: string): SystemError {
  return new SystemError(errno, message, { message });
}

/** It has an image already. */
export function taken({ minor }: Named, name: string): SystemError {
  return new SystemError(Errno.EEXIST, `Cannot open ${name}: minor ${minor} has an image`);
}

/** It has no image, or is changing its state. */
export function busy({ minor, name }: Named): SystemError {
  return name === ""
    ? sayingAll(Errno.EINVAL, `Minor ${minor} has no image`)
    : sayingAll(Errno.EAGAIN, `Minor ${minor} is changing its state; try again`);
}

/**
 * A pause or a snapshot failed, perhaps.
 *
 * @param why Why its images could not be opened again after that.
 */
export function notOpenAgain<Failure extends SystemError | null>(
  { minor, reopening }: Named & { readonly reopening: { readonly isRunning: boolean } },
  error: Failure,
  why: SystemError | null,
): Failure | SystemError {
  if (error === null || why === null) return error;
  const then = reopening.isRunning
    ? "; its requests wait, and that is tried again each second, or at once by 'tap-ctl unpause'"
    : "";
  const message = `${error.message}; minor ${minor} does not run: ${why.message}${then}`;
  return new SystemError(error.errno, message, { message, cause: error });
}

/** It could not be paused in time. */
export function lateToPause(
  { minor, requests }: Named & { readonly requests: { readonly outstanding: number } },
): SystemError {
  const message = `Cannot pause minor ${minor} in time: its disk owes answers, and ` +
    `${requests.outstanding} requests have not ended; it runs on`;
  return sayingAll(Errno.ETIMEDOUT, message);
}

/** Its pause was given up. */
export function pauseCancelled({ minor }: Named): SystemError {
  const why = "nobody waits for it any more, or the disk is to be closed";
  return sayingAll(Errno.ECANCELED, `Cannot pause minor ${minor}: ${why}`);
}

/** A fault has ended it. */
export function endedByFault({ minor }: Named): SystemError {
  const message = `Minor ${minor} was ended by a fault of this program (see the log); ` +
    "'tap-ctl unpause' or 'tap-ctl recover' opens its image again";
  return sayingAll(Errno.EIO, message);
}
