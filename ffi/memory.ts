/**
 * Memory outside of the JavaScript heap: mapped once, viewed by typed arrays, handed to the kernel
 * by address.
 *
 * @module
 */
import { lastErrno, SystemError } from "./errno.ts";
import { memoryAt, openLibc, pointerAddress, pointerTo } from "./libc.ts";

const libc = openLibc({
  // void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
  mmap: { parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
  // int munmap(void *addr, size_t length)
  munmap: { parameters: ["usize", "usize"], result: "i32" },
  // int madvise(void *addr, size_t length, int advice)
  madvise: { parameters: ["usize", "usize", "i32"], result: "i32" },
  // void *memcpy(void *dest, const void *src, size_t n); the result is not wanted
  memcpy: { parameters: ["usize", "usize", "usize"], result: "void" },
  // void *memset(void *s, int c, size_t n); the result is not wanted
  memset: { parameters: ["usize", "i32", "usize"], result: "void" },
  // int memcmp(const void *s1, const void *s2, size_t n)
  memcmp: { parameters: ["usize", "usize", "usize"], result: "i32" },
});

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_PRIVATE = 0x02;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const MADV_DONTNEED = 4;
const MADV_NOHUGEPAGE = 15;

/** The size of a page of memory, bytes. */
export const PAGE_BYTES = 4096;

/**
 * Zeroed, page-aligned memory that lives until `release`. Pages take room only once touched.
 */
export class Arena {
  /** Address of the first byte. */
  readonly address: number;
  /** Length, bytes (a multiple of the page size). */
  readonly sizeBytes: number;
  /** The memory as bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The memory as fields of any width. */
  readonly view: DataView<ArrayBuffer>;

  /** Maps `sizeBytes` bytes, rounded up to pages. Throws `SystemError`. */
  constructor(sizeBytes: number) {
    this.sizeBytes = Math.max(1, Math.ceil(sizeBytes / PAGE_BYTES)) * PAGE_BYTES;
    const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    const pointer = libc.mmap(0, this.sizeBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    const address = pointerAddress(pointer);
    if (address === 0 || address > Number.MAX_SAFE_INTEGER) {
      throw new SystemError(lastErrno(), `Cannot map ${this.sizeBytes} bytes of memory`);
    }
    this.address = address;
    // One touched byte is to cost one page: the arenas of devices are large and mostly untouched.
    libc.madvise(address, this.sizeBytes, MADV_NOHUGEPAGE);
    const buffer = memoryAt(address, this.sizeBytes);
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
  }

  /** A pointer into the memory, for calls that are made often: made once, it costs nothing. */
  pointerAt(offsetBytes: number): Deno.PointerObject {
    return pointerTo(this.address + offsetBytes);
  }

  /** Gives the pages of a range back to the system; they read as zeros when touched again. */
  discard(offsetBytes: number, lengthBytes: number): void {
    libc.madvise(this.address + offsetBytes, lengthBytes, MADV_DONTNEED);
  }

  /** Unmaps the memory. Nothing may touch the views afterwards. */
  release(): void {
    libc.munmap(this.address, this.sizeBytes);
  }
}

/** Copies bytes between addresses; the ranges must not overlap. */
export function copyMemory(to: number, from: number, lengthBytes: number): void {
  libc.memcpy(to, from, lengthBytes);
}

/** Fills memory at an address with zeros. */
export function zeroMemory(address: number, lengthBytes: number): void {
  libc.memset(address, 0, lengthBytes);
}

/** Whether two ranges of memory hold the same bytes. */
export function equalMemory(a: number, b: number, lengthBytes: number): boolean {
  return libc.memcmp(a, b, lengthBytes) === 0;
}
