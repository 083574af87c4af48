import { Errno } from "../../ffi/errno.ts";

/** Pause between two tries of a request, as in the reference (TD_VBD_RETRY_INTERVAL). */
export const RETRY_INTERVAL_MS = 1000;

/** How long a request is tried before its error is handed up. */
export interface RetryLimits {
  /** Tries after the first. */
  readonly attempts: number;
  /** Time since the first failure, milliseconds. */
  readonly timeoutMs: number;
}

/** Tries of a request after the first, as in the reference (TD_VBD_MAX_RETRIES). */
const DEFAULT_ATTEMPTS = 100;

/** The limits of a device: those that were asked for, or so many tries when none was. */
export function retryLimits(asked: Partial<RetryLimits> = {}): RetryLimits {
  const { timeoutMs = Infinity } = asked;
  const attempts = timeoutMs === Infinity ? DEFAULT_ATTEMPTS : Infinity;
  return { attempts: asked.attempts ?? attempts, timeoutMs };
}

/** Errors of a request that is wrong in itself: trying again cannot help. */
const final: ReadonlySet<number> = new Set([
  Errno.EINVAL,
  Errno.EPERM,
  Errno.EACCES,
  Errno.EBADF,
  Errno.EFAULT,
  Errno.EFBIG,
  Errno.EROFS,
  Errno.EOPNOTSUPP,
  Errno.ENOSYS,
]);

/** Whether a request that ended with this error is worth another try. */
export function isRetryable(errno: number): boolean {
  return !final.has(errno);
}
