import { memoryAt } from "../../ffi/libc.ts";
import { copySectors, memoryAddress, zeroSectors } from "../../ffi/memory.ts";
import { PAGE_BYTES, PAGE_SECTORS, pagePool } from "./page_pool.ts";

const SECTOR_BYTES = 512;

/**
 * Bytes at any offset; unwritten bytes are zero, or garbage that a number chooses. Only written pages take memory, so a file may be
 * terabytes long. A copy shares all pages until one side writes.
 */
export class SparseBytes {
  readonly #pages = new Map<number, number>();
  readonly #garbage: number | null;

  constructor(garbage: number | null) {
    this.#garbage = garbage;
  }

  /** Number of pages that hold data. */
  get pageCount(): number {
    return this.#pages.size;
  }

  /** An independent copy of the bytes. */
  copy(): SparseBytes {
    const copy = new SparseBytes(this.#garbage);
    for (const [number, page] of this.#pages) copy.#pages.set(number, pagePool.share(page));
    return copy;
  }

  /** Whether a page holds data. */
  has(number: number): boolean {
    return this.#pages.has(number);
  }

  /** Replaces one page with the page of `from`. */
  takePage(number: number, from: SparseBytes): void {
    const page = from.#pages.get(number);
    if (page === undefined) this.#dropPage(number);
    else if (page !== this.#pages.get(number)) {
      this.#dropPage(number);
      this.#pages.set(number, pagePool.share(page));
    }
  }

  /** The numbers of the pages in a range that hold data. */
  pagesIn(offsetBytes: number, endBytes: number): number[] {
    const first = Math.floor(offsetBytes / PAGE_BYTES);
    const end = Math.ceil(endBytes / PAGE_BYTES);
    if (end - first > this.#pages.size) {
      return [...this.#pages.keys()].filter((number) => number >= first && number < end);
    }
    const found: number[] = [];
    for (let number = first; number < end; number++) if (this.has(number)) found.push(number);
    return found;
  }

  #dropPage(number: number): void {
    const page = this.#pages.get(number);
    if (page === undefined) return;
    this.#pages.delete(number);
    pagePool.drop(page);
  }

  /** The page of this number, with this object as its only holder. */
  #own(number: number): number {
    const known = this.#pages.get(number);
    const page = known === undefined ? pagePool.take() : pagePool.own(known);
    if (page !== known) this.#pages.set(number, page);
    if (known === undefined && this.#garbage !== null) {
      this.#putUnwritten(pagePool.bytesOf(page), number * PAGE_BYTES);
    }
    return page;
  }

  /** Fills memory with what was never written. */
  #putUnwritten(into: Uint8Array, offsetBytes: number): void {
    if (this.#garbage === null) return void into.fill(0);
    for (let done = 0; done < into.length;) {
      const sector = Math.floor((offsetBytes + done) / SECTOR_BYTES);
      const end = Math.min(into.length, (sector + 1) * SECTOR_BYTES - offsetBytes);
      into.fill(garbageOf(this.#garbage, sector), done, end);
      done = end;
    }
  }

  /** Copies sectors to I/O memory. */
  readSectors(memorySector: number, sector: number, count: number): void {
    for (let done = 0; done < count;) {
      const number = Math.floor((sector + done) / PAGE_SECTORS);
      const inPage = sector + done - number * PAGE_SECTORS;
      const part = Math.min(PAGE_SECTORS - inPage, count - done);
      const page = this.#pages.get(number);
      if (page === undefined) this.#readUnwritten(memorySector + done, sector + done, part);
      else copySectors(memorySector + done, pagePool.sectorOf(page) + inPage, part);
      done += part;
    }
  }

  #readUnwritten(memorySector: number, sector: number, count: number): void {
    if (this.#garbage === null) return zeroSectors(memorySector, count);
    this.#putUnwritten(memoryBytes(memorySector, count * SECTOR_BYTES), sector * SECTOR_BYTES);
  }

  /** Copies sectors from I/O memory. */
  writeSectors(memorySector: number, sector: number, count: number): void {
    for (let done = 0; done < count;) {
      const number = Math.floor((sector + done) / PAGE_SECTORS);
      const inPage = sector + done - number * PAGE_SECTORS;
      const part = Math.min(PAGE_SECTORS - inPage, count - done);
      copySectors(pagePool.sectorOf(this.#own(number)) + inPage, memorySector + done, part);
      done += part;
    }
  }

  /** Copies bytes out. */
  read(into: Uint8Array, offsetBytes: number): void {
    for (let done = 0; done < into.length;) {
      const number = Math.floor((offsetBytes + done) / PAGE_BYTES);
      const inPage = offsetBytes + done - number * PAGE_BYTES;
      const part = Math.min(PAGE_BYTES - inPage, into.length - done);
      const page = this.#pages.get(number);
      if (page === undefined) {
        this.#putUnwritten(into.subarray(done, done + part), offsetBytes + done);
      } else into.set(pagePool.bytesOf(page).subarray(inPage, inPage + part), done);
      done += part;
    }
  }

  /** Copies bytes in. */
  write(from: Uint8Array, offsetBytes: number): void {
    for (let done = 0; done < from.length;) {
      const number = Math.floor((offsetBytes + done) / PAGE_BYTES);
      const inPage = offsetBytes + done - number * PAGE_BYTES;
      const part = Math.min(PAGE_BYTES - inPage, from.length - done);
      pagePool.bytesOf(this.#own(number)).set(from.subarray(done, done + part), inPage);
      done += part;
    }
  }

  /** Zeroes a range; whole pages in it free their memory. */
  zero(offsetBytes: number, endBytes: number): void {
    if (this.#garbage !== null) return this.#zeroGarbage(offsetBytes, endBytes);
    for (const number of this.pagesIn(offsetBytes, endBytes)) {
      const start = Math.max(0, offsetBytes - number * PAGE_BYTES);
      const end = Math.min(PAGE_BYTES, endBytes - number * PAGE_BYTES);
      if (end - start === PAGE_BYTES) this.#dropPage(number);
      else pagePool.bytesOf(this.#own(number)).fill(0, start, end);
    }
  }

  #zeroGarbage(offsetBytes: number, endBytes: number): void {
    for (let at = offsetBytes; at < endBytes;) {
      const number = Math.floor(at / PAGE_BYTES);
      const end = Math.min(endBytes, (number + 1) * PAGE_BYTES);
      const start = number * PAGE_BYTES;
      pagePool.bytesOf(this.#own(number)).fill(0, at - start, end - start);
      at = end;
    }
  }

  /**
   * The length of the run at an offset, at most `lengthBytes`: positive for pages that hold data,
   * negative for pages that do not.
   */
  run(offsetBytes: number, lengthBytes: number): number {
    const end = offsetBytes + lengthBytes;
    let number = Math.floor(offsetBytes / PAGE_BYTES);
    const isData = this.#pages.has(number);
    if (!isData) {
      const starts = this.pagesIn(offsetBytes, end).map((each) => each * PAGE_BYTES);
      return offsetBytes - starts.reduce((nearest, start) => Math.min(nearest, start), end);
    }
    while (number * PAGE_BYTES < end && this.#pages.has(number)) number++;
    return Math.min(end, number * PAGE_BYTES) - offsetBytes;
  }

  /** Frees the memory. */
  release(): void {
    for (const page of this.#pages.values()) pagePool.drop(page);
    this.#pages.clear();
  }
}

/** Bytes of I/O memory, for a length of less than a sector. */
export function memoryBytes(memorySector: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(memoryAt(memoryAddress(memorySector), lengthBytes));
}

/** The number of whole sectors in `lengthBytes`. */
export function wholeSectors(lengthBytes: number): number {
  return Math.floor(lengthBytes / SECTOR_BYTES);
}

/** The byte that fills a sector of garbage; never 0. */
function garbageOf(garbage: number, sector: number): number {
  return 0x80 | (Math.imul(sector + 1, 0x9e37_79b1) ^ garbage) >>> 20 & 0x7f;
}
