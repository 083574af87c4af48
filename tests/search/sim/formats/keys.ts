/**
 * The key of the encrypted images of all worlds.
 *
 * @module
 */
import { AesXts } from "../../../../ffi/aes_xts.ts";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { hasLibcrypto } from "../../../support/libcrypto.ts";
import { DiskKey, hashKey, storeKeyhash } from "../../../../src/vhd/key.ts";

const KEY = Uint8Array.from({ length: 64 }, (_, i) => i * 7 + 1);
const NONCE = new Uint8Array(32).fill(9);

let cipher: AesXts | null = null;

/** The key for a device, which wipes it. */
export function diskKey(): DiskKey {
  return new DiskKey(KEY);
}

/** Sectors as an encrypted image has them. They are changed in place. */
export function encrypt(bytes: Uint8Array<ArrayBuffer>, sector: number): Uint8Array<ArrayBuffer> {
  cipher ??= new AesXts(KEY);
  cipher.encrypt(bytes, sector);
  return bytes;
}

/** Decrypts sectors in place. */
export function decrypt(bytes: Uint8Array<ArrayBuffer>, sector: number): void {
  cipher ??= new AesXts(KEY);
  cipher.decrypt(bytes, sector);
}

/** Whether a sector is what a hole in the file of an encrypted image reads as. Changes the bytes. */
export function isHoleDecrypted(bytes: Uint8Array<ArrayBuffer>, sector: number): boolean {
  return hasLibcrypto() && encrypt(bytes, sector).every((byte) => byte === 0);
}

/** Makes an image without data an encrypted one. */
export function addKeyhash(disk: SimulatedDisk, path: string): void {
  storeKeyhash(path, { storage: disk, nonce: NONCE, hash: hashKey(KEY, NONCE) });
}
