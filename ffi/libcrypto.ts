/**
 * OpenSSL's libcrypto, which is opened with the first key: AES-XTS, because the runtime's own
 * cryptography lacks this mode, and SHA-256 of keys, because the runtime's leaves copies in memory.
 *
 * @module
 */
import { Errno, SystemError } from "./errno.ts";
import { type Calls, openLibrary } from "./libc.ts";
import type { Secret } from "./secret.ts";

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
  // unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md)
  SHA256: { parameters: ["buffer", "usize", "buffer"], result: "pointer" },
} as const;

/** The functions of libcrypto that are used. */
export type Libcrypto = Calls<typeof SYMBOLS>;

const SONAMES = ["libcrypto.so.3", "libcrypto.so.1.1"];
/** Folders in which distributions keep 64-bit libraries. */
export const SYSTEM_FOLDERS: readonly string[] = [
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

/** The library. Throws `SystemError`: ENOENT when it is missing. */
export function libcrypto(): Libcrypto {
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

const SHA256_BYTES = 32;

/**
 * The SHA-256 of a secret, whose bytes libcrypto reads in place. Throws `SystemError`: ENOENT without
 * libcrypto.
 */
export function sha256(secret: Secret): Uint8Array<ArrayBuffer> {
  const hash = new Uint8Array(SHA256_BYTES);
  libcrypto().SHA256(secret.bytes, secret.bytes.length, hash);
  return hash;
}
