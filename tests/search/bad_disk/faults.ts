/**
 * What a bad disk does, and a record of the sectors that it did it to.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import type { DiskOperation, SimulatedDisk, Verdict } from "../../../src/testing/simulated_disk.ts";
import type { Hit, Place } from "./places.ts";

const SECTOR_BYTES = 512;
const SECTOR_BITS = SECTOR_BYTES * 8;

/** A disk that loses, misdirects and rots what is written, a few times. */
export class BadDisk {
  readonly hits: Hit[] = [];
  readonly #random: Random;
  readonly #disk: SimulatedDisk;
  #left: number;
  readonly #share: number;

  constructor(
    random: Random,
    disk: SimulatedDisk,
    { most, share }: { most: number; share: number },
  ) {
    this.#random = random;
    this.#disk = disk;
    this.#left = most;
    this.#share = share;
  }

  /** The hook of the disk. */
  verdict(operation: DiskOperation): Verdict {
    const { kind, path, offsetBytes, lengthBytes } = operation;
    if (this.#left === 0 || !this.#random.chance(this.#share)) return 0;
    if (kind === "sync") {
      this.#left--;
      return { does: "lose" };
    }
    if (kind !== "write" && kind !== "read") return 0;
    this.#left--;
    const range = { path, ...sectorsOf(offsetBytes, lengthBytes) };
    const dice = this.#random.below(3);
    if (kind === "read" || dice === 0) {
      const bit = this.#random.below(lengthBytes * 8);
      const sector = Math.floor((offsetBytes * 8 + bit) / SECTOR_BITS);
      this.hits.push({
        what: `rot before a ${kind}`,
        path,
        sector,
        count: 1,
        // The tapdisk that is told of it by a checksum writes the structure anew.
        mustBeFound: false,
      });
      return { does: "rot", bit };
    }
    this.hits.push({ ...range, what: "lost", mustBeFound: false });
    if (dice === 1) return { does: "lose" };
    const fileSectors = Math.max(1, Math.floor(this.#disk.status(path).sizeBytes / SECTOR_BYTES));
    const target = this.#random.chance(0.5)
      ? this.#random.below(Math.min(fileSectors, 24))
      : this.#random.below(fileSectors);
    this.hits.push({ ...range, what: "misdirected", sector: target, mustBeFound: false });
    return { does: "misdirect", offsetBytes: target * SECTOR_BYTES };
  }

  /** Flips bits of structures at rest. */
  rotAtRest(places: readonly Place[], count: number): void {
    const kinds = [...new Set(places.map(({ kind }) => kind))];
    // Nothing but the order of blocks tells of an entry that is wrong.
    if (kinds.includes("table")) kinds.push("table", "table", "table", "table");
    for (let i = 0; i < count; i++) {
      const kind = kinds[this.#random.below(kinds.length)];
      const alike = places.filter((place) => place.kind === kind);
      const place = alike[this.#random.below(alike.length)];
      const sector = place.sector + this.#random.below(place.count);
      const { path } = place;
      if (sector * SECTOR_BYTES >= this.#disk.status(path).sizeBytes) continue;
      const bit = this.#someBit(place);
      this.#disk.rot(path, { sector, bit });
      this.hits.push({ what: `rot of a ${kind}`, path, sector, count: 1, bit, mustBeFound: true });
    }
  }

  /** A bit of a sector. In the BAT mostly one that moves a block by not much: into another one. */
  #someBit({ entries = [] }: Place): number {
    if (entries.length === 0 || this.#random.chance(0.2)) return this.#random.below(SECTOR_BITS);
    const entry = entries[this.#random.below(entries.length)];
    const byte = this.#random.chance(0.8) ? 3 : 2;
    return (entry * 4 + byte) * 8 + this.#random.below(8);
  }
}

function sectorsOf(offsetBytes: number, lengthBytes: number): { sector: number; count: number } {
  const sector = Math.floor(offsetBytes / SECTOR_BYTES);
  return { sector, count: Math.ceil((offsetBytes + lengthBytes) / SECTOR_BYTES) - sector };
}
