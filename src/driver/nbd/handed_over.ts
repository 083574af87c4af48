import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { POLLRDHUP, waitForDescriptor } from "../../../ffi/poll.ts";

/** The most descriptors that are kept, as in the reference. */
const MOST_DESCRIPTORS = 10;

/**
 * Connections to NBD servers that another process made and handed over, by name, until an image of
 * that name is opened.
 */
export class HandedOver {
  readonly #descriptors = new Map<string, number>();

  /** How many there are. */
  get size(): number {
    return this.#descriptors.size;
  }

  /**
   * Keeps a descriptor, and closes an older one of the same name. A refused one is closed.
   *
   * @throws {SystemError} ENFILE when there are too many whose servers are still there.
   */
  put(name: string, fd: number): void {
    this.#close(name);
    if (!this.#hasRoom()) {
      closeFile(fd);
      const hint = `${MOST_DESCRIPTORS} are kept already`;
      throw new SystemError(
        Errno.ENFILE,
        `Cannot keep the descriptor ${JSON.stringify(name)} (${hint})`,
      );
    }
    this.#descriptors.set(name, fd);
  }

  /**
   * Keeps a descriptor that was taken. It is closed when there is a newer one of that name, or when
   * others took its place meanwhile: whoever gives it back is closing an image, which must not fail.
   */
  putBack(name: string, fd: number): void {
    if (this.#descriptors.has(name) || !this.#hasRoom()) closeFile(fd);
    else this.#descriptors.set(name, fd);
  }

  /** All of them, for another process. */
  all(): [name: string, fd: number][] {
    return [...this.#descriptors];
  }

  /** Whether another one can be kept. */
  #hasRoom(): boolean {
    if (this.#descriptors.size >= MOST_DESCRIPTORS) this.#closeEnded();
    return this.#descriptors.size < MOST_DESCRIPTORS;
  }

  /** Takes a descriptor, which the caller then owns. Throws `SystemError` ENOENT when there is none. */
  take(name: string, title: string): number {
    const fd = this.#descriptors.get(name);
    if (fd !== undefined) {
      this.#descriptors.delete(name);
      return fd;
    }
    const hint = "no descriptor of that name was handed over; " +
      "servers are named unix:/SOCKET[:NAME], HOST:PORT[:NAME], //HOST[:PORT]/NAME or " +
      "///NAME?socket=/SOCKET";
    throw new SystemError(Errno.ENOENT, `Cannot open ${title} (${hint})`);
  }

  #close(name: string): void {
    const fd = this.#descriptors.get(name);
    if (fd === undefined) return;
    this.#descriptors.delete(name);
    closeFile(fd);
  }

  /** Closes those whose servers have hung up. */
  #closeEnded(): void {
    for (const [name, fd] of this.#descriptors) {
      if (waitForDescriptor(fd, POLLRDHUP, 0)) this.#close(name);
    }
  }
}

/** The descriptors of this process. */
export const handedOver = new HandedOver();
