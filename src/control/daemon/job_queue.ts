import { assert } from "../../../ffi/assert.ts";

/** Exclusive work on a minor. */
export interface Job {
  readonly minor: number;
  /** Whether it cancels the cancellable jobs of its minor. */
  readonly preempts: boolean;
  run(finished: () => void): void;
  /** Cancels the job while it waits or runs; it then finishes soon. */
  cancel?(): void;
  /** Answers with an error and finishes the job, whatever it waits for. */
  fail?(error: Error): void;
}

/** The jobs of all minors. For each minor one runs at a time, in the order in which they came. */
export class JobQueue {
  #waiting: Job[] = [];
  readonly #running = new Map<number, Job>();
  /** The job of all minors, while it waits; and whether it runs. */
  #whole: ((finished: () => void) => void) | null = null;
  #isWhole = false;

  /** Adds a job. A cancellable job behind one that preempts is cancelled at once. */
  add(job: Job): void {
    const running = this.#running.get(job.minor);
    const waiting = this.#waiting.filter(({ minor }) => minor === job.minor);
    const last = waiting.at(-1) ?? running;
    if (last?.preempts === true && job.cancel !== undefined) return job.cancel();
    this.#waiting.push(job);
    if (job.preempts) { for (const earlier of waiting) earlier.cancel?.(); }
    if (running === undefined) this.#next();
    else if (job.preempts) running.cancel?.();
  }

  /**
   * Runs a job when no other runs, and starts no other until it has finished. One at a time.
   *
   * @returns A function that gives it up before it runs; false when it runs already.
   */
  whole(run: (finished: () => void) => void): () => boolean {
    assert(this.#whole === null, "One job at a time is that of all minors");
    this.#whole = run;
    this.#next();
    return () => {
      if (this.#whole !== run) return false;
      this.#wholeEnded();
      return true;
    };
  }

  #wholeEnded(): void {
    this.#whole = null;
    this.#isWhole = false;
    this.#next();
  }

  /** Whether the job of all minors runs or waits. */
  #keepsWhole(): boolean {
    const run = this.#whole;
    if (run !== null && this.#running.size === 0) {
      this.#whole = null;
      this.#isWhole = true;
      run(() => this.#wholeEnded());
    }
    return run !== null || this.#isWhole;
  }

  /** Starts the first job of each minor for which none runs. */
  #next(): void {
    if (this.#keepsWhole()) return;
    const held = new Set(this.#running.keys());
    const ready = this.#waiting.filter(({ minor }) => {
      const mayStart = !held.has(minor);
      held.add(minor);
      return mayStart;
    });
    this.#waiting = this.#waiting.filter((job) => !ready.includes(job));
    for (const job of ready) this.#running.set(job.minor, job);
    for (const job of ready) {
      job.run(() => {
        if (this.#running.get(job.minor) !== job) return;
        this.#running.delete(job.minor);
        this.#next();
      });
    }
  }

  /** The job of a minor that runs. */
  runningOf(minor: number): Job | undefined {
    return this.#running.get(minor);
  }
}
