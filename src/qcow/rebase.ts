import { encodeName } from "../../ffi/names.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import type { Storage } from "../files/storage.ts";
import { encodeHeader, MOST_NAME_BYTES, SECTOR_BYTES } from "./format.ts";
import { openQcow } from "./image.ts";

/**
 * Changes the name of an image's backing file. The new name goes to the end of the file, and is durable
 * before the header leads to it.
 *
 * @throws {SystemError} EINVAL for an image without a backing file, or a name that is too long; EBUSY
 * when a tapdisk uses the image.
 */
export function setBackingName(storage: Storage, path: string, name: string): void {
  const bytes = encodeName(name);
  if (bytes.length > MOST_NAME_BYTES) {
    const why = `its name is longer than ${MOST_NAME_BYTES} bytes`;
    throw new SystemError(Errno.EINVAL, `Cannot change the backing file of ${path}: ${why}`);
  }
  const image = openQcow(path, { storage, readOnly: false });
  try {
    if (image.backingName === null) {
      throw new SystemError(
        Errno.EINVAL,
        `Cannot change the backing file of ${path}, which has none`,
      );
    }
    const { file, header } = image;
    file.refuseReaders();
    const clusterBytes = 2 ** header.clusterBits;
    const at = Math.ceil(file.sizeBytes() / clusterBytes) * clusterBytes;
    const padded = new Uint8Array(Math.ceil(bytes.length / SECTOR_BYTES) * SECTOR_BYTES);
    padded.set(bytes);
    file.writeAt(padded, at);
    file.sync();
    const changed = { ...header, backingOffsetBytes: at, backingLengthBytes: bytes.length };
    file.writeAt(encodeHeader(changed), 0);
    file.sync();
  } finally {
    image.close();
  }
}
