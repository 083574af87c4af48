/**
 * AES-XTS by OpenSSL's libcrypto, because the runtime's own cryptography lacks this mode. The
 * library is opened with the first key.
 *
 * Sectors are copied through one buffer whose pointers are made once. The runtime compiles calls
 * that take such pointers, so they allocate nothing, and that saves more than the copies cost.
 *
 * @module
 */
import { Errno, SystemError } from "./errno.ts";
import { type Calls, openLibrary } from "./libc.ts";
import { Arena, copyPointed, SECTOR_BYTES, SectorPointers } from "./memory.ts";

const SYMBOLS = {
  // const EVP_CIPHER *EVP_aes_128_xts(void)
  EVP_aes_128_xts: { parameters: [], result: "pointer" },
  // const EVP_CIPHER *EVP_aes_256_xts(void)
  EVP_aes_256_xts: { parameters: [], result: "pointer" },
  // EVP_CIPHER_CTX *EVP_CIPHER_CTX_new(void)
  EVP_CIPHER_CTX_new: { parameters: [], result: "pointer" },
  // void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *c)
  EVP_CIPHER_CTX_free: { parameters: ["pointer"], result: "void" },
  // int EVP_CipherInit_ex(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *type, ENGINE *impl,
  //   const unsigned char *key, const unsigned char *iv, int enc)
  EVP_CipherInit_ex: {
    parameters: ["pointer", "pointer", "pointer", "buffer", "buffer", "i32"],
    result: "i32",
  },
  // int EVP_CipherUpdate(EVP_CIPHER_CTX *ctx, unsigned char *out, int *outl,
  //   const unsigned char *in, int inl)
  EVP_CipherUpdate: {
    parameters: ["pointer", "pointer", "buffer", "pointer", "i32"],
    result: "i32",
  },
} as const;

type Libcrypto = Calls<typeof SYMBOLS>;

const SONAMES = ["libcrypto.so.3", "libcrypto.so.1.1"];
/** Folders in which distributions keep 64-bit libraries. */
const SYSTEM_FOLDERS = [
  "/usr/lib/x86_64-linux-gnu",
  "/lib/x86_64-linux-gnu",
  "/usr/lib64",
  "/lib64",
  "/usr/lib",
];

/**
 * The libraries to try, in order. The system's library comes first, because the distribution keeps
 * it up to date. The loader's choice comes last: for a packaged binary it is the copy beside the
 * binary, for systems without the library or with one that needs a newer libc than the package has.
 */
export const LIBCRYPTO_CHOICES: readonly string[] = [
  ...SONAMES.flatMap((name) => SYSTEM_FOLDERS.map((folder) => `${folder}/${name}`)),
  ...SONAMES,
];

let opened: Libcrypto | null = null;

function libcrypto(): Libcrypto {
  if (opened !== null) return opened;
  for (const name of LIBCRYPTO_CHOICES) {
    try {
      opened = openLibrary(name, SYMBOLS);
      return opened;
    } catch {
      // Try the next name.
    }
  }
  throw new SystemError(
    Errno.ENOENT,
    "Cannot use encryption keys: OpenSSL's libcrypto is missing (Debian: install libssl3)",
  );
}

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

  /** Frees the key's memory in libcrypto. */
  close(): void {
    this.#library.EVP_CIPHER_CTX_free(this.#encrypting);
    this.#library.EVP_CIPHER_CTX_free(this.#decrypting);
  }
}
