import { VhdFormatError } from "./errors.ts";
import {
  createdByTap,
  decodeFooter,
  type Footer,
  FOOTER_OFFSETS,
  footerFault,
  HD_FOOTER_SIZE,
  HD_TYPE_DIFF,
  HD_TYPE_DYNAMIC,
  HD_TYPE_FIXED,
} from "../format/footer.ts";
import type { StorageFile } from "../../files/storage.ts";
import { VHD_MAX_SIZE, VHD_SECTOR_SIZE } from "../format/units.ts";

/**
 * The copy of the footer that was used. `short` is a footer of 511 bytes, as early tools wrote it.
 */
export type FooterSource = "primary" | "short" | "backup";

/** A footer and its source. */
export interface FoundFooter {
  readonly footer: Footer;
  readonly source: FooterSource;
}

/** The 512 bytes at an offset; null when the file is too short. */
export function readFooterBytes(
  file: StorageFile,
  offsetBytes: number,
  lengthBytes = HD_FOOTER_SIZE,
): Uint8Array<ArrayBuffer> | null {
  if (offsetBytes < 0) return null;
  const bytes = new Uint8Array(HD_FOOTER_SIZE);
  return file.readAt(bytes, offsetBytes) < lengthBytes ? null : bytes;
}

/**
 * Finds the footer. The order is: 512 bytes at the end of the file, 511 bytes at the end, the
 * backup at the start, which a fixed image does not have.
 *
 * @throws {VhdFormatError} without a valid footer, or when the footer contradicts the file.
 */
export function readFooter(
  file: StorageFile,
  { useBackupFooter = false }: { useBackupFooter?: boolean },
): FoundFooter {
  const sizeBytes = file.sizeBytes();
  const found = findFooter(file, sizeBytes, useBackupFooter);
  const offset = found.source === "backup" ? 0 : sizeBytes - HD_FOOTER_SIZE;
  validateFooter(file, found, offset);
  return found;
}

function findFooter(file: StorageFile, sizeBytes: number, useBackup: boolean): FoundFooter {
  const primary = readFooterBytes(file, sizeBytes - HD_FOOTER_SIZE);
  const atEnd = primary === null ? null : footerAtEnd(file, sizeBytes, primary);
  if (atEnd !== null && !useBackup) return atEnd;
  if (atEnd?.footer.diskType === HD_TYPE_FIXED) throw noBackupOfFixed(file.path, sizeBytes);
  const backup = readFooterBytes(file, 0);
  if (backup !== null && footerFault(backup) === null) {
    const footer = decodeFooter(backup);
    // A fixed image has no backup: what is at its start belongs to the guest.
    if (footer.diskType !== HD_TYPE_FIXED) return { footer, source: "backup" };
  }
  throw noFooter(file.path, { sizeBytes, primary, backup: useBackup ? backup : null });
}

/** The valid footer at the end of a file, of 512 bytes or 511. */
function footerAtEnd(
  file: StorageFile,
  sizeBytes: number,
  primary: Uint8Array,
): FoundFooter | null {
  if (footerFault(primary) === null) return { footer: decodeFooter(primary), source: "primary" };
  if ((sizeBytes - 511) % VHD_SECTOR_SIZE !== 0) return null;
  const short = readFooterBytes(file, sizeBytes - 511, 511);
  if (short === null || footerFault(short) !== null) return null;
  return { footer: decodeFooter(short), source: "short" };
}

/** Only the footer at the end of a fixed image counts, as its guest writes to byte 0. */
function noBackupOfFixed(path: string, sizeBytes: number): VhdFormatError {
  return new VhdFormatError(path, {
    field: "footer.diskType",
    offsetBytes: sizeBytes - HD_FOOTER_SIZE + FOOTER_OFFSETS.diskType,
    value: String(HD_TYPE_FIXED),
    problem: "means a fixed image, which has no backup footer",
  });
}

/** @param backup The bytes at 0, when only the backup was asked for. */
function noFooter(
  path: string,
  { sizeBytes, primary, backup }: {
    sizeBytes: number;
    primary: Uint8Array | null;
    backup: Uint8Array | null;
  },
): VhdFormatError {
  if (primary === null) {
    return new VhdFormatError(path, {
      field: "the file",
      offsetBytes: 0,
      value: `${sizeBytes} bytes`,
      problem: "is too short for a footer",
    });
  }
  const place = backup === null ? sizeBytes - HD_FOOTER_SIZE : 0;
  const bytes = backup ?? primary;
  const fault = footerFault(bytes) ?? { field: "cookie", expected: "a dynamic image's" };
  const { cookie, checksum } = decodeFooter(bytes);
  const either = backup === null ? ", and there is no backup footer at byte 0 either" : "";
  return new VhdFormatError(path, {
    field: `footer.${fault.field}`,
    offsetBytes: place + FOOTER_OFFSETS[fault.field],
    value: fault.field === "cookie" ? JSON.stringify(cookie) : String(checksum),
    problem: `is not ${fault.expected}${either}`,
  });
}

function validateFooter(file: StorageFile, { footer }: FoundFooter, offsetBytes: number): void {
  const wrong = (field: keyof typeof FOOTER_OFFSETS, problem: string): VhdFormatError =>
    new VhdFormatError(file.path, {
      field: `footer.${field}`,
      offsetBytes: offsetBytes + FOOTER_OFFSETS[field],
      value: String(footer[field]),
      problem,
    });
  const { diskType, currentSize } = footer;
  if (diskType !== HD_TYPE_FIXED && diskType !== HD_TYPE_DYNAMIC && diskType !== HD_TYPE_DIFF) {
    throw wrong("diskType", "is not fixed (2), dynamic (3) or differencing (4)");
  }
  if (createdByTap(footer) && footer.creatorVersion === 0x0000_0001) {
    throw wrong(
      "creatorVersion",
      "means bitmaps in another bit order, which nobody reads any more",
    );
  }
  if (currentSize === 0n || currentSize % BigInt(VHD_SECTOR_SIZE) !== 0n) {
    throw wrong("currentSize", "is not a number of whole sectors of 512 bytes, at least one");
  }
  if (diskType !== HD_TYPE_FIXED) {
    if (currentSize > BigInt(2 * VHD_MAX_SIZE)) {
      throw wrong("currentSize", "is beyond what the format can hold");
    }
    return;
  }
  if (currentSize > BigInt(file.sizeBytes() - 511)) {
    throw wrong("currentSize", `is more than the ${file.sizeBytes()} bytes of the file hold`);
  }
}
