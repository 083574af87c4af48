import { Errno, SystemError } from "../../ffi/errno.ts";
import { SECTOR_BYTES } from "../../ffi/memory.ts";
import { type ConvertOptions, copyInto } from "./convert.ts";
import { createEngine } from "./engine.ts";
import { OpenImage } from "./open_image.ts";

/**
 * Copies a disk over a raw file or block device that exists, in place. A file gets the length of the
 * disk.
 *
 * @param from The image, as for tapdisk.
 * @param path The file or device.
 * @throws {SystemError} EINVAL for a file that the disk is read from; ENOSPC for a device that is too
 * small; EBUSY when a tapdisk uses the file.
 */
export async function replaceRaw(
  from: string,
  path: string,
  options: Pick<ConvertOptions, "signal" | "onProgress"> = {},
): Promise<void> {
  const engine = createEngine(() => {});
  try {
    const source = await OpenImage.open(engine, from, { readOnly: true, findsHoles: true });
    try {
      source.refuseAsTarget(path);
      const file = engine.context.files.storage.open(path, "write");
      const { isBlockDevice } = file;
      try {
        file.refuseReaders();
        if (!isBlockDevice) {
          file.truncate(0);
          file.truncate(source.sectors * SECTOR_BYTES);
        } else if (file.sizeBytes() < source.sectors * SECTOR_BYTES) {
          const why = `it has ${file.sizeBytes()} bytes, and ${from} ${
            source.sectors * SECTOR_BYTES
          }`;
          throw new SystemError(Errno.ENOSPC, `Cannot write to ${path} (${why})`);
        }
      } finally {
        file.close();
      }
      await copyInto(engine, { source, target: `aio:${path}`, isNew: !isBlockDevice, options });
    } finally {
      await source.close(engine);
    }
  } finally {
    engine.close();
  }
}
