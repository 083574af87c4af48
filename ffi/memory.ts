/**
 * I/O memory: memory outside of the JavaScript heap that is mapped once, viewed by typed arrays and
 * passed to the kernel by address.
 *
 * @module
 */
import { assert } from "./assert.ts";
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { memoryAt, openLibc, openLibcLater, pointerAddress, pointerTo } from "./libc.ts";

const mapping = /* @__PURE__ */ openLibcLater({
  // void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
  mmap: { parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
  // int madvise(void *addr, size_t length, int advice)
  madvise: { parameters: ["usize", "usize", "i32"], result: "i32" },
});

const libc = /* @__PURE__ */ openLibc({
  // void *memcpy(void *dest, const void *src, size_t n); the result is not used
  memcpy: { parameters: ["usize", "usize", "usize"], result: "void" },
  // void *memcpy(void *dest, const void *src, size_t n), of fewer than 2^32 bytes: the runtime
  // compiles a call with pointers and 32-bit numbers
  memcpyPointers: { name: "memcpy", parameters: ["pointer", "pointer", "u32"], result: "void" },
  // void *memset(void *s, int c, size_t n); the result is not used
  memset: { parameters: ["usize", "i32", "usize"], result: "void" },
  // int memcmp(const void *s1, const void *s2, size_t n)
  memcmp: { parameters: ["usize", "usize", "usize"], result: "i32" },
});

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const PRIVATE_FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
const MADV_DONTNEED = 4;
const MADV_DONTFORK = 10;
const MADV_NOHUGEPAGE = 15;
const MADV_DONTDUMP = 16;

/** The size of a page of memory, bytes. */
export const PAGE_BYTES = 4096;

/** Bytes of a sector. Buffers in I/O memory are named by the number of their first sector. */
export const SECTOR_BYTES = 512;
/** Address space for all arenas, largest choice first. The kernel allocates pages on first use. */
const REGION_BYTES = [64, 16, 4, 1].map((gib) => gib * 1024 ** 3);

/**
 * The lowest address to ask for, to which a random number of steps is added. It is far below other
 * mappings on purpose: the blktap2 driver unmaps pages of the region for a while, and the kernel
 * places new mappings in the highest gap, so none lands in the region.
 */
const REGION_LOWEST_ADDRESS = 2 ** 44;
const REGION_STEPS = 256;

interface Region {
  readonly address: number;
  readonly sizeBytes: number;
}

function reserveRegion(): Region {
  const step = crypto.getRandomValues(new Uint32Array(1))[0] % REGION_STEPS;
  const wanted = REGION_LOWEST_ADDRESS + step * REGION_BYTES[0];
  for (const sizeBytes of REGION_BYTES) {
    const pointer = mapping.mmap(wanted, sizeBytes, PROT_READ | PROT_WRITE, PRIVATE_FLAGS, -1, 0);
    const address = pointerAddress(pointer);
    if (address === 0 || address > Number.MAX_SAFE_INTEGER) continue;
    adviseRegion(address, sizeBytes);
    return { address, sizeBytes };
  }
  throw new SystemError(lastErrno(), "Cannot reserve address space for I/O");
}

function adviseRegion(address: number, sizeBytes: number): void {
  // Without huge pages a touched byte costs 4 KiB. Arenas are large and mostly untouched.
  mapping.madvise(address, sizeBytes, MADV_NOHUGEPAGE);
  // The data of guests does not belong in a core dump of this process.
  mapping.madvise(address, sizeBytes, MADV_DONTDUMP);
  // A fork shares private pages until one side writes. While the kernel reads from a disk into a page, a
  // write here would go to a copy, and what was read would be lost (open(2), O_DIRECT and fork).
  mapping.madvise(address, sizeBytes, MADV_DONTFORK);
}

let region: Region | null = null;
let usedBytes = 0;
/** Sectors of the region below the end of the last arena. A small number stays in a register. */
let usedSectors = 0;
const releasedBySize = new Map<number, number[]>();

function takeFromRegion(sizeBytes: number): number {
  const released = releasedBySize.get(sizeBytes)?.pop();
  if (released !== undefined) return released;
  region ??= reserveRegion();
  if (usedBytes + sizeBytes > region.sizeBytes) {
    const part = takeFromReleased(sizeBytes);
    if (part !== null) return part;
    throw new SystemError(Errno.ENOMEM, `Cannot take ${sizeBytes} bytes of address space for I/O`);
  }
  const address = region.address + usedBytes;
  usedBytes += sizeBytes;
  usedSectors = usedBytes / SECTOR_BYTES;
  return address;
}

/**
 * Whether a range of sectors lies below the end of the last arena. Every address that goes to the
 * kernel or to libc is derived from a sector that passed this check.
 */
export function isMemory(sector: number, count: number): boolean {
  return sector >= 0 && count >= 0 && sector + count <= usedSectors;
}

/**
 * Asserts that a buffer lies in I/O memory. It is the last check before the kernel writes there.
 *
 * @param sector The first sector.
 * @param length Bytes, or with `vectored` the number of iovecs of 16 bytes.
 * @throws {AssertionError}
 */
export function requireMemory(sector: number, length: number, vectored: boolean): void {
  const lengthBytes = vectored ? length * 16 : length;
  assert(
    isMemory(sector, (lengthBytes + SECTOR_BYTES - 1) >>> 9),
    "A request for the kernel goes beyond I/O memory",
  );
}

/** Bytes of I/O memory that are left for new arenas; those of the largest region before the first. */
export function freeMemoryBytes(): number {
  let released = 0;
  for (const [size, addresses] of releasedBySize) released += size * addresses.length;
  return (region?.sizeBytes ?? REGION_BYTES[0]) - usedBytes + released;
}

/** Takes a part of the smallest released piece that is large enough; null without one. */
function takeFromReleased(sizeBytes: number): number | null {
  let smallest = Infinity;
  for (const [size, addresses] of releasedBySize) {
    if (size > sizeBytes && size < smallest && addresses.length > 0) smallest = size;
  }
  const address = releasedBySize.get(smallest)?.pop();
  if (address === undefined) return null;
  noteReleased(address + sizeBytes, smallest - sizeBytes);
  return address;
}

function noteReleased(address: number, sizeBytes: number): void {
  const released = releasedBySize.get(sizeBytes);
  if (released === undefined) releasedBySize.set(sizeBytes, [address]);
  else released.push(address);
}

/** Views by address. They are kept when the memory is released. */
const views = new Map<number, ArrayBuffer>();

/** The view of a part of the region. The garbage collector counts a new view as new memory. */
function viewOf(address: number, sizeBytes: number): ArrayBuffer {
  const known = views.get(address);
  if (known?.byteLength === sizeBytes) return known;
  const view = memoryAt(address, sizeBytes);
  views.set(address, view);
  return view;
}

/** The address of a sector of I/O memory; 0 before the first arena. */
export function memoryAddress(sector: number): number {
  return region === null ? 0 : region.address + sector * SECTOR_BYTES;
}

/** The sector of I/O memory that begins at an address. */
export function memorySectorOf(address: number): number {
  return (address - memoryAddress(0)) / SECTOR_BYTES;
}

/**
 * One view of the first bytes of the region, in which simulations copy data.
 *
 * @param lengthBytes At most 2 GiB.
 */
export function memoryWindow(lengthBytes: number): Uint8Array<ArrayBuffer> {
  region ??= reserveRegion();
  return new Uint8Array(memoryAt(region.address, lengthBytes));
}

/**
 * Zeroed, page-aligned memory that lives until `release`. The kernel allocates pages on first use.
 *
 * All arenas lie in one region, whose sectors have numbers below 2^31. The data path passes these
 * numbers instead of addresses: the runtime keeps a number below 2^31 in a register, and allocates
 * a larger one on the heap when it is passed to a function.
 */
export class Arena {
  /** Address of the first byte. */
  readonly address: number;
  /** Number of the first sector in I/O memory. */
  readonly sector: number;
  /** Length, bytes: a multiple of PAGE_BYTES. */
  readonly sizeBytes: number;
  #bytes: Uint8Array<ArrayBuffer> | null = null;
  #view: DataView<ArrayBuffer> | null = null;
  #isReleased = false;

  /**
   * @param sizeBytes Rounded up to pages.
   * @throws {SystemError} ENOMEM when the region is used up.
   */
  constructor(sizeBytes: number) {
    this.sizeBytes = Math.max(1, Math.ceil(sizeBytes / PAGE_BYTES)) * PAGE_BYTES;
    this.address = takeFromRegion(this.sizeBytes);
    this.sector = memorySectorOf(this.address);
  }

  /**
   * The memory as bytes. Each new view of a large memory makes the garbage collector run, so there is none
   * of what only the kernel reads and writes.
   */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#bytes ??= new Uint8Array(viewOf(this.address, this.sizeBytes));
  }

  /** The memory as fields of any width. */
  get view(): DataView<ArrayBuffer> {
    return this.#view ??= new DataView(viewOf(this.address, this.sizeBytes));
  }

  /** A pointer into the memory. It is an object: make it once for calls of the data path. */
  pointerAt(offsetBytes: number): Deno.PointerObject {
    return pointerTo(this.address + offsetBytes);
  }

  /** Frees the pages of a range; they read as zeros afterwards. */
  discard(offsetBytes: number, lengthBytes: number): void {
    mapping.madvise(this.address + offsetBytes, lengthBytes, MADV_DONTNEED);
  }

  /**
   * Replaces this memory by a shared mapping of `fd`, a device or a file. Throws `SystemError`. The
   * memory is unchanged then, unless a device refused: then there is none until `unmapDescriptor`.
   *
   * @param offsetBytes Where the mapping begins in the device or file; 0 by default.
   */
  mapDescriptor(fd: number, offsetBytes = 0): void {
    this.#map(MAP_SHARED | MAP_FIXED, fd, offsetBytes);
  }

  /** Replaces the mapping of `mapDescriptor` by zeroed private memory. Throws `SystemError`. */
  unmapDescriptor(): void {
    this.#map(PRIVATE_FLAGS | MAP_FIXED, -1, 0);
    adviseRegion(this.address, this.sizeBytes);
  }

  #map(flags: number, fd: number, offsetBytes: number): void {
    const protection = PROT_READ | PROT_WRITE;
    const pointer = mapping.mmap(this.address, this.sizeBytes, protection, flags, fd, offsetBytes);
    if (pointerAddress(pointer) === this.address) return;
    throw new SystemError(lastErrno(), `Cannot map ${this.sizeBytes} bytes of descriptor ${fd}`);
  }

  /** Releases the memory. The views must not be used afterwards. */
  release(): void {
    // Two arenas would get it the next time: two disks with one memory.
    assert(!this.#isReleased, "Memory is released once");
    this.#isReleased = true;
    this.discard(0, this.sizeBytes);
    noteReleased(this.address, this.sizeBytes);
  }
}

/** The part of I/O memory whose 8-byte words have numbers below 2^31, which stay in registers. */
const WINDOW_BYTES = 16 * 1024 ** 3;
const WORDS_PER_SECTOR = 64;
let words: Float64Array | null = null;

/**
 * Copies sectors of I/O memory. The ranges must not overlap. Throws `AssertionError` out of range.
 */
export function copySectors(to: number, from: number, count: number): void {
  assert(isMemory(to, count), "A copy goes to a place outside of I/O memory");
  assert(isMemory(from, count), "A copy comes from a place outside of I/O memory");
  words ??= makeWords();
  const last = Math.max(to, from) + count;
  if (last * WORDS_PER_SECTOR > words.length) {
    libc.memcpy(memoryAddress(to), memoryAddress(from), count * SECTOR_BYTES);
  } else {
    const start = from * WORDS_PER_SECTOR;
    words.copyWithin(to * WORDS_PER_SECTOR, start, start + count * WORDS_PER_SECTOR);
  }
}

/** The part of I/O memory in which the offset of a byte is below 2^31. */
const BYTES_WINDOW_BYTES = 2 * 1024 ** 3 - PAGE_BYTES;
let window: Uint8Array<ArrayBuffer> | null = null;

/**
 * Copies bytes of I/O memory, whose places are offsets in all of it. The ranges must not overlap.
 * Throws `AssertionError` out of range.
 */
export function copyMemory(to: number, from: number, lengthBytes: number): void {
  const end = Math.max(to, from) + lengthBytes;
  assert(to >= 0 && from >= 0 && end <= usedBytes, "A copy leaves I/O memory");
  region ??= reserveRegion();
  window ??= memoryWindow(Math.min(BYTES_WINDOW_BYTES, region.sizeBytes));
  if (end <= window.length) window.copyWithin(to, from, from + lengthBytes);
  else libc.memcpy(region.address + to, region.address + from, lengthBytes);
}

function makeWords(): Float64Array {
  region ??= reserveRegion();
  return new Float64Array(memoryAt(region.address, Math.min(WINDOW_BYTES, region.sizeBytes) - 8));
}

/** Copies bytes between two pointers. It allocates nothing, and checks no range. */
export function copyPointed(
  to: Deno.PointerObject,
  from: Deno.PointerObject,
  lengthBytes: number,
): void {
  libc.memcpyPointers(to, from, lengthBytes);
}

/** A cache of pointers to sectors of I/O memory: making a pointer allocates. */
export class SectorPointers {
  readonly #known = new Map<number, Deno.PointerObject>();
  readonly #most: number;

  /** @param most The most pointers that are kept. The cache is emptied when it is full. */
  constructor(most: number) {
    this.#most = most;
  }

  /** A pointer to the first byte of a sector. */
  at(sector: number): Deno.PointerObject {
    const known = this.#known.get(sector);
    if (known !== undefined) return known;
    if (this.#known.size >= this.#most) this.#known.clear();
    const pointer = pointerTo(memoryAddress(sector));
    this.#known.set(sector, pointer);
    return pointer;
  }
}

/** Fills sectors of I/O memory with zeros. Throws `AssertionError` out of range. */
export function zeroSectors(sector: number, count: number): void {
  assert(isMemory(sector, count), "Zeros go to a place outside of I/O memory");
  words ??= makeWords();
  const last = sector + count;
  if (last * WORDS_PER_SECTOR > words.length) {
    libc.memset(memoryAddress(sector), 0, count * SECTOR_BYTES);
  } else words.fill(0, sector * WORDS_PER_SECTOR, last * WORDS_PER_SECTOR);
}

/** Fills memory at an address with zeros; the caller has checked the range. */
export function zeroMemory(address: number, lengthBytes: number): void {
  libc.memset(address, 0, lengthBytes);
}

/** Whether the bytes at two addresses are equal; the caller has checked the ranges. */
export function equalMemory(a: number, b: number, lengthBytes: number): boolean {
  return libc.memcmp(a, b, lengthBytes) === 0;
}
