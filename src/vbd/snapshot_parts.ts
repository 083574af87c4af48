import { Errno, SystemError } from "../../ffi/errno.ts";
import type { Vbd } from "./vbd.ts";

/** What was being done, for errors of the runtime. */
export const WHAT = "Cannot make a snapshot";

/** A snapshot that was made. */
export interface LiveSnapshot {
  /** Name of the image that is open now, `type:path`. */
  readonly name: string;
  /** Path of the image that keeps what the disk held at that moment. */
  readonly parent: string;
  /** How long requests were held back, milliseconds. */
  readonly stallMs: number;
}

/** The image would not keep what the disk holds. Throws `SystemError` EBUSY. */
export function refuseSecondary({ minor, secondary }: Vbd): void {
  if (!secondary.hasOwnData) return;
  const why = "its secondary image has data that the image lacks";
  throw new SystemError(Errno.EBUSY, `Cannot make a snapshot of minor ${minor} (${why})`);
}

/** An error with more behind its message. */
export function withMore(error: SystemError, more: string): SystemError {
  if (more === "") return error;
  const message = `${error.message}${more}`;
  return new SystemError(error.errno, message, { message, cause: error });
}

/** Throws the reason why no snapshot is made. */
export function refuserOf(vbd: Vbd): (errno: number, why: string) => never {
  return (errno, why) => {
    throw new SystemError(errno, `Cannot make a snapshot of minor ${vbd.minor} (${why})`);
  };
}

/** Refuses a device without an image that is written to. */
export function requireRunning(vbd: Vbd): void {
  const refuse = refuserOf(vbd);
  if (vbd.name === "") refuse(Errno.EINVAL, "it has no image");
  if (vbd.phase !== "open") {
    const isPaused = vbd.phase === "paused";
    refuse(Errno.EAGAIN, isPaused ? "it is paused" : "it is changing its state");
  }
  refuseSecondary(vbd);
  if (vbd.readOnly) refuse(Errno.EROFS, `${vbd.name} is open for reading only`);
}
