import { Errno, SystemError } from "../../ffi/errno.ts";
import { compressedPlace, OFLAG_COMPRESSED_HIGH, sectorOfEntry } from "./format/entries.ts";
import { SECTOR_BYTES } from "./format/units.ts";
import type { Qcow2Image } from "./image/image.ts";
import type { References } from "./references.ts";
import { isZero } from "./zero_clusters.ts";

/** Where the entries are that belong to clusters behind a size. */
function firstBehind(
  { geometry: { clusterBytes, l2Entries } }: Qcow2Image,
  sizeBytes: number,
): { readonly table: number; readonly entry: number } {
  const cluster = Math.ceil(sizeBytes / clusterBytes);
  return { table: Math.floor(cluster / l2Entries), entry: cluster % l2Entries };
}

function sectorOfTable({ l1 }: Qcow2Image, index: number): number {
  return sectorOfEntry(l1.getUint32(8 * index, false), l1.getUint32(8 * index + 4, false));
}

function readL2({ file, geometry }: Qcow2Image, sector: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(geometry.clusterBytes);
  file.readAt(bytes, sector * SECTOR_BYTES);
  return bytes;
}

/** Whether tables have entries for clusters behind a size: the rest of a disk that was larger. */
export function hasEntriesBehind(image: Qcow2Image, sizeBytes: number): boolean {
  const { l1, geometry: { l2EntryBytes } } = image;
  const { table, entry } = firstBehind(image, sizeBytes);
  for (let index = table; index < l1.byteLength / 8; index++) {
    const sector = sectorOfTable(image, index);
    if (sector === 0) continue;
    if (index > table || entry === 0) return true;
    if (!isZero(readL2(image, sector).subarray(entry * l2EntryBytes))) return true;
  }
  return false;
}

/**
 * Takes all entries for clusters behind a size out of the active tables, and their references away.
 * The size in the header is smaller by now: no program reads there.
 *
 * @throws {SystemError} EOPNOTSUPP for entries in a table that a snapshot shares.
 */
export function removeEntriesBehind(
  image: Qcow2Image,
  references: References,
  sizeBytes: number,
): void {
  const { l1, file, path, header, geometry: { l2EntryBytes, clusterSectors } } = image;
  const { table, entry } = firstBehind(image, sizeBytes);
  for (let index = table; index < l1.byteLength / 8; index++) {
    const sector = sectorOfTable(image, index);
    if (sector === 0) continue;
    const bytes = readL2(image, sector);
    const first = index > table ? 0 : entry;
    const own = references.of(sector / clusterSectors) === 1;
    if (first > 0 && !own) {
      const why = "a snapshot shares the table at its end";
      throw new SystemError(Errno.EOPNOTSUPP, `Cannot resize ${path} (${why})`);
    }
    dropEntries(image, { references, table: new DataView(bytes.buffer), first });
    if (first > 0) {
      bytes.fill(0, first * l2EntryBytes);
      file.writeAt(bytes, sector * SECTOR_BYTES);
      continue;
    }
    references.remove(sector / clusterSectors);
    l1.setUint32(8 * index, 0, false);
    l1.setUint32(8 * index + 4, 0, false);
    const none = new Uint8Array(8);
    file.writeAt(none, Number(header.l1TableOffset) + 8 * index);
  }
}

function dropEntries(
  { geometry, dataFile }: Qcow2Image,
  { references, table, first }: { references: References; table: DataView; first: number },
): void {
  const { l2Entries, l2EntryBytes, clusterBits, clusterBytes, clusterSectors } = geometry;
  for (let i = first; i < l2Entries; i++) {
    const high = table.getUint32(i * l2EntryBytes, false);
    const low = table.getUint32(i * l2EntryBytes + 4, false);
    if ((high & OFLAG_COMPRESSED_HIGH) !== 0) {
      const { offsetBytes, lengthBytes } = compressedPlace(high, low, clusterBits);
      const end = Math.ceil((offsetBytes + lengthBytes) / clusterBytes);
      for (let k = Math.floor(offsetBytes / clusterBytes); k < end; k++) references.remove(k);
      continue;
    }
    const sector = sectorOfEntry(high, low);
    if (sector !== 0 && dataFile === null) references.remove(sector / clusterSectors);
  }
}
