/** A change of sectors to copies of one word. */
export interface WordChange {
  readonly first: number;
  readonly count: number;
  readonly word: number;
  /** Whether the sectors may also keep what they held, as with a discard. */
  readonly isMaybe: boolean;
}

/** A disk whose sectors each repeat one word, at first 0. Changes that are made at once have no order. */
export class WordModel {
  readonly #words = new Map<number, readonly number[]>();

  /** What a sector may hold. */
  held(sector: number): readonly number[] {
    return this.#words.get(sector) ?? [0];
  }

  /** Makes changes whose order nobody knows. */
  apply(changes: readonly WordChange[]): void {
    const found = new Map<number, { words: Set<number>; isSure: boolean }>();
    for (const { first, count, word, isMaybe } of changes) {
      for (let sector = first; sector < first + count; sector++) {
        const entry = found.get(sector) ?? { words: new Set<number>(), isSure: false };
        entry.words.add(word);
        entry.isSure ||= !isMaybe;
        found.set(sector, entry);
      }
    }
    for (const [sector, { words, isSure }] of found) {
      this.#words.set(sector, [...words, ...isSure ? [] : this.held(sector)]);
    }
  }

  /**
   * Compares a sector that was read.
   *
   * @param isBusy Whether it was changed at the same time: then it only has to be one word.
   * @throws Where it holds something else.
   */
  check(sector: number, bytes: Uint8Array, isBusy: boolean): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, 512);
    const word = view.getUint32(0, true);
    for (let at = 4; at < 512; at += 4) {
      if (view.getUint32(at, true) !== word) throw new Error(`Sector ${sector} is torn`);
    }
    if (isBusy || this.held(sector).includes(word)) return;
    throw new Error(`Sector ${sector} holds ${word} and not ${this.held(sector).join(" or ")}`);
  }
}
