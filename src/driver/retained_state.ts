import { Errno, SystemError } from "../../ffi/errno.ts";

/** Something in memory that an image keeps while it is closed. */
export interface Retained {
  /** Gives its memory back; it is not used again. */
  release(): void;
  /** Whether nothing would be lost with it. */
  readonly isEmpty?: boolean;
}

/**
 * What the images of a device keep in memory while they are closed because the device is paused: the
 * contents of a RAM disk, the log of writes. It is released when the device is closed, or when it
 * resumes with images that do not ask for it.
 */
export class RetainedState {
  /** How often images were opened, or were to be. */
  opens = 0;
  readonly #kept = new Map<string, Retained>();
  readonly #wanted = new Set<string>();

  /** Images are about to be opened. Until `opened`, each asks for what it kept. */
  opening(): void {
    this.opens++;
    this.#wanted.clear();
  }

  /** The images are open: what none of them asked for is released. */
  opened(): void {
    for (const name of this.#kept.keys()) if (!this.#wanted.has(name)) this.#release(name);
  }

  /**
   * Returns what was kept under a name by this kind of image, or a new one, which is kept from then
   * on.
   *
   * @throws {SystemError} EINVAL when another of the images that are being opened has it.
   */
  take<Kind extends Retained>(
    name: string,
    { kind, make }: { kind: new (...args: never[]) => Kind; make: () => Kind },
  ): Kind {
    if (this.#wanted.has(name)) {
      throw new SystemError(
        Errno.EINVAL,
        `Cannot open the images: only one of them can be ${name}`,
      );
    }
    const known = this.#kept.get(name);
    const thing = known instanceof kind ? known : make();
    if (known !== thing) known?.release();
    this.#kept.set(name, thing);
    this.#wanted.add(name);
    return thing;
  }

  /** What is kept of this kind; undefined without one. */
  find<Kind extends Retained>(kind: new (...args: never[]) => Kind): Kind | undefined {
    for (const thing of this.#kept.values()) if (thing instanceof kind) return thing;
    return undefined;
  }

  /** What would be lost with this process. */
  get names(): string[] {
    return [...this.#kept].filter(([, { isEmpty }]) => isEmpty !== true).map(([name]) => name);
  }

  /** Releases everything. */
  releaseAll(): void {
    for (const name of this.#kept.keys()) this.#release(name);
  }

  #release(name: string): void {
    this.#kept.get(name)?.release();
    this.#kept.delete(name);
  }
}
