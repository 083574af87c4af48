import type { Arena } from "../../ffi/memory.ts";
import { sectorBits } from "../driver/sector_bits.ts";

/**
 * The sectors of a disk that only its secondary image has: a bit each. Pages of it without a bit take
 * no room. Places are divided, and not shifted: a disk may have more than 2^32 sectors.
 */
export class Redirects {
  readonly #bits: Arena;
  readonly #sectors: number;

  /** @throws {SystemError} EFBIG, ENOMEM for a disk that is too large. */
  constructor(sectors: number) {
    this.#sectors = sectors;
    this.#bits = sectorBits(sectors, "a map of redirected sectors");
  }

  /** Notes that the secondary image has these sectors, and the leaf has not. */
  mark(sector: number, count: number): void {
    const { bytes } = this.#bits;
    const end = Math.min(this.#sectors, sector + count);
    for (let at = sector; at < end;) {
      const byte = Math.floor(at / 8);
      const inByte = at % 8;
      const whole = inByte === 0 ? Math.floor((end - at) / 8) : 0;
      const part = Math.min(8 - inByte, end - at);
      if (whole > 0) bytes.fill(0xff, byte, byte + whole);
      else bytes[byte] |= ((1 << part) - 1) << inByte;
      at += whole > 0 ? whole * 8 : part;
    }
  }

  #has(sector: number): boolean {
    return (this.#bits.bytes[Math.floor(sector / 8)] & (1 << (sector % 8))) !== 0;
  }

  /**
   * How many sectors from `sector` on, at most `count`, are alike: positive when the secondary image
   * has them, negative when the leaf has.
   */
  runFrom(sector: number, count: number): number {
    const { bytes } = this.#bits;
    const end = sector + count;
    const isHere = this.#has(sector);
    const whole = isHere ? 0xff : 0;
    let at = sector + 1;
    while (at < end) {
      if (at % 8 === 0 && at + 8 <= end && bytes[at / 8] === whole) at += 8;
      else if (this.#has(at) === isHere) at++;
      else break;
    }
    return isHere ? at - sector : sector - at;
  }

  /** Takes over the bits of another map, of its first `sectors` sectors. */
  copyFrom(other: Redirects, sectors: number): void {
    for (let at = 0; at < sectors;) {
      const run = other.runFrom(at, sectors - at);
      if (run > 0) this.mark(at, run);
      at += Math.abs(run);
    }
  }

  release(): void {
    this.#bits.release();
  }
}
