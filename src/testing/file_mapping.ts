const SECTOR_BYTES = 512;

/**
 * The start of a file in the memory of a process. What the process stores is seen by others when they
 * look at the file, and is no more durable than a write.
 */
export class FileMapping {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** What others have seen. */
  readonly #seen: Uint8Array<ArrayBuffer>;

  constructor(bytes: Uint8Array<ArrayBuffer>) {
    this.bytes = bytes;
    this.#seen = bytes.slice();
  }

  /** The stores since the last call: bytes, and the offset at which they begin. */
  *stores(): Generator<{ readonly bytes: Uint8Array<ArrayBuffer>; readonly offsetBytes: number }> {
    for (let at = 0; at < this.bytes.length; at += SECTOR_BYTES) {
      const end = Math.min(at + SECTOR_BYTES, this.bytes.length);
      let isSame = true;
      for (let i = at; i < end && isSame; i++) isSame = this.bytes[i] === this.#seen[i];
      if (isSame) continue;
      const bytes = this.bytes.slice(at, end);
      this.#seen.set(bytes, at);
      yield { bytes, offsetBytes: at };
    }
  }

  /** Others have written to the file. */
  written(from: Uint8Array, offsetBytes: number): void {
    const length = Math.min(from.length, this.bytes.length - offsetBytes);
    if (length <= 0) return;
    const part = from.subarray(0, length);
    this.bytes.set(part, offsetBytes);
    this.#seen.set(part, offsetBytes);
  }
}
