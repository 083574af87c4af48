import { AesXts } from "../../ffi/aes_xts.ts";

/** Opens libcrypto, as a library that is loaded within a test counts as a leak; false without. */
export function hasLibcrypto(): boolean {
  try {
    new AesXts(Uint8Array.from({ length: 64 }, (_, i) => i)).close();
    return true;
  } catch {
    return false;
  }
}
