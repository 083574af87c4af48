import { Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import { DD_BLK_UNUSED } from "../format/bat.ts";
import { openRawParent, walkImages } from "../image/chain.ts";
import type { VhdImage } from "../image/image.ts";
import type { StorageFile } from "../../files/storage.ts";
import { keyhashOf } from "../snapshot.ts";

/** What a disk gets when it becomes larger, bytes. */
interface Added {
  readonly fromBytes: number;
  readonly toBytes: number;
}

/**
 * The blocks that images below hold behind the end of a disk, in rising order. The first may begin in
 * front of that end. A larger disk would show what is there, so it needs zeros of its own.
 *
 * The images below may be away while the disk grows: storage managers activate only the image itself.
 * They are at most as large as the disk was when it was made, so they must be there only for a disk that
 * is smaller than it was then.
 *
 * @throws {SystemError} when the images below must be read and cannot be; EOPNOTSUPP for an encrypted
 * image that needs zeros.
 */
export function blocksBehindEnd(image: VhdImage, toBytes: number): number[] {
  const added = { fromBytes: image.sizeBytes, toBytes };
  if (image.parent === null || toBytes <= added.fromBytes) return [];
  const found = new Set<number>();
  try {
    addFromChain(image, added, (from, end) => {
      const { blockSizeBytes } = image;
      for (let at = Math.floor(from / blockSizeBytes); at * blockSizeBytes < end; at++) {
        found.add(at);
      }
    });
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    if (image.sizeBytes >= image.footer.originalSize) return [];
    const why = `it was larger, and what its parent holds there must be hidden: ${
      messageOf(error)
    }`;
    throw new SystemError(error.errno, `Cannot resize ${image.path} (${why})`, {
      hint: "make its parents readable first",
    });
  }
  if (found.size > 0 && keyhashOf(image) !== null) {
    const why = "its parent is longer, and would be seen there; zeros need its key";
    throw new SystemError(Errno.EOPNOTSUPP, `Cannot resize ${image.path} (${why})`, {
      hint: "put it on a copy of its parent that is no longer than the disk",
    });
  }
  return [...found].sort((a, b) => a - b);
}

type AddRange = (fromBytes: number, endBytes: number) => void;

/**
 * Adds what the images below hold. An image does not show behind the end of one above it, until that is
 * merged into it and goes away.
 */
function addFromChain(image: VhdImage, { fromBytes, toBytes }: Added, add: AddRange): void {
  for (const { image: layer, parent } of walkImages(image)) {
    if (layer !== image) {
      const added = { fromBytes, toBytes: Math.min(toBytes, layer.sizeBytes) };
      if (layer.header === null) addFromFlat(layer.file, added, add);
      else addFromBlocks(layer, added, add);
    }
    if (parent?.raw !== true) continue;
    const raw = openRawParent(image.storage, parent.path, parent);
    try {
      addFromFlat(raw.file, { fromBytes, toBytes: Math.min(toBytes, raw.sizeBytes) }, add);
    } finally {
      raw.file.close();
    }
  }
}

function addFromBlocks(
  { bat, blocks, blockSizeBytes }: VhdImage,
  { fromBytes, toBytes }: Added,
  add: AddRange,
): void {
  for (let block = Math.floor(fromBytes / blockSizeBytes); block < blocks; block++) {
    const at = block * blockSizeBytes;
    if (at >= toBytes) return;
    if (bat[block] === DD_BLK_UNUSED) continue;
    add(Math.max(at, fromBytes), Math.min(at + blockSizeBytes, toBytes));
  }
}

function addFromFlat(file: StorageFile, { fromBytes, toBytes }: Added, add: AddRange): void {
  for (let at = fromBytes; at < toBytes;) {
    const run = file.allocatedRun(at, toBytes - at);
    if (run > 0) add(at, at + run);
    at += Math.abs(run);
  }
}
