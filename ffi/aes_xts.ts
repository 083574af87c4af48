/**
 * AES-XTS by OpenSSL's libcrypto.
 *
 * Sectors are copied through one buffer whose pointers are made once. The runtime compiles calls
 * that take such pointers, so they allocate nothing, and that saves more than the copies cost.
 *
 * @module
 */
import { Errno, SystemError } from "./errno.ts";
import { lockCipherState } from "./cipher_state.ts";
import { libcrypto } from "./libcrypto.ts";
import { Arena, copyPointed, SECTOR_BYTES, SectorPointers } from "./memory.ts";

const UNCHANGED = -1;
/** Sectors of one pass: few enough to stay in the first-level cache. */
const BENCH_SECTORS = 32;

/** Pointers to keep: as many as the requests of two busy disks need. */
const MOST_PLACES = 8192;

/** The buffer that all ciphers of the process share. */
interface Bench {
  readonly arena: Arena;
  /** A pointer to each sector of the buffer. */
  readonly pointers: readonly Deno.PointerObject[];
  /** Pointers to the sectors of I/O memory that are read and written. */
  readonly places: SectorPointers;
}

let bench: Bench | null = null;

function openBench(): Bench {
  const arena = new Arena(BENCH_SECTORS * SECTOR_BYTES);
  const pointers = Array.from(
    { length: BENCH_SECTORS },
    (_, i) => arena.pointerAt(i * SECTOR_BYTES),
  );
  return { arena, pointers, places: new SectorPointers(MOST_PLACES) };
}

/**
 * A key that encrypts and decrypts sectors of a disk as dm-crypt's `aes-xts-plain` does: the tweak
 * is the low 32 bits of the sector number, little-endian.
 */
export class AesXts {
  readonly #library = libcrypto();
  readonly #bench = bench ??= openBench();
  readonly #encrypting: Deno.PointerValue;
  readonly #decrypting: Deno.PointerValue;
  readonly #tweak = new Uint8Array(16);
  readonly #tweakView = new DataView(this.#tweak.buffer);
  readonly #length = new Int32Array(1);

  /**
   * @param key 32 bytes for AES-128 or 64 for AES-256. One half encrypts data, the other the tweak.
   * libcrypto reads them in place. The memory where it keeps what it derives is locked in RAM.
   * @throws {SystemError} EINVAL for another length or two equal halves; ENOENT without libcrypto.
   */
  constructor(key: Uint8Array<ArrayBuffer>) {
    if (key.length !== 32 && key.length !== 64) {
      throw new SystemError(
        Errno.EINVAL,
        `Cannot use a key of ${key.length * 8} bits: it must have 256 or 512`,
      );
    }
    this.#encrypting = this.#context(key, 1);
    this.#decrypting = this.#context(key, 0);
    lockCipherState([this.#encrypting, this.#decrypting], key);
  }

  #context(key: Uint8Array<ArrayBuffer>, encrypt: number): Deno.PointerValue {
    const library = this.#library;
    const cipher = key.length === 64 ? library.EVP_aes_256_xts() : library.EVP_aes_128_xts();
    const context = library.EVP_CIPHER_CTX_new();
    if (library.EVP_CipherInit_ex(context, cipher, null, key, null, encrypt) !== 1) {
      library.EVP_CIPHER_CTX_free(context);
      throw new SystemError(Errno.EINVAL, "Cannot use the key: OpenSSL refuses it");
    }
    return context;
  }

  /**
   * Encrypts sectors in place.
   *
   * @param bytes Whole sectors.
   * @param sector Number of the first on the disk.
   * @throws {SystemError} EIO when libcrypto fails.
   */
  encrypt(bytes: Uint8Array<ArrayBuffer>, sector: number): void {
    this.#cryptBytes(this.#encrypting, bytes, sector);
  }

  /** Decrypts sectors in place; parameters and errors as for `encrypt`. */
  decrypt(bytes: Uint8Array<ArrayBuffer>, sector: number): void {
    this.#cryptBytes(this.#decrypting, bytes, sector);
  }

  /**
   * Encrypts sectors of I/O memory into other sectors of I/O memory.
   *
   * @param to First sector to write.
   * @param from First sector to read; it is left unchanged.
   * @param sector Number of the first sector on the disk.
   * @throws {SystemError} EIO when libcrypto fails.
   */
  encryptSectors(to: number, from: number, count: number, sector: number): void {
    this.#cryptSectors(this.#encrypting, to, from, count, sector);
  }

  /**
   * Decrypts sectors of I/O memory in place.
   *
   * @param sector Number of the first sector on the disk.
   * @throws {SystemError} EIO when libcrypto fails.
   */
  decryptSectors(memorySector: number, count: number, sector: number): void {
    this.#cryptSectors(this.#decrypting, memorySector, memorySector, count, sector);
  }

  #cryptBytes(context: Deno.PointerValue, bytes: Uint8Array<ArrayBuffer>, sector: number): void {
    const { bytes: work } = this.#bench.arena;
    for (let at = 0; at < bytes.length; at += BENCH_SECTORS * SECTOR_BYTES) {
      const part = bytes.subarray(at, at + BENCH_SECTORS * SECTOR_BYTES);
      work.set(part);
      this.#cryptBench(context, part.length / SECTOR_BYTES, sector + at / SECTOR_BYTES);
      part.set(work.subarray(0, part.length));
    }
    work.fill(0);
  }

  #cryptSectors(
    context: Deno.PointerValue,
    to: number,
    from: number,
    count: number,
    sector: number,
  ): void {
    const { places, pointers } = this.#bench;
    const work = pointers[0];
    for (let done = 0; done < count; done += BENCH_SECTORS) {
      const part = Math.min(BENCH_SECTORS, count - done);
      copyPointed(work, places.at(from + done), part * SECTOR_BYTES);
      this.#cryptBench(context, part, sector + done);
      copyPointed(places.at(to + done), work, part * SECTOR_BYTES);
    }
  }

  #cryptBench(context: Deno.PointerValue, count: number, sector: number): void {
    const { EVP_CipherInit_ex, EVP_CipherUpdate } = this.#library;
    const { pointers } = this.#bench;
    for (let i = 0; i < count; i++) {
      this.#tweakView.setUint32(0, (sector + i) >>> 0, true);
      const ready = EVP_CipherInit_ex(context, null, null, null, this.#tweak, UNCHANGED);
      const at = pointers[i];
      if (ready !== 1 || EVP_CipherUpdate(context, at, this.#length, at, SECTOR_BYTES) !== 1) {
        throw new SystemError(Errno.EIO, `Cannot encrypt or decrypt sector ${sector + i}`);
      }
    }
  }

  /** Frees the key's memory in libcrypto, which overwrites it. */
  close(): void {
    this.#library.EVP_CIPHER_CTX_free(this.#encrypting);
    this.#library.EVP_CIPHER_CTX_free(this.#decrypting);
  }
}
