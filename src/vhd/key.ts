/**
 * The key hash of an image: a nonce and a hash that identify the right key. It is the only trace of
 * the key in the image. The key itself is in a separate file,
 * `<image's name>,aes-xts-plain,<bits>.key`.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { assert } from "../../ffi/assert.ts";
import { AesXts } from "../../ffi/aes_xts.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { receiveAt, sendAt, socketPair } from "../../ffi/sockets.ts";
import { sha256 } from "../../ffi/libcrypto.ts";
import { Secret } from "../../ffi/secret.ts";
import { allocatedBlocks } from "./format/bat.ts";
import type { KeyHash } from "./format/batmap.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { fileNameOf } from "../files/paths.ts";
import { keyhashOf, writeKeyhash } from "./snapshot.ts";
import { osStorage, type Storage } from "../files/storage.ts";

/** The accepted key lengths in bits. Half of a key is for AES, half for the tweak. */
export const CRYPTO_SUPPORTED_KEYSIZE = [512, 256] as const;
/** Length of a nonce and of a hash, in bytes. */
export const KEYHASH_BYTES = 32;
const MAX_KEY_BYTES = 64;

/** The storage of the files; the system's by default. */
export interface KeyOptions {
  readonly storage?: Storage;
}

/** A file name that does not belong to a key of the image. */
class KeyNameError extends SystemError {
  constructor(keyPath: string, imagePath: string) {
    super(
      Errno.EPERM,
      `Cannot use ${keyPath} as a key of ${imagePath}: its name is not ` +
        `${baseName(imagePath)},aes-xts-plain,512.key or …256.key`,
    );
  }
}

/** The hash of a key: SHA-256 of the nonce and the key. */
export function hashKey(key: Uint8Array, nonce: Uint8Array): Uint8Array {
  const both = new Secret(nonce.length + key.length);
  both.bytes.set(nonce);
  both.bytes.set(key, nonce.length);
  try {
    return sha256(both);
  } catch (error) {
    if (!(error instanceof SystemError) || error.errno !== Errno.ENOENT) throw error;
    // Without libcrypto no disk can be served with the key. The runtime's hash leaves a copy of the key
    // in the memory of this process, which is a vhd-util that ends soon.
    return new Uint8Array(createHash("sha256").update(both.bytes).digest());
  } finally {
    both.release();
  }
}

/** Whether a key has this key hash. */
export function matchesKeyhash(key: Uint8Array, { nonce, hash }: KeyHash): boolean {
  return hashKey(key, nonce).every((byte, i) => byte === hash[i]);
}

/**
 * The key of a disk while it is served, in memory of its own (`ffi/secret.ts`). Printing or logging
 * this object shows none of its bytes.
 */
export class DiskKey {
  readonly #secret: Secret;
  #wiped = false;

  /**
   * @param bytes Are copied; the caller overwrites them.
   * @throws {SystemError} EINVAL for a key that does not have 32 or 64 bytes.
   */
  constructor(bytes: Uint8Array) {
    const bits = bytes.length * 8;
    if (!CRYPTO_SUPPORTED_KEYSIZE.some((size) => size === bits)) {
      const wanted = "it must have 256 or 512";
      throw new SystemError(
        Errno.EINVAL,
        `Cannot use an encryption key of ${bits} bits: ${wanted}`,
      );
    }
    this.#secret = new Secret(bytes.length);
    this.#secret.bytes.set(bytes);
  }

  /** Whether the key has this key hash. */
  matches(keyhash: KeyHash): boolean {
    return !this.#wiped && matchesKeyhash(this.#secret.bytes, keyhash);
  }

  /** The cipher with this key. Throws `SystemError`: ENOENT without libcrypto. */
  cipher(): AesXts {
    assert(!this.#wiped, "A cipher is wanted of a key that was overwritten");
    return new AesXts(this.#secret.bytes);
  }

  /**
   * A descriptor from which another process can receive the key once, by `receiveKey`. The kernel has it
   * meanwhile; no other memory of this process gets a copy. The caller owns the descriptor.
   *
   * @throws {SystemError}
   */
  forAnother(): number {
    assert(!this.#wiped, "A key is handed over that was overwritten");
    const { address, bytes } = this.#secret;
    const [from, to] = socketPair();
    const sent = sendAt(from, address, bytes.length);
    closeFile(from);
    if (sent === bytes.length) return to;
    closeFile(to);
    throw new SystemError(sent < 0 ? -sent : Errno.EIO, "Cannot hand a key over");
  }

  /** Another copy of the key, which is wiped on its own. */
  copy(): DiskKey {
    assert(!this.#wiped, "A copy is wanted of a key that was overwritten");
    return new DiskKey(this.#secret.bytes);
  }

  /** Overwrites the key. It matches no key hash afterwards. */
  wipe(): void {
    this.#wiped = true;
    this.#secret.release();
  }
}

/**
 * Receives a key from the descriptor of {@linkcode DiskKey.forAnother}, which stays open.
 *
 * @throws {SystemError} EINVAL for what is no key.
 */
export function receiveKey(fd: number): DiskKey {
  const secret = new Secret(MAX_KEY_BYTES);
  try {
    const got = receiveAt(fd, secret.address, MAX_KEY_BYTES);
    if (got < 0) throw new SystemError(-got, "Cannot receive a key");
    return new DiskKey(secret.bytes.subarray(0, got));
  } finally {
    secret.release();
  }
}

/**
 * Reads a key from its file, at most 64 bytes, straight into memory for keys.
 *
 * @throws {SystemError} EIO for a larger file; errors of the file system.
 */
export function readKey(path: string, { storage = osStorage }: KeyOptions = {}): Secret {
  const file = storage.open(path, "read");
  try {
    const sizeBytes = file.sizeBytes();
    if (sizeBytes > MAX_KEY_BYTES) {
      throw new SystemError(Errno.EIO, `Cannot use ${path} as a key: it has ${sizeBytes} bytes`);
    }
    const key = new Secret(sizeBytes);
    file.readAt(key.bytes, 0);
    return key;
  } finally {
    file.close();
  }
}

/**
 * Reads the key of an image. The file's name must contain the image's name and the key length.
 *
 * @throws {KeyNameError} for another name; EINVAL when the key has another length than the name
 * says.
 */
export function readKeyOf(
  imagePath: string,
  keyPath: string,
  options: KeyOptions = {},
): Secret {
  const name = fileNameOf(keyPath);
  const bits = CRYPTO_SUPPORTED_KEYSIZE.find((size) =>
    name.startsWith(`${baseName(imagePath)},aes-xts-plain,${size}.key`)
  );
  if (bits === undefined) throw new KeyNameError(keyPath, imagePath);
  const key = readKey(keyPath, options);
  const gotBits = key.bytes.length * 8;
  if (gotBits === bits) return key;
  key.release();
  throw new SystemError(
    Errno.EINVAL,
    `Cannot use ${keyPath} as a key: it has ${gotBits} bits, its name says ${bits}`,
  );
}

function baseName(path: string): string {
  const name = fileNameOf(path);
  const end = name.indexOf(".vhd");
  return end < 0 ? name : name.slice(0, end);
}

/** The key hash of an image; null without one. */
export function readKeyhash(
  path: string,
  { storage = osStorage }: KeyOptions = {},
): KeyHash | null {
  const image = openVhd(path, { storage });
  image.close();
  return keyhashOf(image);
}

/**
 * Stores a key hash in an image that holds no data yet.
 *
 * @throws {SystemError} EINVAL for an image with data or a fixed one; EOPNOTSUPP for one without a
 * batmap; errors of the file system.
 */
export function storeKeyhash(
  path: string,
  { storage = osStorage, nonce, hash }: KeyOptions & { nonce: Uint8Array; hash: Uint8Array },
): void {
  const image = openVhd(path, { storage, readOnly: false });
  try {
    requireKeyable(image);
    writeKeyhash(image, { cookie: 1, nonce, hash });
  } finally {
    image.close();
  }
}

function requireKeyable({ path, type, bat, batmap }: VhdImage): void {
  if (type === "fixed") {
    throw new SystemError(Errno.EINVAL, `Cannot set the key of ${path}: it is a fixed image`);
  }
  if (allocatedBlocks(bat) > 0) {
    throw new SystemError(Errno.EINVAL, `Cannot set the key of ${path}: it holds data already`);
  }
  if (batmap !== null) return;
  throw new SystemError(Errno.EOPNOTSUPP, `Cannot set the key of ${path}: it has no batmap`);
}

/**
 * Checks that a key file holds the key of an image.
 *
 * @throws {SystemError} EINVAL for another key or an image without one; errors of
 * {@linkcode readKeyOf}.
 */
export function checkKey(path: string, keyPath: string, options: KeyOptions = {}): void {
  const keyhash = readKeyhash(path, options);
  if (keyhash === null) {
    throw new SystemError(Errno.EINVAL, `Cannot check the key of ${path}: it has none`);
  }
  const key = readKeyOf(path, keyPath, options);
  const matches = matchesKeyhash(key.bytes, keyhash);
  key.release();
  if (matches) return;
  throw new SystemError(Errno.EINVAL, `${keyPath} is not the key of ${path}`);
}
