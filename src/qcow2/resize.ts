import { Errno, SystemError } from "../../ffi/errno.ts";
import { type OnStorage, osStorage } from "../files/storage.ts";
import { checkQcow2, countReferences } from "./check.ts";
import { Autoclear, HeaderField } from "./format/header.ts";
import { l1EntriesOf, MAX_L1_BYTES, SECTOR_BYTES } from "./format/units.ts";
import { clearBehindEnd } from "./old_end.ts";
import { openQcow2, type Qcow2Image } from "./image/image.ts";
import { markedDirectory } from "./image/bitmap_directory.ts";
import { locateDataFile } from "./image/named_files.ts";
import { changeHeader, type HeaderChange, rebuildRefcounts, tableChanges } from "./rebuild.ts";

/**
 * Makes the disk of an image larger; it reads as zeros behind its old end. No data moves. The image is
 * as before until one sector, that of the header, is written.
 *
 * @throws {SystemError} EINVAL for a size that is smaller or no multiple of a sector; EFBIG for one that
 * its clusters cannot hold; EOPNOTSUPP for an image of version 2 with snapshots, and for one whose
 * backing file is longer than its disk.
 */
export function resizeQcow2(
  path: string,
  { sizeBytes, storage = osStorage }: OnStorage & { readonly sizeBytes: number },
): void {
  const image = openQcow2(path, { storage, readOnly: false });
  try {
    requireSize(image, sizeBytes);
    image.file.refuseReaders();
    if (sizeBytes > image.sizeBytes) clearBehindEnd(image);
    growDataFile(image, sizeBytes);
    const entries = l1EntriesOf(sizeBytes, image.geometry);
    const { header } = image;
    const changes: HeaderChange[] = [
      { offset: HeaderField.Size, value: BigInt(sizeBytes) },
      ...(entries > header.l1Size ? growTable(image, entries) : []),
    ];
    if (header.version >= 3) {
      const kept = keepBitmaps(image)
        ? Autoclear.Bitmaps | Autoclear.RawDataFile
        : Autoclear.RawDataFile;
      const value = header.autoclearFeatures & BigInt(kept);
      changes.push({ offset: HeaderField.AutoclearFeatures, value });
    }
    changeHeader(image.file, changes);
  } finally {
    image.close();
  }
}

/** Bitmaps are as long as the disk was: marks say so. Returns whether they can be kept with them. */
function keepBitmaps(image: Qcow2Image): boolean {
  const directory = markedDirectory(image);
  if (directory?.isInFile === false) image.file.writeAt(directory.bytes, directory.offsetBytes);
  return directory !== null;
}

function requireSize(
  { path, sizeBytes: before, header, geometry }: Qcow2Image,
  size: number,
): void {
  const refuse = (why: string, errno: number = Errno.EINVAL): never => {
    throw new SystemError(errno, `Cannot resize ${path} to ${size} bytes (${why})`);
  };
  if (!Number.isSafeInteger(size) || size % SECTOR_BYTES !== 0) refuse("it is no size in sectors");
  if (size < before) refuse(`it has ${before} bytes, and a QCOW2 is not made smaller`);
  if (header.version < 3 && header.nbSnapshots > 0) {
    refuse("snapshots of version 2 have no size of their own", Errno.EOPNOTSUPP);
  }
  if (l1EntriesOf(size, geometry) * 8 > MAX_L1_BYTES) {
    refuse(`clusters of ${geometry.clusterBytes} bytes cannot hold that`, Errno.EFBIG);
  }
}

/** A raw data file is the disk, byte by byte. */
function growDataFile(image: Qcow2Image, sizeBytes: number): void {
  const found = image.dataFile?.raw === true ? locateDataFile(image) : null;
  if (found === null) return;
  const file = image.storage.open(found.path, "write", { same: found });
  try {
    if (!file.isBlockDevice && file.sizeBytes() < sizeBytes) file.truncate(sizeBytes);
    file.sync();
  } finally {
    file.close();
  }
}

/** Makes room for more entries in the L1 table: in its clusters, or in a new place. */
function growTable(image: Qcow2Image, entries: number): HeaderChange[] {
  const { header, geometry, file, l1 } = image;
  const { clusterBytes } = geometry;
  const size = { offset: HeaderField.L1Size, value: BigInt(entries), isShort: true };
  const room = Math.ceil(l1.byteLength / clusterBytes) * clusterBytes;
  if (entries * 8 <= room) {
    const zeros = new Uint8Array(entries * 8 - l1.byteLength);
    file.writeAt(zeros, Number(header.l1TableOffset) + l1.byteLength);
    return [size];
  }
  const { references, errors, isMendable } = countReferences(image);
  if (!isMendable) throw new SystemError(Errno.EINVAL, `Cannot resize ${image.path}: ${errors[0]}`);
  // The refcount blocks are in use until the header leads to new ones.
  const end = file.isBlockDevice ? checkQcow2(image).endOfData : file.sizeBytes();
  const first = Math.max(Math.ceil(end / clusterBytes), references.end);
  const table = new Uint8Array(Math.ceil(entries * 8 / clusterBytes) * clusterBytes);
  table.set(new Uint8Array(l1.buffer, l1.byteOffset, l1.byteLength));
  file.writeAt(table, first * clusterBytes);
  const clusters = table.length / clusterBytes;
  for (let i = 0; i < clusters; i++) references.add(first + i);
  // The old table is not referred to any more.
  const old = Number(header.l1TableOffset) / clusterBytes;
  for (let i = 0; i < room / clusterBytes; i++) references.remove(old + i);
  const counts = rebuildRefcounts(image, references, first + clusters);
  return [
    size,
    { offset: HeaderField.L1TableOffset, value: BigInt(first * clusterBytes) },
    ...tableChanges(counts),
  ];
}
