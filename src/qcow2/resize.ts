import { Errno, SystemError } from "../../ffi/errno.ts";
import { type OnStorage, osStorage } from "../files/storage.ts";
import { hasEntriesBehind, removeEntriesBehind } from "./behind_end.ts";
import { checkQcow2, countReferences } from "./check.ts";
import { soundReferences } from "./compact.ts";
import { DiskCounts } from "./disk_counts.ts";
import { giveBack } from "./free_room.ts";
import { Autoclear, HeaderField } from "./format/header.ts";
import { l1EntriesOf, MAX_L1_BYTES, SECTOR_BYTES } from "./format/units.ts";
import { markedDirectory } from "./image/bitmap_directory.ts";
import { openQcow2, type Qcow2Image } from "./image/image.ts";
import { locateDataFile } from "./image/named_files.ts";
import { clearBehindEnd } from "./old_end.ts";
import { changeHeader, type HeaderChange, rebuildRefcounts, tableChanges } from "./rebuild.ts";

/** Options of a new size. */
export interface ResizeQcow2Options extends OnStorage {
  readonly sizeBytes: number;
  /** Allows a smaller size, which cuts data off. */
  readonly shrink?: boolean;
}

/**
 * Gives the disk of an image another size. What is added reads as zeros. No data moves. The image is as
 * before until one sector, that of the header, is written.
 *
 * @throws {SystemError} EINVAL for a size that is smaller without that, or no multiple of a sector;
 * EFBIG for one that its clusters cannot hold; EOPNOTSUPP for an image of version 2 with snapshots, for a
 * smaller size with any, and where what is added would show an image below.
 */
export function resizeQcow2(
  path: string,
  { sizeBytes, shrink = false, storage = osStorage }: ResizeQcow2Options,
): void {
  const image = openQcow2(path, { storage, readOnly: false });
  try {
    requireSize(image, sizeBytes, shrink);
    image.file.refuseReaders();
    // The same size ends what was broken off.
    if (sizeBytes < image.sizeBytes || (shrink && sizeBytes === image.sizeBytes)) {
      makeSmaller(image, sizeBytes);
    } else makeLarger(image, sizeBytes);
  } finally {
    image.close();
  }
}

function makeLarger(image: Qcow2Image, sizeBytes: number): void {
  const { header, file, sizeBytes: before } = image;
  if (sizeBytes > before) clearBehindEnd(image);
  if (hasEntriesBehind(image, before)) {
    // A disk that was larger once, or whose new size was not followed by all of this.
    const references = soundReferences(image, `Cannot resize ${image.path}`);
    removeEntriesBehind(image, references, before);
    file.sync();
    new DiskCounts(image).settle(references);
  }
  setDataFileSize(image, sizeBytes);
  const entries = l1EntriesOf(sizeBytes, image.geometry);
  changeHeader(file, [
    ...sizeChanges(image, sizeBytes),
    ...(entries > header.l1Size ? growTable(image, entries) : []),
  ]);
}

function makeSmaller(image: Qcow2Image, sizeBytes: number): void {
  const { file } = image;
  const references = soundReferences(image, `Cannot resize ${image.path}`);
  changeHeader(file, sizeChanges(image, sizeBytes));
  removeEntriesBehind(image, references, sizeBytes);
  file.sync();
  new DiskCounts(image).settle(references);
  file.sync();
  giveBack(image, references);
  setDataFileSize(image, sizeBytes);
}

function sizeChanges(image: Qcow2Image, sizeBytes: number): HeaderChange[] {
  const { header } = image;
  const size = { offset: HeaderField.Size, value: BigInt(sizeBytes) };
  if (header.version < 3) return [size];
  const kept = keepBitmaps(image)
    ? Autoclear.Bitmaps | Autoclear.RawDataFile
    : Autoclear.RawDataFile;
  const value = header.autoclearFeatures & BigInt(kept);
  return [size, { offset: HeaderField.AutoclearFeatures, value }];
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
  shrink: boolean,
): void {
  const refuse = (why: string, errno: number = Errno.EINVAL): never => {
    throw new SystemError(errno, `Cannot resize ${path} to ${size} bytes (${why})`);
  };
  if (!Number.isSafeInteger(size) || size % SECTOR_BYTES !== 0) refuse("it is no size in sectors");
  if (size < before && !shrink) refuse(`it has ${before} bytes, and would lose data`);
  if (header.nbSnapshots > 0 && (header.version < 3 || size < before)) {
    const why = size < before
      ? "it has snapshots"
      : "snapshots of version 2 have no size of their own";
    refuse(why, Errno.EOPNOTSUPP);
  }
  if (l1EntriesOf(size, geometry) * 8 > MAX_L1_BYTES) {
    refuse(`clusters of ${geometry.clusterBytes} bytes cannot hold that`, Errno.EFBIG);
  }
}

/** A raw data file is the disk, byte by byte. */
function setDataFileSize(image: Qcow2Image, sizeBytes: number): void {
  const found = image.dataFile?.raw === true ? locateDataFile(image) : null;
  if (found === null) return;
  const file = image.storage.open(found.path, "write", { same: found });
  try {
    const isSmaller = sizeBytes < image.sizeBytes;
    if (!file.isBlockDevice && (isSmaller || file.sizeBytes() < sizeBytes)) {
      file.truncate(sizeBytes);
    }
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
