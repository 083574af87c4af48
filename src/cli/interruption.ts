/** Signals that end a command in order. */
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
const NUMBERS: Readonly<Record<(typeof SIGNALS)[number], number>> = {
  SIGINT: 2,
  SIGTERM: 15,
  SIGHUP: 1,
};

/** A signal stopped the work. Nothing of it is left behind. */
export class Interrupted extends Error {
  /** The exit status that shells give a program that the signal ended. */
  readonly status: number;

  constructor(readonly signal: (typeof SIGNALS)[number]) {
    super(`Stopped by ${signal}`);
    this.status = 128 + NUMBERS[signal];
  }
}

/**
 * Runs work that can be aborted and then cleans up. The first SIGINT, SIGTERM or SIGHUP aborts it. A
 * second one ends the process at once.
 *
 * @throws {Interrupted} When the work failed after a signal aborted it.
 */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  let first: (typeof SIGNALS)[number] | null = null;
  const listeners = SIGNALS.map((signal) => {
    const listener = (): void => {
      if (first !== null) Deno.exit(128 + NUMBERS[signal]);
      first = signal;
      controller.abort();
    };
    Deno.addSignalListener(signal, listener);
    return { signal, listener };
  });
  try {
    return await work(controller.signal);
  } catch (error) {
    if (first !== null) throw new Interrupted(first);
    throw error;
  } finally {
    for (const { signal, listener } of listeners) Deno.removeSignalListener(signal, listener);
  }
}
