import { Errno, SystemError } from "../../ffi/errno.ts";
import type { FileIdentity } from "../../ffi/files.ts";
import { Arena, memoryWindow } from "../../ffi/memory.ts";
import type { Random } from "./random.ts";

const SECTOR_BYTES = 512;
const WINDOW_BYTES = 2 ** 31 - 1;
/** The longest that a simulated file can be. Memory is taken only for what is written. */
export const MOST_FILE_BYTES = 128 * 1024 * 1024;

// Copies within one array take numbers only; simulations keep all I/O memory within its reach.
let window: Uint8Array<ArrayBuffer> | null = null;

function copyWithinWindow(to: number, from: number, lengthBytes: number): void {
  if (Math.max(to, from) + lengthBytes > WINDOW_BYTES) {
    throw new RangeError("The simulation took more I/O memory than it can copy in");
  }
  window ??= memoryWindow(WINDOW_BYTES);
  window.copyWithin(to, from, from + lengthBytes);
}

let lastInode = 0;

/** A write that a power cut may undo. */
interface VolatileWrite {
  offsetBytes: number;
  bytes: Uint8Array<ArrayBuffer>;
}

/**
 * A file of a simulated disk: what it holds, and, when power cuts are simulated, what of that is on
 * stable storage and which writes are not.
 */
export class SimulatedFile {
  readonly #content = new Arena(MOST_FILE_BYTES);
  readonly #durable: Arena | null;
  #sizeBytes = 0;
  #durableSizeBytes = 0;
  #volatile: VolatileWrite[] = [];
  readonly identity: FileIdentity = { device: 1, inode: ++lastInode };
  /** Who has it open for writing. */
  lockedBy: object | null = null;
  /** It answers nothing before that. */
  hangsUntilMs = 0;

  /** @param powerCuts Whether `cutPower` will be called. */
  constructor(powerCuts: boolean) {
    this.#durable = powerCuts ? new Arena(MOST_FILE_BYTES) : null;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Reads into I/O memory; returns bytes, fewer at the end. */
  read(memorySector: number, offsetBytes: number, lengthBytes: number): number {
    const length = Math.max(0, Math.min(lengthBytes, this.#sizeBytes - offsetBytes));
    const from = this.#content.sector * SECTOR_BYTES + offsetBytes;
    copyWithinWindow(memorySector * SECTOR_BYTES, from, length);
    return length;
  }

  /** Writes from I/O memory. */
  write(memorySector: number, offsetBytes: number, lengthBytes: number): void {
    this.#makeRoom(offsetBytes + lengthBytes);
    const from = memorySector * SECTOR_BYTES;
    const to = this.#content.sector * SECTOR_BYTES + offsetBytes;
    copyWithinWindow(to, from, lengthBytes);
    this.#noteWrite(offsetBytes, lengthBytes);
  }

  /** Reads into bytes anywhere; returns how many, fewer at the end. */
  readInto(into: Uint8Array, offsetBytes: number): number {
    const length = Math.max(0, Math.min(into.length, this.#sizeBytes - offsetBytes));
    into.set(this.#content.bytes.subarray(offsetBytes, offsetBytes + length));
    return length;
  }

  /** Writes bytes from anywhere. */
  writeFrom(from: Uint8Array, offsetBytes: number): void {
    this.#makeRoom(offsetBytes + from.length);
    this.#content.bytes.set(from, offsetBytes);
    this.#noteWrite(offsetBytes, from.length);
  }

  #makeRoom(sizeBytes: number): void {
    if (sizeBytes > MOST_FILE_BYTES) {
      throw new SystemError(Errno.EFBIG, `Cannot write at ${sizeBytes} of a simulated file`);
    }
  }

  #noteWrite(offsetBytes: number, lengthBytes: number): void {
    this.#sizeBytes = Math.max(this.#sizeBytes, offsetBytes + lengthBytes);
    if (this.#durable !== null) {
      const bytes = this.#content.bytes.slice(offsetBytes, offsetBytes + lengthBytes);
      this.#volatile.push({ offsetBytes, bytes });
    }
  }

  truncate(lengthBytes: number): void {
    if (lengthBytes > MOST_FILE_BYTES) {
      throw new SystemError(Errno.EFBIG, `Cannot make a simulated file ${lengthBytes} bytes long`);
    }
    if (lengthBytes < this.#sizeBytes) this.zero(lengthBytes, this.#sizeBytes - lengthBytes);
    this.#sizeBytes = lengthBytes;
  }

  /** Makes a range read as zeros. */
  zero(offsetBytes: number, lengthBytes: number): void {
    const end = Math.min(this.#sizeBytes, offsetBytes + lengthBytes);
    if (end <= offsetBytes) return;
    this.#content.bytes.fill(0, offsetBytes, end);
    if (this.#durable !== null) {
      this.#volatile.push({ offsetBytes, bytes: new Uint8Array(end - offsetBytes) });
    }
  }

  /** Everything that was written is on stable storage now. */
  sync(): void {
    if (this.#durable === null) return;
    for (const { offsetBytes, bytes } of this.#volatile.splice(0)) {
      this.#durable.bytes.set(bytes, offsetBytes);
    }
    this.#shortenDurable(this.#sizeBytes);
    this.#durableSizeBytes = this.#sizeBytes;
  }

  #shortenDurable(sizeBytes: number): void {
    if (this.#durable === null || sizeBytes >= this.#durableSizeBytes) return;
    this.#durable.bytes.fill(0, sizeBytes, this.#durableSizeBytes);
  }

  /**
   * The power fails: each sector that was written since the last sync keeps its old content or has
   * a later one, and the length is the old or the new one.
   */
  cutPower(random: Random): void {
    if (this.#durable === null) throw new TypeError("This file does not simulate power cuts");
    const sizeBytes = random.chance(0.5) ? this.#sizeBytes : this.#durableSizeBytes;
    for (const { offsetBytes, bytes } of this.#volatile.splice(0)) {
      for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
        if (random.chance(0.5)) continue;
        this.#durable.bytes.set(bytes.subarray(at, at + SECTOR_BYTES), offsetBytes + at);
      }
    }
    const longest = Math.max(this.#sizeBytes, this.#durableSizeBytes);
    this.#durable.bytes.fill(0, sizeBytes, longest);
    this.#content.bytes.set(this.#durable.bytes.subarray(0, longest));
    this.#sizeBytes = sizeBytes;
    this.#durableSizeBytes = sizeBytes;
    this.lockedBy = null;
  }

  /** Gives the memory back. */
  release(): void {
    this.#content.release();
    this.#durable?.release();
  }
}
