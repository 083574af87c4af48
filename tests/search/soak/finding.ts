/**
 * What a soak ends with when something is wrong.
 *
 * @module
 */

/** Something that must not be. The first one ends the soak. */
export class Finding extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "Finding";
  }
}

/** An error with its causes, for a report. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const text = error instanceof Finding ? error.message : error.stack ?? error.message;
  return error.cause === undefined ? text : `${text}\ncaused by: ${describeError(error.cause)}`;
}
