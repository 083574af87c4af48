import { onesComplementChecksum } from "./checksum.ts";
import { readText, writeText } from "./text.ts";

/** Bytes in a footer. */
export const HD_FOOTER_SIZE = 512;
/** The cookie of every footer. */
export const HD_COOKIE = "conectix";
/** The cookie of an image that was deliberately disabled. */
export const VHD_POISON_COOKIE = "v_poison";
/** Feature bit: the disk may be deleted on shutdown. */
export const HD_TEMPORARY = 0x0000_0001;
/** Feature bit that must always be set. */
export const HD_RESERVED = 0x0000_0002;
/** The file format version, 1.0. */
export const HD_FF_VERSION = 0x0001_0000;
/** Disk type: the whole disk is in the file. */
export const HD_TYPE_FIXED = 2;
/** Disk type: blocks are allocated when they are written. */
export const HD_TYPE_DYNAMIC = 3;
/** Disk type: dynamic, and sectors that are not present are read from a parent. */
export const HD_TYPE_DIFF = 4;
/** Creator host: Windows (`Wi2k`). */
export const HD_CR_OS_WINDOWS = 0x5769_326b;
/** Creator host: Macintosh (`Mac `). */
export const HD_CR_OS_MACINTOSH = 0x4d61_6320;
/** The creator application that we write, as the reference does. */
export const VHD_CREATOR_TAP = "tap\0";
/** The creator version that we write: 1.3. */
export const VHD_CURRENT_VERSION = 0x0001_0003;
/** The value of an unused 64-bit offset. */
export const VHD_NO_OFFSET = 0xffff_ffff_ffff_ffffn;

/** The offsets of a footer's fields, in bytes (the VHD specification's table). */
export const FOOTER_OFFSETS = {
  cookie: 0,
  features: 8,
  fileFormatVersion: 12,
  dataOffset: 16,
  timestamp: 24,
  creatorApplication: 28,
  creatorVersion: 32,
  creatorHostOs: 36,
  originalSize: 40,
  currentSize: 48,
  geometry: 56,
  diskType: 60,
  checksum: 64,
  uuid: 68,
  savedState: 84,
  hidden: 85,
  reserved: 86,
} as const;

/** A footer, field by field. 64-bit fields are bigints, so that even a wrong value is exact. */
export interface Footer {
  /** 8 characters, one a byte. */
  cookie: string;
  features: number;
  fileFormatVersion: number;
  /** Byte offset of the dynamic header; {@linkcode VHD_NO_OFFSET} in a fixed image. */
  dataOffset: bigint;
  /** Seconds since 2000-01-01 UTC. */
  timestamp: number;
  /** 4 characters, one a byte. */
  creatorApplication: string;
  creatorVersion: number;
  creatorHostOs: number;
  /** Bytes. */
  originalSize: bigint;
  /** Bytes. */
  currentSize: bigint;
  /** Packed; see `geometry.ts`. */
  geometry: number;
  diskType: number;
  /** The value on disk. `encodeFooter` calculates it anew. */
  checksum: number;
  /** 16 bytes. */
  uuid: Uint8Array;
  savedState: number;
  /** tapdisk's flag for an image that users do not see. It is not in the specification. */
  hidden: number;
  /** The remaining 426 bytes. */
  reserved: Uint8Array;
}

/** Decodes a footer from the first 512 bytes. The last byte of a 511-byte footer must be zero. */
export function decodeFooter(bytes: Uint8Array): Footer {
  const view = new DataView(bytes.buffer, bytes.byteOffset, HD_FOOTER_SIZE);
  const at = FOOTER_OFFSETS;
  return {
    cookie: readText(bytes, at.cookie, 8),
    features: view.getUint32(at.features),
    fileFormatVersion: view.getUint32(at.fileFormatVersion),
    dataOffset: view.getBigUint64(at.dataOffset),
    timestamp: view.getUint32(at.timestamp),
    creatorApplication: readText(bytes, at.creatorApplication, 4),
    creatorVersion: view.getUint32(at.creatorVersion),
    creatorHostOs: view.getUint32(at.creatorHostOs),
    originalSize: view.getBigUint64(at.originalSize),
    currentSize: view.getBigUint64(at.currentSize),
    geometry: view.getUint32(at.geometry),
    diskType: view.getUint32(at.diskType),
    checksum: view.getUint32(at.checksum),
    uuid: bytes.slice(at.uuid, at.uuid + 16),
    savedState: bytes[at.savedState],
    hidden: bytes[at.hidden],
    reserved: bytes.slice(at.reserved, HD_FOOTER_SIZE),
  };
}

/** Encodes a footer as 512 bytes, with the right checksum. */
export function encodeFooter(footer: Footer): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HD_FOOTER_SIZE);
  const view = new DataView(bytes.buffer);
  const at = FOOTER_OFFSETS;
  writeText(bytes, at.cookie, footer.cookie);
  view.setUint32(at.features, footer.features);
  view.setUint32(at.fileFormatVersion, footer.fileFormatVersion);
  view.setBigUint64(at.dataOffset, footer.dataOffset);
  view.setUint32(at.timestamp, footer.timestamp);
  writeText(bytes, at.creatorApplication, footer.creatorApplication);
  view.setUint32(at.creatorVersion, footer.creatorVersion);
  view.setUint32(at.creatorHostOs, footer.creatorHostOs);
  view.setBigUint64(at.originalSize, footer.originalSize);
  view.setBigUint64(at.currentSize, footer.currentSize);
  view.setUint32(at.geometry, footer.geometry);
  view.setUint32(at.diskType, footer.diskType);
  bytes.set(footer.uuid, at.uuid);
  bytes[at.savedState] = footer.savedState;
  bytes[at.hidden] = footer.hidden;
  bytes.set(footer.reserved, at.reserved);
  view.setUint32(at.checksum, footerChecksum(bytes));
  return bytes;
}

/** The correct checksum of these 512 bytes. */
export function footerChecksum(bytes: Uint8Array): number {
  return onesComplementChecksum(bytes.subarray(0, HD_FOOTER_SIZE), FOOTER_OFFSETS.checksum);
}

/** Whether the creator in the footer is tapdisk or a related program. */
export function createdByTap(footer: Footer): boolean {
  return footer.creatorApplication.startsWith("tap");
}

/** The fault of bytes that are no footer; null for a footer. */
export function footerFault(bytes: Uint8Array): { field: keyof Footer; expected: string } | null {
  const cookie = readText(bytes, 0, 8);
  if (cookie !== HD_COOKIE && cookie !== VHD_POISON_COOKIE) {
    return { field: "cookie", expected: JSON.stringify(HD_COOKIE) };
  }
  const footer = decodeFooter(bytes);
  const checksum = footerChecksum(bytes);
  if (footer.checksum === checksum || hiddenWithoutChecksum(footer, bytes)) return null;
  return { field: "checksum", expected: `0x${checksum.toString(16).padStart(8, "0")}` };
}

/** Tools of versions 0.1 and 1.1 set the hidden flag and did not update the checksum. */
function hiddenWithoutChecksum(footer: Footer, bytes: Uint8Array): boolean {
  const old = footer.creatorVersion === 0x0000_0001 || footer.creatorVersion === 0x0001_0001;
  if (footer.hidden === 0 || !createdByTap(footer) || !old) return false;
  return ((footerChecksum(bytes) + footer.hidden) >>> 0) === footer.checksum;
}
