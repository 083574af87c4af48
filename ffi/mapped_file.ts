/**
 * A file in memory: what is stored there is in the file, at once for all processes, and after a sync
 * on the disk.
 *
 * @module
 */
import { lastErrno, SystemError } from "./errno.ts";
import { memoryAt, openLibcLater, pointerAddress } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
  mmap: { parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
  // int munmap(void *addr, size_t length)
  munmap: { parameters: ["usize", "usize"], result: "i32" },
});

const PROT_READ_WRITE = 3;
const MAP_SHARED = 0x01;
/** The pages are read now, so that the first store to one does not wait for the disk. */
const MAP_POPULATE = 0x8000;

/** A mapping of the first bytes of a file. */
export class MappedFile {
  readonly #address: number;
  readonly #lengthBytes: number;
  /** The file's bytes. They must not be touched after `unmap`. */
  readonly bytes: Uint8Array<ArrayBuffer>;

  /**
   * Maps a file that is at least `lengthBytes` long. A store to a part that the file no longer has
   * ends the process, so the file must not be cut while it is mapped.
   *
   * @throws {SystemError}
   */
  constructor(fd: number, lengthBytes: number) {
    const pointer = libc.mmap(0, lengthBytes, PROT_READ_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    const address = pointerAddress(pointer);
    if (address === 0 || address > Number.MAX_SAFE_INTEGER) {
      throw new SystemError(lastErrno(), `Cannot map ${lengthBytes} bytes of descriptor ${fd}`);
    }
    this.#address = address;
    this.#lengthBytes = lengthBytes;
    this.bytes = new Uint8Array(memoryAt(address, lengthBytes));
  }

  /** Ends the mapping. */
  unmap(): void {
    libc.munmap(this.#address, this.#lengthBytes);
  }
}
