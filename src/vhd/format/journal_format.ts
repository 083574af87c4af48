import { batmapBytes } from "./batmap.ts";
import { readText, writeText } from "./text.ts";

/** The cookie of a journal. */
export const VHD_JOURNAL_HEADER_COOKIE = "vjournal";
/** The cookie of each entry. */
const VHD_JOURNAL_ENTRY_COOKIE = 0xaaaa_1234_4321_aaaan;
/** Bytes in a journal's header. */
export const JOURNAL_HEADER_SIZE = 512;
/** Bytes in front of each entry's data. */
export const JOURNAL_ENTRY_SIZE = 32;

/** The type of an entry, in the order in which metadata is recorded. */
export const JOURNAL_ENTRY_TYPE = {
  FOOTER_P: 1,
  FOOTER_C: 2,
  HEADER: 3,
  LOCATOR: 4,
  BAT: 5,
  BATMAP_H: 6,
  BATMAP_M: 7,
  DATA: 8,
} as const;

/** The header of a journal (the reference's `vhd_journal_header_t`). */
export interface JournalHeader {
  cookie: string;
  /** The UUID of the image, 16 bytes. */
  uuid: Uint8Array;
  /** The offset of the image's footer before the change, and again after a revert. */
  footerOffsetBytes: number;
  dataEntries: number;
  /** 0 once the change is complete: there is nothing to revert then. */
  metadataEntries: number;
  /** The offset of the first data entry; 0 while metadata is still being recorded. */
  dataOffsetBytes: number;
  metadataOffsetBytes: number;
  /** The first byte behind the last entry. */
  endBytes: number;
}

/** The header of an entry (`vhd_journal_entry_t`). */
export interface JournalEntry {
  readonly cookie: bigint;
  readonly type: number;
  /** Whole sectors. */
  readonly sizeBytes: number;
  /** The offset of the bytes in the image. */
  readonly offsetBytes: number;
  readonly checksum: number;
}

/** Decodes a journal's header from its first 512 bytes. */
export function decodeJournalHeader(bytes: Uint8Array<ArrayBuffer>): JournalHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, JOURNAL_HEADER_SIZE);
  return {
    cookie: readText(bytes, 0, 8),
    uuid: bytes.slice(8, 24),
    footerOffsetBytes: Number(view.getBigUint64(24)),
    dataEntries: view.getUint32(32),
    metadataEntries: view.getUint32(36),
    dataOffsetBytes: Number(view.getBigUint64(40)),
    metadataOffsetBytes: Number(view.getBigUint64(48)),
    // This field alone is in the machine's byte order, and all supported machines are
    // little-endian.
    endBytes: Number(view.getBigUint64(56, true)),
  };
}

/** Encodes a journal's header as 512 bytes. */
export function encodeJournalHeader(header: JournalHeader): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(JOURNAL_HEADER_SIZE);
  const view = new DataView(bytes.buffer);
  writeText(bytes, 0, header.cookie);
  bytes.set(header.uuid, 8);
  view.setBigUint64(24, BigInt(header.footerOffsetBytes));
  view.setUint32(32, header.dataEntries);
  view.setUint32(36, header.metadataEntries);
  view.setBigUint64(40, BigInt(header.dataOffsetBytes));
  view.setBigUint64(48, BigInt(header.metadataOffsetBytes));
  view.setBigUint64(56, BigInt(header.endBytes), true);
  return bytes;
}

const CHECKSUM_AT = 24;

/** Decodes the header of an entry. */
export function decodeJournalEntry(bytes: Uint8Array<ArrayBuffer>): JournalEntry {
  const view = new DataView(bytes.buffer, bytes.byteOffset, JOURNAL_ENTRY_SIZE);
  return {
    cookie: view.getBigUint64(0),
    type: view.getUint32(8),
    sizeBytes: view.getUint32(12),
    offsetBytes: Number(view.getBigUint64(16)),
    checksum: view.getUint32(CHECKSUM_AT),
  };
}

/** Encodes an entry: its header with the checksum, then its data. */
export function encodeJournalEntry(
  { type, offsetBytes }: { type: number; offsetBytes: number },
  data: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(JOURNAL_ENTRY_SIZE + data.length);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, VHD_JOURNAL_ENTRY_COOKIE);
  view.setUint32(8, type);
  view.setUint32(12, data.length);
  view.setBigUint64(16, BigInt(offsetBytes));
  bytes.set(data, JOURNAL_ENTRY_SIZE);
  view.setUint32(CHECKSUM_AT, journalChecksum(bytes.subarray(0, JOURNAL_ENTRY_SIZE), data));
  return bytes;
}

/**
 * The checksum of an entry: over its header without the checksum field, and its data. The header's
 * padding is included, which the reference does not initialize.
 */
export function journalChecksum(front: Uint8Array, data: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < JOURNAL_ENTRY_SIZE; i++) {
    if (i < CHECKSUM_AT || i >= CHECKSUM_AT + 4) sum += front[i];
  }
  for (let i = 0; i < data.length; i++) sum = (sum + data[i]) >>> 0;
  return ~sum >>> 0;
}

/** The longest entry: a BAT of 16 million entries. */
const MOST_ENTRY_BYTES = 64 * 1024 * 1024;

/**
 * Whether an entry is valid: its cookie, and a length within the limit. The length need not be one
 * of whole sectors, because the space of a locator of another program need not be.
 */
export function isJournalEntry({ cookie, sizeBytes }: JournalEntry): boolean {
  return cookie === VHD_JOURNAL_ENTRY_COOKIE && sizeBytes > 0 && sizeBytes <= MOST_ENTRY_BYTES;
}

/** A range of a file's bytes. */
export interface ByteRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/**
 * The part of an entry that a revert writes back. For a batmap it is the part in use, as the
 * reference records uninitialized memory behind it.
 */
export function restoredPart(
  { type, offsetBytes, lengthBytes }: ByteRange & { readonly type: number },
  currentSize: bigint,
): ByteRange {
  const isMap = type === JOURNAL_ENTRY_TYPE.BATMAP_M;
  const inUse = isMap ? batmapBytes(Number(currentSize)) : lengthBytes;
  return { offsetBytes, lengthBytes: Math.min(lengthBytes, inUse) };
}
