import type { AesXts } from "../../../ffi/aes_xts.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { Arena } from "../../../ffi/memory.ts";
import type { VhdImage } from "../../vhd/image/image.ts";
import { keyhashOf } from "../../vhd/snapshot.ts";
import { type ImageSpec, REQUEST_SECTORS, REQUEST_SLOTS, SECTOR_BYTES } from "../driver.ts";

/**
 * Encrypts and decrypts the data of one image. A sector's tweak is its number on the virtual disk,
 * the same in every image of a chain.
 *
 * Data that was read is decrypted in place. Data to write is encrypted into memory that each slot has
 * here. The memory of the request does not change, so a retry encrypts the same data again.
 */
export class SectorCipher {
  readonly #aes: AesXts;
  /** Null for an image that is only read. */
  readonly #sealed: Arena | null;
  /** First sector of the step that is under way in each slot. */
  readonly #starts = new Float64Array(REQUEST_SLOTS);

  constructor(aes: AesXts, { readOnly }: { readOnly: boolean }) {
    this.#aes = aes;
    const sealedBytes = REQUEST_SLOTS * REQUEST_SECTORS * SECTOR_BYTES;
    this.#sealed = readOnly ? null : new Arena(sealedBytes);
  }

  /** A step of at most `REQUEST_SECTORS` begins, of which no part is being written. */
  begin(slot: number, sector: number): void {
    this.#starts[slot] = sector;
  }

  /** Encrypts part of a slot's step; returns the sector of I/O memory to write it from. */
  seal(slot: number, sector: number, count: number, memorySector: number): number {
    const offset = sector - this.#starts[slot];
    if (this.#sealed === null || offset < 0 || offset + count > REQUEST_SECTORS) {
      throw new RangeError(`Sector ${sector} does not belong to what slot ${slot} writes`);
    }
    const to = this.#sealed.sector + slot * REQUEST_SECTORS + offset;
    this.#aes.encryptSectors(to, memorySector, count, sector);
    return to;
  }

  /** Decrypts what was read. */
  open(sector: number, count: number, memorySector: number): void {
    this.#aes.decryptSectors(memorySector, count, sector);
  }

  /** Gives up the key and the memory. */
  close(): void {
    this.#aes.close();
    this.#sealed?.release();
  }
}

/**
 * The cipher of an image; null for an image that is not encrypted. In a chain, the key hash of each
 * image says whether that image is encrypted.
 *
 * @throws {SystemError} EINVAL without a key, ENOKEY with another, as in the reference.
 */
export function cipherFor(image: VhdImage, spec: ImageSpec): SectorCipher | null {
  const keyhash = keyhashOf(image);
  if (keyhash === null) return null;
  if (spec.key === undefined) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot open ${spec.path}: it is encrypted and no key was given (tap-ctl open -E)`,
    );
  }
  if (!spec.key.matches(keyhash)) {
    throw new SystemError(Errno.ENOKEY, `Cannot open ${spec.path}: the key is not the image's`);
  }
  return new SectorCipher(spec.key.cipher(), spec);
}
