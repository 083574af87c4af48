import { SystemError } from "../../../../ffi/errno.ts";

/** Something that must not be. */
export class Finding extends Error {
  override readonly name = "Finding";
}

/** Throws a finding unless a condition holds. */
export function hold(condition: boolean, what: string | (() => string)): asserts condition {
  if (!condition) throw new Finding(typeof what === "string" ? what : what());
}

/** The longest message of an error, in characters. */
const MOST_CHARACTERS = 40_000;
/** Words in a message that show that a value was missing. */
const LEFTOVERS = /\bundefined\b|\bNaN\b|\[object |\bInfinity\b/;

/**
 * Returns an error that may be: a `SystemError` that says what failed.
 *
 * @throws The error itself when it is of any other kind.
 */
export function refusalOf(error: unknown): SystemError {
  if (!(error instanceof SystemError)) throw error;
  const { message, errno } = error;
  hold(errno > 0 && errno < 134, () => `An error has number ${errno}: ${message}`);
  hold(
    message.length > 10 && message.length < MOST_CHARACTERS && !LEFTOVERS.test(message),
    () => `An error says: ${message}`,
  );
  return error;
}

/** What a call returns, or its refusal. */
export function attempt<T>(call: () => T): T | SystemError {
  try {
    return call();
  } catch (error) {
    return refusalOf(error);
  }
}
