import { AesXts } from "../../ffi/aes_xts.ts";

/**
 * Opens libcrypto; false if it is not installed. It is opened here because Deno reports a library
 * that is loaded within a test as a leak.
 */
export function hasLibcrypto(): boolean {
  try {
    new AesXts(Uint8Array.from({ length: 64 }, (_, i) => i)).close();
    return true;
  } catch {
    return false;
  }
}
