import { Errno, SystemError } from "../../ffi/errno.ts";
import type { DriverContext, ImageSpec, Prepared } from "../driver/driver.ts";
import { fileInName } from "../driver/layers.ts";
import type { WithLock } from "../files/locks_ahead.ts";
import type { DiskFiles } from "../queue/disk_files.ts";
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
   * @param written The image whose file is written; by default the same.
   * @param ready Opens the image, which takes what was prepared by `take`; or null and an error.
   */
  run(
    leaf: ImageSpec,
    context: Pick<DriverContext, "scheduler" | "files">,
    ready: (error: unknown) => void,
    written = leaf,
  ): void {
    const locking = lockLeaf(written, context.files);
    if (locking === null) return this.#prepare(leaf, context, ready);
    let isWanted = true;
    const locked = locking.then(
      (withLock) => ({ withLock, error: null }),
      (error: unknown) => ({ withLock: null, error }),
    );
    context.scheduler.settle(locked, ({ withLock, error }) => {
      if (!isWanted) return withLock?.(() => {});
      this.#cancel = null;
      if (withLock === null) return ready(error);
      this.#prepare(leaf, context, (failure) => withLock(() => ready(failure)));
    });
    this.#cancel = () => {
      isWanted = false;
      this.#cancel = null;
      ready(givenUp(leaf));
    };
  }

  #prepare(
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
      end(givenUp(leaf), null);
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

function givenUp({ type, path }: ImageSpec): SystemError {
  const what = `Cannot open ${type}:${path} (it was given up)`;
  return new SystemError(Errno.ECANCELED, what);
}

/** Takes the lock of the file that an image is written to; null where that takes no time. */
function lockLeaf(
  { type, path, readOnly, direct }: ImageSpec,
  files: DiskFiles,
): Promise<WithLock> | null {
  const file = readOnly ? null : fileInName(`${type}:${path}`);
  return file === null ? null : files.lockAhead?.(file.path, { direct }) ?? null;
}
