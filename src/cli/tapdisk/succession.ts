/**
 * The turns of the runtime in which a process that has handed its disks over waits for signals. One that
 * came while it handed over has been noted by the kernel, and is told in the first ones.
 */
const LAST_TURNS = 10;

/** The end of a process whose disks another one has taken over: signals to it go to the other one. */
export class Succession {
  #pid: number | null = null;
  /** A signal that is in effect until a time. */
  #noted: { readonly signal: Deno.Signal; readonly untilMs: number } | null = null;

  /** The process that serves the disks; null while it is this one. */
  get pid(): number | null {
    return this.#pid;
  }

  /** A signal has an effect for a time: a process that takes over meanwhile must get it, too. */
  note(signal: Deno.Signal, effectMs: number): void {
    this.#noted = { signal, untilMs: performance.now() + effectMs };
  }

  /** Another process serves the disks. */
  begin(pid: number): void {
    this.#pid = pid;
    const noted = this.#noted;
    if (noted !== null && performance.now() < noted.untilMs) this.passOn(noted.signal);
  }

  /** Ends when the signals that came before it were sent on. */
  async lastTurns(): Promise<void> {
    for (let i = 0; i < LAST_TURNS; i++) await new Promise((resolve) => setTimeout(resolve, 0));
  }

  /** Sends a signal on; false while this process serves the disks. */
  passOn(signal: Deno.Signal): boolean {
    if (this.#pid === null) return false;
    try {
      Deno.kill(this.#pid, signal);
    } catch {
      // It has ended, with its disks.
    }
    return true;
  }
}
