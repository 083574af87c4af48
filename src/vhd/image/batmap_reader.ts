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

/** The most sectors that a map may have: a bit for each of the most blocks that are read. */
const MOST_MAP_SECTORS = MAX_BAT_ENTRIES / 8 / VHD_SECTOR_SIZE;

/** A batmap as it was read. */
export interface FoundBatmap {
  /** Null where there is none. */
  readonly header: BatmapHeader | null;
  /** The part of the map that its checksum covers. Empty without a place for it. */
  readonly bits: Uint8Array<ArrayBuffer>;
  /** What is wrong with it: then no bit is set. */
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
  return found.cookie === VHD_BATMAP_COOKIE ? found : null;
}

type BatmapField = "cookie" | "batmapOffset" | "batmapSectors" | "batmapVersion" | "checksum";

/**
 * Reads the batmap. It only repeats what the blocks' bitmaps say, so it is never a reason to refuse
 * an image: what is wrong with it comes back as its fault, and the image is served without it. The
 * header stays in use even without a map, for the trace of the key that it carries.
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
  const bytes = batmapBytes(Number(footer.currentSize));
  const [field, problem] = placeFault(found, { at, bytes, sizeBytes: file.sizeBytes() }) ?? [];
  if (field !== undefined) return { header: found, bits: none, fault: wrong(field, problem ?? "") };
  const bits = new Uint8Array(bytes);
  file.readAt(bits, Number(found.batmapOffset));
  const checksum = batmapChecksum(bits, found.batmapVersion);
  if (checksum === found.checksum) return { header: found, bits, fault: null };
  bits.fill(0);
  return { header: found, bits, fault: wrong("checksum", `should be ${checksum}`) };
}

/** Why the map cannot be where its header says. */
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
  if (end <= BigInt(sizeBytes - HD_FOOTER_SIZE)) return null;
  return ["batmapSectors", "makes a map that reaches past the end of the file"];
}
