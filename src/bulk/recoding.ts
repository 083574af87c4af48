import { AesXts } from "../../ffi/aes_xts.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import type { KeyHash } from "../vhd/format/batmap.ts";
import type { VhdImage } from "../vhd/image/image.ts";
import { hashKey, KEYHASH_BYTES, matchesKeyhash } from "../vhd/key.ts";
import { isEncrypted } from "./layers.ts";
import type { Move } from "./mover.ts";

/** The encryption of a copy. */
export interface Recoding {
  /** The copy's key hash, null without one. Undefined: the image's own. */
  readonly keyhash?: KeyHash | null;
  readonly transform?: Move["transform"];
  close(): void;
}

/** The keys of a copy. */
export interface CopyKeys {
  readonly key?: Uint8Array<ArrayBuffer>;
  readonly sourceKey?: Uint8Array<ArrayBuffer>;
}

function isKeyOf(image: VhdImage, key: Uint8Array): boolean {
  const keyhash = image.batmap?.header.keyhash;
  return keyhash !== undefined && matchesKeyhash(key, keyhash);
}

/**
 * Plans the encryption of a copy. The data is copied unchanged when the copy has the image's own
 * key.
 *
 * @throws {SystemError} EINVAL for keys of other lengths and for fixed images, which cannot hold a
 * key hash; ENOKEY when the image's own key is required and missing or wrong.
 */
export function planRecoding(image: VhdImage, { key, sourceKey }: CopyKeys): Recoding {
  if (key === undefined && sourceKey === undefined) return { close: () => {} };
  if (image.type === "fixed") {
    throw new SystemError(Errno.EINVAL, `Cannot encrypt a copy of ${image.path}: it is fixed`);
  }
  const encrypted = isEncrypted(image);
  if (sourceKey === undefined && encrypted && key !== undefined && isKeyOf(image, key)) {
    return { close: () => {} };
  }
  if (encrypted !== (sourceKey !== undefined)) {
    const problem = encrypted ? "it is encrypted with another key" : "it is not encrypted";
    throw new SystemError(Errno.ENOKEY, `Cannot copy ${image.path} with these keys: ${problem}`);
  }
  if (sourceKey !== undefined && !isKeyOf(image, sourceKey)) {
    throw new SystemError(Errno.ENOKEY, `Cannot copy ${image.path}: that is not its key`);
  }
  const decoder = sourceKey === undefined ? null : new AesXts(sourceKey);
  const encoder = key === undefined ? null : new AesXts(key);
  return {
    keyhash: key === undefined ? null : keyhashFor(key),
    transform(bytes, sector): void {
      decoder?.decrypt(bytes, sector);
      encoder?.encrypt(bytes, sector);
    },
    close(): void {
      decoder?.close();
      encoder?.close();
    },
  };
}

function keyhashFor(key: Uint8Array): KeyHash {
  const nonce = new Uint8Array(KEYHASH_BYTES);
  return { cookie: 1, nonce, hash: hashKey(key, nonce) };
}
