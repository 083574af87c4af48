import { Errno, SystemError } from "../../ffi/errno.ts";
import type { DriverContext, ImageSpec, Prepared } from "../driver/driver.ts";
import { checkedLayer } from "./chain.ts";

/**
 * Does what opening an image takes time for, such as connecting to a server, while the loop serves
 * other disks.
 */
export class Preparation {
  /** What was prepared for the image that is being opened. */
  #prepared: Prepared | null = null;
  #cancel: (() => void) | null = null;

  /** Whether one is under way. */
  get isRunning(): boolean {
    return this.#cancel !== null;
  }

  /**
   * Prepares an image. Calls back at once where nothing takes time.
   *
   * @param ready Opens the image, which takes what was prepared by `take`; or null and an error.
   */
  run(
    leaf: ImageSpec,
    { scheduler, files: { storage } }: Pick<DriverContext, "scheduler" | "files">,
    ready: (error: unknown) => void,
  ): void {
    let isOver = false;
    const end = (error: unknown, prepared: Prepared | null): void => {
      isOver = true;
      this.#cancel = null;
      this.#prepared = prepared;
      ready(error);
      // What the image did not take is of no use.
      this.take()?.discard();
    };
    let stop: () => void;
    try {
      const { driver, rest } = checkedLayer(leaf);
      if (driver.prepare === undefined) return end(null, null);
      const spec = { ...leaf, type: driver.type, path: rest };
      stop = driver.prepare(spec, scheduler, end, storage);
    } catch (error) {
      if (isOver) throw error;
      return end(error, null);
    }
    if (isOver) return;
    this.#cancel = () => {
      stop();
      const what = `Cannot open ${leaf.type}:${leaf.path} (it was given up)`;
      end(new SystemError(Errno.ECANCELED, what), null);
    };
  }

  /** What was prepared; null when nothing was, or it was taken. */
  take(): Prepared | null {
    const prepared = this.#prepared;
    this.#prepared = null;
    return prepared;
  }

  /** Gives up a preparation that is under way (ECANCELED). */
  cancel(): void {
    this.#cancel?.();
  }
}
