import { encodeName, nameAt } from "../../../ffi/names.ts";
import { decodeUtf16, encodeUtf16 } from "./text.ts";
import { VHD_SECTOR_SIZE } from "./units.ts";

/** The number of locators in a header. */
export const LOCATOR_COUNT = 8;
/** Bytes in one locator entry of the header. */
export const LOCATOR_SIZE = 24;

/** The longest name that is read, in bytes. No path is longer. */
export const MAX_LOCATOR_NAME_BYTES = 65536;
/** The largest space of a name that is accepted, in bytes: 511 sectors. */
export const MAX_LOCATOR_SPACE_BYTES = 511 * VHD_SECTOR_SIZE;

/** Platform code: no locator. */
export const PLAT_CODE_NONE = 0x0;
/** Platform code, deprecated. */
const PLAT_CODE_WI2R = 0x5769_3272;
/** Platform code, deprecated. */
export const PLAT_CODE_WI2K = 0x5769_326b;
/** Platform code: a relative path in little-endian UTF-16. */
export const PLAT_CODE_W2RU = 0x5732_7275;
/** Platform code: an absolute path in little-endian UTF-16. */
export const PLAT_CODE_W2KU = 0x5732_6b75;
/** Platform code: a Mac OS alias. */
const PLAT_CODE_MAC = 0x4d61_6320;
/** Platform code: a file URL in UTF-8. */
export const PLAT_CODE_MACX = 0x4d61_6358;

/** The platform codes that the specification lists, and their names. */
export const PLATFORM_CODE_NAMES: ReadonlyMap<number, string> = new Map([
  [PLAT_CODE_NONE, "PLAT_CODE_NONE"],
  [PLAT_CODE_WI2R, "PLAT_CODE_WI2R"],
  [PLAT_CODE_WI2K, "PLAT_CODE_WI2K"],
  [PLAT_CODE_W2RU, "PLAT_CODE_W2RU"],
  [PLAT_CODE_W2KU, "PLAT_CODE_W2KU"],
  [PLAT_CODE_MAC, "PLAT_CODE_MAC"],
  [PLAT_CODE_MACX, "PLAT_CODE_MACX"],
]);

/** One of the header's pointers to the name of the parent. */
export interface ParentLocator {
  /** One of the `PLAT_CODE_` constants. */
  readonly code: number;
  /**
   * Space for the name: in sectors by the specification, in bytes in practice; see
   * `locatorSpaceBytes`.
   */
  readonly dataSpace: number;
  /** Length of the name in bytes. */
  readonly dataLength: number;
  readonly reserved: number;
  /** Byte offset of the name in the file. */
  readonly dataOffset: bigint;
}

/** An unused locator entry. */
export const NO_LOCATOR: ParentLocator = {
  code: PLAT_CODE_NONE,
  dataSpace: 0,
  dataLength: 0,
  reserved: 0,
  dataOffset: 0n,
};

/** Decodes the locator entry at `offsetBytes`. */
export function decodeLocator(view: DataView, offsetBytes: number): ParentLocator {
  return {
    code: view.getUint32(offsetBytes),
    dataSpace: view.getUint32(offsetBytes + 4),
    dataLength: view.getUint32(offsetBytes + 8),
    reserved: view.getUint32(offsetBytes + 12),
    dataOffset: view.getBigUint64(offsetBytes + 16),
  };
}

/** Encodes the locator entry at `offsetBytes`. */
export function encodeLocator(locator: ParentLocator, view: DataView, offsetBytes: number): void {
  view.setUint32(offsetBytes, locator.code);
  view.setUint32(offsetBytes + 4, locator.dataSpace);
  view.setUint32(offsetBytes + 8, locator.dataLength);
  view.setUint32(offsetBytes + 12, locator.reserved);
  view.setBigUint64(offsetBytes + 16, locator.dataOffset);
}

/**
 * The space of a locator's name in the file, in bytes. Values below 512 are sectors and multiples
 * of 512 are bytes, as existing images have both. Any other value is invalid and gives 0.
 */
export function locatorSpaceBytes(locator: ParentLocator): number {
  if (locator.dataSpace < VHD_SECTOR_SIZE) return locator.dataSpace * VHD_SECTOR_SIZE;
  return locator.dataSpace % VHD_SECTOR_SIZE === 0 ? locator.dataSpace : 0;
}

/** Whether `decodeLocation` can read names of this platform. */
export function isReadableLocator(code: number): boolean {
  return code === PLAT_CODE_MACX || code === PLAT_CODE_W2KU || code === PLAT_CODE_W2RU;
}

/**
 * Encodes a path in the form of the platform. A relative path starts with `./` or `../`; Windows
 * needs `.\` in front of it. Bytes that are not UTF-8 are unchanged in a file URL, and are lone
 * surrogates in UTF-16; see `ffi/names.ts`.
 */
export function encodeLocation(code: number, path: string): Uint8Array {
  if (code === PLAT_CODE_MACX) return encodeName(`file://${path}`);
  if (code !== PLAT_CODE_W2KU && code !== PLAT_CODE_W2RU) {
    throw new RangeError(`Cannot write a parent locator of platform 0x${code.toString(16)}`);
  }
  const relative = path.startsWith("./") ? path.slice(2) : path;
  const windows = path.startsWith("/") ? path : `./${relative}`;
  return encodeUtf16(windows.replaceAll("/", "\\"), { littleEndian: true });
}

/** The path in a locator's name, with slashes; null when the name is invalid. */
export function decodeLocation(code: number, bytes: Uint8Array): string | null {
  if (code === PLAT_CODE_MACX) {
    const url = nameAt(bytes, 0);
    return url.startsWith("file://") && url.length > 7 ? url.slice(7) : null;
  }
  if (code !== PLAT_CODE_W2KU && code !== PLAT_CODE_W2RU) return null;
  const path = decodeUtf16(bytes, { littleEndian: true }).replaceAll("\\", "/");
  return path.replace(/^[Cc]:/, "") || null;
}

/** The parent's file name in the header's form: 512 bytes, big-endian UTF-16. */
export function encodeParentName(name: string): Uint8Array {
  const bytes = new Uint8Array(512);
  const text = encodeUtf16(name, { littleEndian: false });
  if (name === "" || text.length > bytes.length) {
    throw new RangeError(
      `Cannot store ${JSON.stringify(name)} as a parent name: at most 256 units`,
    );
  }
  bytes.set(text);
  return bytes;
}

/** The parent's file name from the header's 512 bytes. */
export function decodeParentName(bytes: Uint8Array): string {
  return decodeUtf16(bytes, { littleEndian: false }).replaceAll("\\", "/").replace(/^[Cc]:/, "");
}
