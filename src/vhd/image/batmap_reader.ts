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
import { type Footer, HD_FOOTER_SIZE } from "../format/footer.ts";
import type { DynamicHeader } from "../format/header.ts";
import { batmapHeaderOffset } from "../format/layout.ts";
import type { StorageFile } from "../../files/storage.ts";
import { VHD_SECTOR_SIZE } from "../format/units.ts";

/** The largest number of sectors of a map: one bit for each of `MAX_BAT_ENTRIES` blocks. */
const MOST_MAP_SECTORS = MAX_BAT_ENTRIES / 8 / VHD_SECTOR_SIZE;

/** The batmap as it was read. */
export interface FoundBatmap {
  /** Null without a batmap. */
  readonly header: BatmapHeader | null;
  /** The part of the map that its checksum covers. Empty when the header gives no valid place. */
  readonly bits: Uint8Array<ArrayBuffer>;
  /** The fault of the batmap. With a fault, no bit is set. */
  readonly fault: VhdFormatError | null;
}

/**
 * The batmap's header. Null when the creator version has no batmap, or the header's place holds no
 * batmap header.
 */
export function readBatmapHeader(
  file: StorageFile,
  footer: Footer,
  header: DynamicHeader,
): BatmapHeader | null {
  if (!mayHaveBatmap(footer)) return null;
  const bytes = new Uint8Array(BATMAP_HEADER_SIZE);
  file.readAt(bytes, batmapHeaderOffset(header));
  const found = decodeBatmapHeader(bytes);
  return found.cookie === VHD_BATMAP_COOKIE ? found : null;
}

type BatmapField = "cookie" | "batmapOffset" | "batmapSectors" | "batmapVersion" | "checksum";

/**
 * Reads the batmap. The batmap repeats the blocks' bitmaps, so a wrong batmap is no reason to
 * refuse the image: the fault is returned, and the image is served without the map. The header is
 * used even without a map, because it holds the key hash.
 */
export function readBatmap(file: StorageFile, footer: Footer, header: DynamicHeader): FoundBatmap {
  const found = readBatmapHeader(file, footer, header);
  const at = batmapHeaderOffset(header);
  const wrong = (field: BatmapField, problem: string): VhdFormatError =>
    new VhdFormatError(file.path, {
      field: `batmap.${field}`,
      offsetBytes: at + BATMAP_OFFSETS[field],
      value: field === "cookie" ? "something else" : String(found?.[field]),
      problem,
    });
  const none = new Uint8Array(0);
  if (found === null) {
    const fault = mustHaveBatmap(footer) ? wrong("cookie", `is not "${VHD_BATMAP_COOKIE}"`) : null;
    return { header: null, bits: none, fault };
  }
  const bytes = batmapBytes(Number(footer.currentSize), header.blockSize);
  const [field, problem] = placeFault(found, { at, bytes, sizeBytes: file.sizeBytes() }) ?? [];
  if (field !== undefined) return { header: found, bits: none, fault: wrong(field, problem ?? "") };
  const bits = new Uint8Array(bytes);
  file.readAt(bits, Number(found.batmapOffset));
  const checksum = batmapChecksum(bits, found.batmapVersion);
  if (checksum === found.checksum) return { header: found, bits, fault: null };
  bits.fill(0);
  return { header: found, bits, fault: wrong("checksum", `should be ${checksum}`) };
}

/** The fault of the place that the header gives for the map. */
function placeFault(
  { batmapOffset, batmapSectors, batmapVersion }: BatmapHeader,
  { at, bytes, sizeBytes }: { at: number; bytes: number; sizeBytes: number },
): [BatmapField, string] | null {
  if (batmapVersion > VHD_BATMAP_CURRENT_VERSION) return ["batmapVersion", "is later than 1.2"];
  if (batmapSectors * VHD_SECTOR_SIZE < bytes) {
    return ["batmapSectors", `is too few for a map of ${bytes} bytes`];
  }
  if (batmapSectors > MOST_MAP_SECTORS) {
    return ["batmapSectors", "is more than the largest disk needs"];
  }
  const aligned = batmapOffset % BigInt(VHD_SECTOR_SIZE) === 0n;
  if (!aligned || batmapOffset < BigInt(at + BATMAP_HEADER_SIZE)) {
    return ["batmapOffset", "is no place for the map"];
  }
  const end = batmapOffset + BigInt(batmapSectors) * BigInt(VHD_SECTOR_SIZE);
  // A footer of 511 bytes is legal, too.
  if (end <= BigInt(sizeBytes - (HD_FOOTER_SIZE - 1))) return null;
  return ["batmapSectors", "makes a map that reaches past the end of the file"];
}
