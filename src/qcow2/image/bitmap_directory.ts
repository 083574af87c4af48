import { SECTOR_BYTES } from "../format/units.ts";
import { markBitmapsInUse } from "../format/bitmaps.ts";
import type { Qcow2Image } from "./image.ts";

/** The longest directory of bitmaps that is written. */
const MOST_BYTES = 65_536;

/** The directory of an image's bitmaps, in which all are marked as in use. */
export interface MarkedDirectory {
  readonly offsetBytes: number;
  /** Whole sectors of the file. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Whether the file has the marks. */
  readonly isInFile: boolean;
}

/**
 * Reads the directory of bitmaps and marks them as in use, which says that they lack changes of the
 * disk. Null when the image has none, or one that is not as the format asks, or that overlaps another
 * structure: then it must not be written.
 */
export function markedDirectory(image: Qcow2Image): MarkedDirectory | null {
  const { bitmaps, file, geometry } = image;
  if (bitmaps === null || bitmaps.bitmaps === 0) return null;
  const { directoryOffset: offsetBytes, directoryBytes } = bitmaps;
  const isPlaced = offsetBytes > 0 && offsetBytes % geometry.clusterBytes === 0;
  if (!isPlaced || directoryBytes === 0 || directoryBytes > MOST_BYTES) return null;
  if (overlapsTable(image, offsetBytes, offsetBytes + directoryBytes)) return null;
  const bytes = new Uint8Array(Math.ceil(directoryBytes / SECTOR_BYTES) * SECTOR_BYTES);
  if (file.readAt(bytes, offsetBytes) < directoryBytes) return null;
  const isChanged = markBitmapsInUse(
    new DataView(bytes.buffer, 0, directoryBytes),
    bitmaps.bitmaps,
  );
  return isChanged === null ? null : { offsetBytes, bytes, isInFile: !isChanged };
}

/** Whether bytes of the file lie in a structure that is in one piece. */
function overlapsTable(
  { header, geometry, l1, refcountTable, snapshotTable }: Qcow2Image,
  start: number,
  end: number,
): boolean {
  const places: readonly (readonly [number, number])[] = [
    [0, geometry.clusterBytes],
    [Number(header.l1TableOffset), l1.byteLength],
    [Number(header.refcountTableOffset), refcountTable.byteLength],
    [snapshotTable.offsetBytes, snapshotTable.lengthBytes],
  ];
  return places.some(([at, length]) => start < at + length && at < end);
}
