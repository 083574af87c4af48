import { AssertionError } from "../../ffi/assert.ts";

const PART_BITS = 14;
const PART = 2 ** PART_BITS;

/** How often clusters of a file are referred to. Parts of the file without references take no memory. */
export class References {
  readonly #parts = new Map<number, Uint32Array>();

  /** One more reference to a cluster. */
  add(cluster: number): void {
    const part = Math.floor(cluster / PART);
    let counts = this.#parts.get(part);
    if (counts === undefined) {
      counts = new Uint32Array(PART);
      this.#parts.set(part, counts);
    }
    counts[cluster % PART]++;
  }

  /** One reference to a cluster less. */
  remove(cluster: number): void {
    const counts = this.#parts.get(Math.floor(cluster / PART));
    if (counts === undefined || counts[cluster % PART] === 0) {
      throw new AssertionError("A reference is taken away that is not there");
    }
    counts[cluster % PART]--;
  }

  /** References to a cluster. */
  of(cluster: number): number {
    return this.#parts.get(Math.floor(cluster / PART))?.[cluster % PART] ?? 0;
  }

  /** One more than the last cluster with a reference; 0 without one. */
  get end(): number {
    let end = 0;
    for (const [part, counts] of this.#parts) {
      let last = counts.length;
      while (last > 0 && counts[last - 1] === 0) last--;
      if (last > 0) end = Math.max(end, part * PART + last);
    }
    return end;
  }
}
