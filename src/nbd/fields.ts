/** Big-endian fields in a row, for a message of the negotiation. */
export class Fields {
  readonly #bytes: number[] = [];

  /** Adds 16 bits. */
  u16(value: number): this {
    this.#bytes.push((value >>> 8) & 0xff, value & 0xff);
    return this;
  }

  /** Adds 32 bits. */
  u32(value: number): this {
    return this.u16(value >>> 16).u16(value & 0xffff);
  }

  /** Adds a number of up to 53 bits, in 64. */
  u64(value: number): this {
    return this.u32(Math.floor(value / 0x1_0000_0000)).u32(value >>> 0);
  }

  /** Adds a text in UTF-8, without its length. */
  text(value: string): this {
    this.#bytes.push(...new TextEncoder().encode(value));
    return this;
  }

  /** Adds bytes as they are. */
  bytes(value: Uint8Array): this {
    for (const byte of value) this.#bytes.push(byte);
    return this;
  }

  /** Adds so many zero bytes. */
  zeros(count: number): this {
    for (let i = 0; i < count; i++) this.#bytes.push(0);
    return this;
  }

  /** All of them. */
  done(): Uint8Array {
    return Uint8Array.from(this.#bytes);
  }
}
