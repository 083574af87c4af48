import { Arena, copySectors, zeroSectors } from "../../ffi/memory.ts";
import { assertShared } from "../../ffi/assert.ts";

/** Sectors of a page, the allocation unit of simulated files. */
export const PAGE_SECTORS = 8;
export const PAGE_BYTES = PAGE_SECTORS * 512;

const SLAB_PAGES = 1024;

/**
 * Pages of I/O memory with a count of holders: a copy of a file shares the pages of the original
 * until one of them writes. A page is a small number. Taking a page that was in use before
 * allocates nothing, and neither does copying to or from a page.
 */
class PagePool {
  readonly #slabs: Arena[] = [];
  readonly #free: number[] = [];
  /** The number of holders of each page. */
  #holders = new Int32Array(SLAB_PAGES);

  /** The number of pages that somebody holds. */
  get pagesInUse(): number {
    return this.#slabs.length * SLAB_PAGES - this.#free.length;
  }

  /** A page of zeros with one holder. */
  take(): number {
    const page = this.#takeAsItIs();
    zeroSectors(this.sectorOf(page), PAGE_SECTORS);
    return page;
  }

  #takeAsItIs(): number {
    const page = this.#free.pop() ?? this.#grow();
    this.#holders[page] = 1;
    return page;
  }

  #grow(): number {
    const first = this.#slabs.length * SLAB_PAGES;
    this.#slabs.push(new Arena(SLAB_PAGES * PAGE_BYTES));
    if (first >= this.#holders.length) {
      const larger = new Int32Array(2 * this.#holders.length);
      larger.set(this.#holders);
      this.#holders = larger;
    }
    for (let page = first + SLAB_PAGES - 1; page > first; page--) this.#free.push(page);
    return first;
  }

  /** Adds a holder. */
  share(page: number): number {
    assertShared(this.#holders[page] > 0, "A page that nobody holds cannot be shared");
    this.#holders[page]++;
    return page;
  }

  /** Removes a holder; a page without holders is free. */
  drop(page: number): void {
    assertShared(this.#holders[page] > 0, "A page that nobody holds cannot be dropped");
    if (--this.#holders[page] === 0) this.#free.push(page);
  }

  /** The page itself if it has one holder; otherwise a copy that replaces it. */
  own(page: number): number {
    if (this.#holders[page] === 1) return page;
    const copy = this.#takeAsItIs();
    copySectors(this.sectorOf(copy), this.sectorOf(page), PAGE_SECTORS);
    this.drop(page);
    return copy;
  }

  /** The sector of I/O memory at which a page begins. */
  sectorOf(page: number): number {
    const slab = Math.floor(page / SLAB_PAGES);
    return this.#slabs[slab].sector + (page - slab * SLAB_PAGES) * PAGE_SECTORS;
  }

  bytesOf(page: number): Uint8Array<ArrayBuffer> {
    const start = (page % SLAB_PAGES) * PAGE_BYTES;
    return this.#slabs[Math.floor(page / SLAB_PAGES)].bytes.subarray(start, start + PAGE_BYTES);
  }
}

/** The pages of all simulated files of the process. */
export const pagePool = new PagePool();
