import { Errno, SystemError } from "../../ffi/errno.ts";
import type { StorageFile } from "../files/storage.ts";
import { backingFacts } from "./backing.ts";
import { decompressCluster } from "./format/compression.ts";
import {
  compressedPlace,
  OFLAG_COMPRESSED_HIGH,
  OFLAG_COPIED_HIGH,
  OFLAG_ZERO_LOW,
  sectorOfEntry,
} from "./format/entries.ts";
import { SECTOR_BYTES } from "./format/units.ts";
import type { Qcow2Image } from "./image/image.ts";
import { locateBacking, locateDataFile } from "./image/named_files.ts";

/**
 * Makes sure that nothing lies behind the end of the disk that would be seen when it gets larger: a
 * longer backing file, and what the last cluster holds behind that end, which is made zero. The disk
 * reads the same afterwards.
 *
 * @throws {SystemError} EOPNOTSUPP when something would be seen; what the backing file says.
 */
export function clearBehindEnd(image: Qcow2Image): void {
  const { storage, path, sizeBytes } = image;
  const backing = locateBacking(image);
  if (backing !== null && backingFacts(storage, backing).sizeBytes > sizeBytes) {
    throw new SystemError(
      Errno.EOPNOTSUPP,
      `Cannot resize ${path}: its backing file ${backing.path} is longer, and would be seen there`,
      { hint: "use qemu-img resize, which writes zeros" },
    );
  }
  const { clusterBytes } = image.geometry;
  if (sizeBytes % clusterBytes !== 0) clearTail(image, Math.floor(sizeBytes / clusterBytes));
}

/** The entry of a cluster, with its bitmap; null when its table is not there. */
function entryOf({ l1, file, geometry }: Qcow2Image, cluster: number): DataView | null {
  const { l2Entries, l2EntryBytes } = geometry;
  const index = Math.floor(cluster / l2Entries);
  const table = sectorOfEntry(l1.getUint32(8 * index, false), l1.getUint32(8 * index + 4, false));
  if (table === 0) return null;
  const bytes = new Uint8Array(16);
  const inTable = (cluster % l2Entries) * l2EntryBytes;
  file.readAt(bytes.subarray(0, l2EntryBytes), table * SECTOR_BYTES + inTable);
  return new DataView(bytes.buffer);
}

function clearTail(image: Qcow2Image, cluster: number): void {
  const entry = entryOf(image, cluster);
  if (entry === null) return;
  const [high, low] = [entry.getUint32(0, false), entry.getUint32(4, false)];
  if ((high & OFLAG_COMPRESSED_HIGH) !== 0) return refuseCompressed(image, high, low);
  const { hasSubclusters, subclusters, clusterBytes } = image.geometry;
  const place = sectorOfEntry(high, low) * SECTOR_BYTES;
  const isThere = place !== 0 || (image.dataFile !== null && (high & OFLAG_COPIED_HIGH) !== 0);
  const isZero = !hasSubclusters && image.header.version >= 3 && (low & OFLAG_ZERO_LOW) !== 0;
  if (!isThere || isZero) return;
  const inData = locateDataFile(image);
  const file = inData === null ? image.file : image.storage.open(inData.path, "write", {
    same: inData,
  });
  try {
    const partBytes = clusterBytes / subclusters;
    const end = image.sizeBytes % clusterBytes;
    for (let i = Math.floor(end / partBytes); i < subclusters; i++) {
      if (hasSubclusters && (entry.getUint32(12, false) & 1 << i) === 0) continue;
      const start = Math.max(end, i * partBytes);
      const mayWrite = inData !== null || (high & OFLAG_COPIED_HIGH) !== 0;
      const lengthBytes = (i + 1) * partBytes - start;
      clearRange(image, file, { offsetBytes: place + start, lengthBytes, mayWrite });
    }
    if (inData !== null) file.sync();
  } finally {
    if (inData !== null) file.close();
  }
}

function refuseCompressed(image: Qcow2Image, high: number, low: number): void {
  const { header: { compressionType: type }, geometry: { clusterBits, clusterBytes } } = image;
  const { offsetBytes, lengthBytes } = compressedPlace(high, low, clusterBits);
  const bytes = new Uint8Array(lengthBytes);
  image.file.readAt(bytes, offsetBytes);
  const content = decompressCluster(bytes, { type, clusterBytes });
  if (!isZero(content.subarray(image.sizeBytes % clusterBytes))) refuse(image);
}

function clearRange(
  image: Qcow2Image,
  file: StorageFile,
  { offsetBytes, lengthBytes, mayWrite }: {
    offsetBytes: number;
    lengthBytes: number;
    mayWrite: boolean;
  },
): void {
  const bytes = new Uint8Array(lengthBytes);
  file.readAt(bytes, offsetBytes);
  if (isZero(bytes)) return;
  if (!mayWrite) refuse(image);
  file.writeAt(bytes.fill(0), offsetBytes);
}

function refuse({ path }: Qcow2Image): never {
  const what = `Cannot resize ${path}: its last cluster holds data behind the end of the disk`;
  throw new SystemError(Errno.EOPNOTSUPP, what, { hint: "copy it by td-util convert" });
}

function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}
