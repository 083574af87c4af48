import {
  BATMAP_HEADER_SIZE,
  BATMAP_OFFSETS,
  batmapBytes,
  batmapChecksum,
  type BatmapHeader,
  decodeBatmapHeader,
  mayHaveBatmap,
  mustHaveBatmap,
  VHD_BATMAP_COOKIE,
  VHD_BATMAP_CURRENT_VERSION,
} from "../format/batmap.ts";
import { VhdFormatError } from "./errors.ts";
import { MAX_BAT_ENTRIES } from "./header_reader.ts";
import type { Footer } from "../format/footer.ts";
import type { DynamicHeader } from "../format/header.ts";
import { batmapHeaderOffset } from "../format/layout.ts";
import type { StorageFile } from "../../files/storage.ts";
import { VHD_SECTOR_SIZE } from "../format/units.ts";

/** The most sectors that a map may have: a bit for each of the most blocks that are read. */
const MOST_MAP_SECTORS = MAX_BAT_ENTRIES / 8 / VHD_SECTOR_SIZE;

/** A batmap as it was read. */
export interface FoundBatmap {
  readonly header: BatmapHeader;
  /** The part of the map that its checksum covers; all clear when that is wrong. */
  readonly bits: Uint8Array<ArrayBuffer>;
  /** What is wrong with the checksum, as after a crash between the writes of map and header. */
  readonly fault: VhdFormatError | null;
}

/** The batmap's header, or null for an image that has none by its maker or at its place. */
export function readBatmapHeader(
  file: StorageFile,
  footer: Footer,
  header: DynamicHeader,
): BatmapHeader | null {
  if (!mayHaveBatmap(footer)) return null;
  const bytes = new Uint8Array(BATMAP_HEADER_SIZE);
  file.readAt(bytes, batmapHeaderOffset(header));
  const found = decodeBatmapHeader(bytes);
  const isOne = found.cookie === VHD_BATMAP_COOKIE;
  return isOne || mustHaveBatmap(footer) ? found : null;
}

/**
 * Reads the batmap of an image that has one, or returns null. A map whose checksum is wrong counts
 * as empty: it only repeats what the blocks' bitmaps say.
 *
 * @throws {VhdFormatError} when its header is damaged.
 */
export function readBatmap(
  file: StorageFile,
  footer: Footer,
  header: DynamicHeader,
): FoundBatmap | null {
  const found = readBatmapHeader(file, footer, header);
  if (found === null) return null;
  const wrong =
    (field: "cookie" | "batmapOffset" | "batmapSectors" | "batmapVersion" | "checksum") =>
    (problem: string): VhdFormatError =>
      new VhdFormatError(file.path, {
        field: `batmap.${field}`,
        offsetBytes: batmapHeaderOffset(header) + BATMAP_OFFSETS[field],
        value: field === "cookie" ? JSON.stringify(found.cookie) : String(found[field]),
        problem,
      });
  if (found.cookie !== VHD_BATMAP_COOKIE) throw wrong("cookie")(`is not "${VHD_BATMAP_COOKIE}"`);
  if (found.batmapVersion > VHD_BATMAP_CURRENT_VERSION) {
    throw wrong("batmapVersion")("is later than 1.2");
  }
  const bytes = batmapBytes(Number(footer.currentSize));
  if (found.batmapSectors * VHD_SECTOR_SIZE < bytes) {
    throw wrong("batmapSectors")(`is too few for a disk of ${footer.currentSize} bytes`);
  }
  if (found.batmapSectors > MOST_MAP_SECTORS) {
    throw wrong("batmapSectors")("is more than the largest disk needs");
  }
  const end = found.batmapOffset + BigInt(found.batmapSectors) * BigInt(VHD_SECTOR_SIZE);
  const aligned = found.batmapOffset % BigInt(VHD_SECTOR_SIZE) === 0n;
  const behind = found.batmapOffset >= BigInt(batmapHeaderOffset(header) + BATMAP_HEADER_SIZE);
  if (!aligned || !behind) throw wrong("batmapOffset")("is no place for the map");
  if (end > BigInt(file.sizeBytes())) {
    throw wrong("batmapSectors")("makes a map that reaches past the end of the file");
  }
  const bits = new Uint8Array(bytes);
  file.readAt(bits, Number(found.batmapOffset));
  const checksum = batmapChecksum(bits, found.batmapVersion);
  if (checksum === found.checksum) return { header: found, bits, fault: null };
  bits.fill(0);
  return { header: found, bits, fault: wrong("checksum")(`should be ${checksum}`) };
}
