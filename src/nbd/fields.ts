/** Builds a message of the negotiation from big-endian fields. */
export class Fields {
  readonly #bytes: number[] = [];

  /** Adds a 16-bit field. */
  u16(value: number): this {
    this.#bytes.push((value >>> 8) & 0xff, value & 0xff);
    return this;
  }

  /** Adds a 32-bit field. */
  u32(value: number): this {
    return this.u16(value >>> 16).u16(value & 0xffff);
  }

  /** Adds a 64-bit field; the value is a safe integer. */
  u64(value: number): this {
    return this.u32(Math.floor(value / 0x1_0000_0000)).u32(value >>> 0);
  }

  /** Adds a string in UTF-8, without its length. */
  text(value: string): this {
    this.#bytes.push(...new TextEncoder().encode(value));
    return this;
  }

  /** Adds bytes as they are. */
  bytes(value: Uint8Array): this {
    for (const byte of value) this.#bytes.push(byte);
    return this;
  }

  /** Adds `count` zero bytes. */
  zeros(count: number): this {
    for (let i = 0; i < count; i++) this.#bytes.push(0);
    return this;
  }

  /** The bytes of all fields. */
  done(): Uint8Array {
    return Uint8Array.from(this.#bytes);
  }
}
