import { L1_RESERVED_HIGH, L1_RESERVED_LOW, sectorOfEntry } from "./format/entries.ts";
import { SECTOR_BYTES } from "./format/units.ts";

/** An L2 table, as entries of L1 tables lead to it. */
export interface FoundTable {
  readonly offset: number;
  /** The first entry that leads there. */
  readonly index: number;
  /** Whose table that entry is in. */
  readonly of: string;
  /** How many entries lead there. */
  times: number;
  /** Whether an entry with another index leads there too. */
  isElsewhere: boolean;
}

/** What is said of entries of L1 tables. */
export interface L1Judge {
  /** An entry cannot be right. */
  fault(index: number, of: string, problem: string): void;
  /** An entry refers to a cluster; false when it cannot be one. */
  refers(index: number, of: string, offset: number, times: number): boolean;
}

/** Collects the L2 tables that L1 tables lead to, each once, and how often that is. */
export class L1Tables {
  readonly #found = new Map<number, FoundTable>();
  readonly #judge: L1Judge;

  constructor(judge: L1Judge) {
    this.#judge = judge;
  }

  /** The tables. */
  get tables(): Iterable<FoundTable> {
    return this.#found.values();
  }

  /**
   * Takes the entries of a table.
   *
   * @param of Whose table it is, as the end of its name.
   * @param times How often it is referred to.
   */
  add(l1: DataView, of: string, times: number): void {
    for (let index = 0; index < l1.byteLength / 8; index++) {
      const high = l1.getUint32(8 * index, false);
      const low = l1.getUint32(8 * index + 4, false);
      if (high === 0 && low === 0) continue;
      if ((high & L1_RESERVED_HIGH) !== 0 || (low & L1_RESERVED_LOW) !== 0) {
        this.#judge.fault(index, of, "has reserved bits");
      }
      const offset = sectorOfEntry(high, low) * SECTOR_BYTES;
      if (offset === 0 || !this.#judge.refers(index, of, offset, times)) continue;
      const known = this.#found.get(offset);
      if (known === undefined) {
        this.#found.set(offset, { offset, index, of, times, isElsewhere: false });
      } else {
        known.times += times;
        known.isElsewhere ||= known.index !== index;
      }
    }
  }
}
