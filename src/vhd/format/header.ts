import { onesComplementChecksum } from "./checksum.ts";
import { VHD_NO_OFFSET } from "./footer.ts";
import {
  decodeLocator,
  encodeLocator,
  LOCATOR_COUNT,
  LOCATOR_SIZE,
  NO_LOCATOR,
  type ParentLocator,
} from "./locator.ts";
import { readText, writeText } from "./text.ts";

/** Bytes in the header of a dynamic or differencing image. */
export const DD_HEADER_SIZE = 1024;
/** The cookie of every dynamic header. */
export const DD_COOKIE = "cxsparse";
/** The header version, 1.0. */
export const DD_VERSION = 0x0001_0000;

/** The offsets of the header's fields, in bytes (the VHD specification's table). */
export const HEADER_OFFSETS = {
  cookie: 0,
  dataOffset: 8,
  tableOffset: 16,
  headerVersion: 24,
  maxBatEntries: 28,
  blockSize: 32,
  checksum: 36,
  parentUuid: 40,
  parentTimestamp: 56,
  reserved1: 60,
  parentName: 64,
  locators: 576,
  reserved2: 768,
} as const;

/** The header of a dynamic or differencing image, field by field. */
export interface DynamicHeader {
  /** 8 characters, one a byte. */
  cookie: string;
  /** Unused: {@linkcode VHD_NO_OFFSET}. */
  dataOffset: bigint;
  /** Byte offset of the BAT. */
  tableOffset: bigint;
  headerVersion: number;
  maxBatEntries: number;
  /** Bytes, a power of two. */
  blockSize: number;
  /** The value on disk. `encodeHeader` calculates it anew. */
  checksum: number;
  /** 16 bytes; all zero when the parent is a raw image. */
  parentUuid: Uint8Array;
  /** The parent's modification time, in seconds since 2000-01-01 UTC. */
  parentTimestamp: number;
  reserved1: number;
  /** 512 bytes: the parent's file name in big-endian UTF-16; see `decodeParentName`. */
  parentName: Uint8Array;
  /** Eight entries. */
  locators: ParentLocator[];
  /** The remaining 256 bytes. */
  reserved2: Uint8Array;
}

/** Decodes a header from the first 1024 bytes. */
export function decodeHeader(bytes: Uint8Array): DynamicHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, DD_HEADER_SIZE);
  const at = HEADER_OFFSETS;
  const locators: ParentLocator[] = [];
  for (let i = 0; i < LOCATOR_COUNT; i++) {
    locators.push(decodeLocator(view, at.locators + i * LOCATOR_SIZE));
  }
  return {
    cookie: readText(bytes, at.cookie, 8),
    dataOffset: view.getBigUint64(at.dataOffset),
    tableOffset: view.getBigUint64(at.tableOffset),
    headerVersion: view.getUint32(at.headerVersion),
    maxBatEntries: view.getUint32(at.maxBatEntries),
    blockSize: view.getUint32(at.blockSize),
    checksum: view.getUint32(at.checksum),
    parentUuid: bytes.slice(at.parentUuid, at.parentUuid + 16),
    parentTimestamp: view.getUint32(at.parentTimestamp),
    reserved1: view.getUint32(at.reserved1),
    parentName: bytes.slice(at.parentName, at.locators),
    locators,
    reserved2: bytes.slice(at.reserved2, DD_HEADER_SIZE),
  };
}

/** Encodes a header as 1024 bytes, with the right checksum. */
export function encodeHeader(header: DynamicHeader): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(DD_HEADER_SIZE);
  const view = new DataView(bytes.buffer);
  const at = HEADER_OFFSETS;
  writeText(bytes, at.cookie, header.cookie);
  view.setBigUint64(at.dataOffset, header.dataOffset);
  view.setBigUint64(at.tableOffset, header.tableOffset);
  view.setUint32(at.headerVersion, header.headerVersion);
  view.setUint32(at.maxBatEntries, header.maxBatEntries);
  view.setUint32(at.blockSize, header.blockSize);
  bytes.set(header.parentUuid, at.parentUuid);
  view.setUint32(at.parentTimestamp, header.parentTimestamp);
  view.setUint32(at.reserved1, header.reserved1);
  bytes.set(header.parentName, at.parentName);
  header.locators.forEach((locator, i) =>
    encodeLocator(locator, view, at.locators + i * LOCATOR_SIZE)
  );
  bytes.set(header.reserved2, at.reserved2);
  view.setUint32(at.checksum, headerChecksum(bytes));
  return bytes;
}

/** The correct checksum of these 1024 bytes. */
export function headerChecksum(bytes: Uint8Array): number {
  return onesComplementChecksum(bytes.subarray(0, DD_HEADER_SIZE), HEADER_OFFSETS.checksum);
}

/** A header with every field at its default and no parent. */
export function emptyHeader(): DynamicHeader {
  return {
    cookie: DD_COOKIE,
    dataOffset: VHD_NO_OFFSET,
    tableOffset: 0n,
    headerVersion: DD_VERSION,
    maxBatEntries: 0,
    blockSize: 0,
    checksum: 0,
    parentUuid: new Uint8Array(16),
    parentTimestamp: 0,
    reserved1: 0,
    parentName: new Uint8Array(512),
    locators: Array.from({ length: LOCATOR_COUNT }, () => NO_LOCATOR),
    reserved2: new Uint8Array(256),
  };
}
