import { Errno, SystemError } from "../../ffi/errno.ts";
import { type FileIdentity, type OnStorage, osStorage } from "../files/storage.ts";
import { checkQcow2, countReferences } from "./check.ts";
import { OFLAG_COMPRESSED_HIGH, OFLAG_COPIED_HIGH, sectorOfEntry } from "./format/entries.ts";
import { HeaderField, Incompatible } from "./format/header.ts";
import { SECTOR_BYTES } from "./format/units.ts";
import { openQcow2, type Qcow2Image } from "./image/image.ts";
import { changeHeader, type HeaderChange, rebuildRefcounts, tableChanges } from "./rebuild.ts";
import type { References } from "./references.ts";

/** Options of a repair. */
export interface RepairOptions extends OnStorage {
  /** The caller holds the lock of this file. */
  readonly lockedBy?: FileIdentity;
}

/**
 * Mends an image whose reference counts or flags are wrong: after a program that keeps the counts in
 * memory was killed, or that lost clusters. All counts are written anew, in another place, and the
 * header then leads there. So the image is as before until one sector is written.
 *
 * @returns A line for each repair; none when nothing was wrong.
 * @throws {SystemError} EINVAL for an image whose tables contradict each other otherwise; what the
 * file says.
 */
export function repairQcow2(
  path: string,
  { storage = osStorage, lockedBy }: RepairOptions = {},
): string[] {
  const image = openQcow2(path, { storage, readOnly: false, mending: true, lockedBy });
  try {
    const found = checkQcow2(image);
    const marks = Incompatible.Dirty | Incompatible.Corrupt;
    const isMarked = (image.header.incompatibleFeatures & BigInt(marks)) !== 0n;
    if (!found.isMendable) {
      const [first] = found.errors;
      throw new SystemError(Errno.EINVAL, `Cannot mend ${path}: ${first}`, {
        hint: "qemu-img check -r all may lose data and mend more",
      });
    }
    if (found.errorCount + found.leakedClusters === 0 && !isMarked) return [];
    if (lockedBy === undefined) image.file.refuseReaders();
    return mend(image, found);
  } finally {
    image.close();
  }
}

function mend(
  image: Qcow2Image,
  { errorCount, leakedClusters, endOfData }: ReturnType<typeof checkQcow2>,
): string[] {
  const { file, header, geometry: { clusterBytes } } = image;
  const { references } = countReferences(image);
  const done: string[] = [];
  if (errorCount > 0) fixFlags(image, references, false);
  const changes: HeaderChange[] = [];
  if (errorCount + leakedClusters > 0) {
    const end = file.isBlockDevice ? endOfData : Math.max(endOfData, file.sizeBytes());
    const table = rebuildRefcounts(image, references, Math.ceil(end / clusterBytes));
    changes.push(...tableChanges(table));
    done.push(`wrote the reference counts anew: ${errorCount} errors, ${leakedClusters} leaks`);
  }
  const marks = BigInt(Incompatible.Dirty | Incompatible.Corrupt);
  if ((header.incompatibleFeatures & marks) !== 0n) {
    const value = header.incompatibleFeatures & ~marks;
    changes.push({ offset: HeaderField.IncompatibleFeatures, value });
    done.push("cleared the mark of an image that was not closed, or is corrupt");
  }
  changeHeader(file, changes);
  // A cluster may be written in place only when its count is right. One that has lost all other references
  // gets its flag.
  if (errorCount + leakedClusters > 0) {
    fixFlags(image, references, true);
    file.sync();
  }
  return done;
}

/**
 * Makes the flags for clusters and tables with one reference right.
 *
 * @param isSetting Sets those that are missing; otherwise clears those that are wrong.
 */
function fixFlags(image: Qcow2Image, references: References, isSetting: boolean): void {
  const { file, l1, geometry, header, dataFile } = image;
  const { clusterBytes, clusterSectors, l2EntryBytes, l2Entries } = geometry;
  const fix = (view: DataView, at: number): boolean => {
    const high = view.getUint32(at, false);
    const sector = sectorOfEntry(high, view.getUint32(at + 4, false));
    if (sector === 0 || (high & OFLAG_COMPRESSED_HIGH) !== 0) return false;
    const isOwn = references.of(Math.floor(sector / clusterSectors)) === 1;
    const isSet = (high & OFLAG_COPIED_HIGH) !== 0;
    if (isOwn === isSet || isOwn !== isSetting) return false;
    view.setUint32(at, (high ^ OFLAG_COPIED_HIGH) >>> 0, false);
    return true;
  };
  let hasChanged = false;
  const seen = new Set<number>();
  for (let i = 0; i < l1.byteLength / 8; i++) {
    const sector = sectorOfEntry(l1.getUint32(8 * i, false), l1.getUint32(8 * i + 4, false));
    if (sector === 0) continue;
    if (fix(l1, 8 * i)) hasChanged = true;
    if (dataFile !== null || seen.has(sector)) continue;
    seen.add(sector);
    const bytes = new Uint8Array(clusterBytes);
    file.readAt(bytes, sector * SECTOR_BYTES);
    const table = new DataView(bytes.buffer);
    let isDirty = false;
    for (let k = 0; k < l2Entries; k++) if (fix(table, k * l2EntryBytes)) isDirty = true;
    if (isDirty) file.writeAt(bytes, sector * SECTOR_BYTES);
  }
  if (!hasChanged) return;
  file.writeAt(
    new Uint8Array(l1.buffer, l1.byteOffset, l1.byteLength),
    Number(header.l1TableOffset),
  );
}
