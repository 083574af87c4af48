/**
 * Memory for keys. Each secret has a page of its own outside of the JavaScript heap, which is locked in
 * RAM, left out of core dumps, and zeros in a child process. The garbage collector neither copies nor
 * keeps it.
 *
 * @module
 */
import { assert } from "./assert.ts";
import { lastErrno, SystemError } from "./errno.ts";
import { memoryAt, openLibcLater, pointerAddress } from "./libc.ts";
import { PAGE_BYTES } from "./memory.ts";
import { hideMemory } from "./process.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
  mmap: { parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
  // int madvise(void *addr, size_t length, int advice)
  madvise: { parameters: ["usize", "usize", "i32"], result: "i32" },
  // int mlock(const void *addr, size_t len)
  mlock: { parameters: ["usize", "usize"], result: "i32" },
  // void explicit_bzero(void *s, size_t n)
  explicit_bzero: { parameters: ["usize", "usize"], result: "void" },
});

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_PRIVATE = 0x02;
const MAP_ANONYMOUS = 0x20;
const MADV_DONTDUMP = 16;
const MADV_WIPEONFORK = 18;

/** Why memory with a key could not be locked; null while all of it is. */
let failure: SystemError | null = null;

/**
 * Why some memory with a key is not locked in RAM, so that the kernel may write it to swap; null when
 * all of it is locked.
 */
export function secretsNotLocked(): SystemError | null {
  return failure;
}

/** Notes that memory with a key is not locked. */
export function noteNotLocked(errno: number): void {
  failure ??= new SystemError(
    errno,
    "Cannot lock the memory of a key, which the kernel may then write to swap; allow more locked " +
      "memory (ulimit -l, LimitMEMLOCK=) or encrypt the swap",
  );
}

/** Locks the pages of a range in RAM, and leaves them out of core dumps. */
export function lockPages(address: number, lengthBytes: number): void {
  const start = Math.floor(address / PAGE_BYTES) * PAGE_BYTES;
  const end = Math.ceil((address + lengthBytes) / PAGE_BYTES) * PAGE_BYTES;
  // Kernels refuse advice for some mappings. Core dumps of the whole process are disabled, too.
  libc.madvise(start, end - start, MADV_DONTDUMP);
  if (libc.mlock(start, end - start) < 0) noteNotLocked(lastErrno());
}

interface Page {
  readonly address: number;
  readonly buffer: ArrayBuffer;
}

/** Pages that were wiped, for the next secrets. They are never unmapped: views of them may exist. */
const freePages: Page[] = [];

function mapPage(): Page {
  hideMemory();
  const flags = MAP_PRIVATE | MAP_ANONYMOUS;
  const address = pointerAddress(
    libc.mmap(0, PAGE_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0),
  );
  if (address === 0 || address > Number.MAX_SAFE_INTEGER) {
    throw new SystemError(lastErrno(), "Cannot map memory for a key");
  }
  libc.madvise(address, PAGE_BYTES, MADV_WIPEONFORK);
  lockPages(address, PAGE_BYTES);
  return { address, buffer: memoryAt(address, PAGE_BYTES) };
}

/** The bytes of a key. With the first secret, core dumps and tracing of the process are disabled. */
export class Secret {
  /** The bytes, zeros at first. They must not be copied to other memory. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #page: Page;
  #released = false;

  /** @throws {SystemError} ENOMEM. */
  constructor(lengthBytes: number) {
    assert(lengthBytes <= PAGE_BYTES, "A secret is larger than a page");
    this.#page = freePages.pop() ?? mapPage();
    this.bytes = new Uint8Array(this.#page.buffer, 0, lengthBytes);
  }

  /** Address of the first byte. */
  get address(): number {
    return this.#page.address;
  }

  /** Overwrites the bytes. They may be used again. */
  wipe(): void {
    libc.explicit_bzero(this.#page.address, PAGE_BYTES);
  }

  /** Overwrites the bytes for the last time. Another secret may get the memory. */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    this.wipe();
    freePages.push(this.#page);
  }

  /** A secret with a part of these bytes. */
  slice(start: number, end: number): Secret {
    const part = new Secret(end - start);
    part.bytes.set(this.bytes.subarray(start, end));
    return part;
  }
}
