import { Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import { printErrorLine } from "../print.ts";

/** Runs steps, each whether or not others fail. The exit status is that of the first failure. */
export class Tries {
  readonly #what: string;
  readonly #of: string;
  #count = 0;
  #failed = 0;
  #errno = 0;

  /**
   * @param what What each step does, such as `recovered`.
   * @param of What it does that to.
   */
  constructor(what: string, of = "disks") {
    this.#what = what;
    this.#of = of;
  }

  async each(what: string, work: () => Promise<void>): Promise<void> {
    this.#count++;
    try {
      await work();
    } catch (error) {
      this.fail(what, error);
    }
  }

  fail(what: string, error: unknown): void {
    this.#failed++;
    if (error instanceof Error && "errno" in error && typeof error.errno === "number") {
      this.#errno ||= error.errno;
    }
    printErrorLine(`${what}: ${messageOf(error)}`);
  }

  /** Throws `SystemError` when something failed. */
  end(): void {
    if (this.#failed === 0) return;
    const what = `${this.#failed} of ${this.#count} ${this.#of} are not ${this.#what}`;
    throw new SystemError(this.#errno || Errno.EIO, what);
  }
}
