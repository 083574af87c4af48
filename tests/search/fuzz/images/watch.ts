import { normalizePath } from "../../../../src/files/paths.ts";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { hold } from "./finding.ts";
import { FOLDER } from "./worlds.ts";

/** The most operations of one action. */
const MOST_OPERATIONS = 400_000;
/** The most bytes that one action reads and writes. */
const MOST_BYTES = 4 * 1024 ** 3;

/**
 * Watches the operations on a disk: no file outside the folder of the images is opened, nothing is
 * written but what an action may write, and an action ends within bounds.
 */
export class Watch {
  readonly #written = new Set<string>();
  #operations = 0;
  #bytes = 0;

  constructor(disk: SimulatedDisk) {
    disk.beforeOperation = ({ kind, path, lengthBytes }) => {
      if (++this.#operations > MOST_OPERATIONS) {
        hold(false, `More than ${MOST_OPERATIONS} operations`);
      }
      if (kind === "read" || kind === "sync" || kind === "sync folder") {
        this.#bytes += lengthBytes;
        if (this.#bytes > MOST_BYTES) hold(false, `More than ${MOST_BYTES} bytes are read`);
        return 0;
      }
      const name = normalizePath(disk, path);
      hold(
        name.startsWith(`${FOLDER}/`),
        () => `${kind} of ${name}, which is outside of ${FOLDER}`,
      );
      if (kind !== "open") this.#written.add(name);
      return 0;
    };
  }

  /** Forgets what was before. */
  start(): void {
    this.#written.clear();
    this.#operations = 0;
    this.#bytes = 0;
  }

  /** Whether a file was written since `start`. */
  wrote(path: string): boolean {
    return this.#written.has(path);
  }

  /** Requires that only these files were written since `start`. */
  requireWritten(...allowed: readonly string[]): void {
    for (const path of this.#written) {
      hold(allowed.includes(path), () => `${path} was written`);
    }
  }

  /** Requires that these files were not written since `start`. */
  requireNotWritten(...paths: readonly string[]): void {
    for (const path of paths) hold(!this.#written.has(path), () => `${path} was written`);
  }
}
