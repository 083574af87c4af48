import { assert } from "../../../ffi/assert.ts";
import { Arena } from "../../../ffi/memory.ts";
import { REQUEST_SECTORS, SECTOR_BYTES } from "../driver.ts";

const NONE = -1;
/** Buffers for copies. */
const BUFFERS = 16;

/** Memory for what is copied from one place of the file to another, or from the image below. */
export class CopyBuffers {
  /** Sectors of a buffer. */
  readonly sectors: number;
  readonly #arena: Arena;
  readonly #isTaken = new Uint8Array(BUFFERS);

  /** @param clusterSectors No copy is longer. */
  constructor(clusterSectors: number) {
    this.sectors = Math.min(clusterSectors, REQUEST_SECTORS);
    this.#arena = new Arena(BUFFERS * this.sectors * SECTOR_BYTES);
  }

  /** Takes a buffer; -1: all are taken. */
  take(): number {
    const buffer = this.#isTaken.indexOf(0);
    if (buffer !== NONE) this.#isTaken[buffer] = 1;
    return buffer;
  }

  /** Gives a buffer back. */
  give(buffer: number): void {
    assert(this.#isTaken[buffer] === 1, "A buffer for a copy is given back twice");
    this.#isTaken[buffer] = 0;
  }

  /** Sector of I/O memory at which a buffer begins. */
  memoryOf(buffer: number): number {
    return this.#arena.sector + buffer * this.sectors;
  }

  /** Unmaps the buffers. */
  release(): void {
    this.#arena.release();
  }
}
