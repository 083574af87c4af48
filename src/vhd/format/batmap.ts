import { onesComplementChecksum, signedOnesComplementChecksum } from "./checksum.ts";
import { createdByTap, type Footer, HD_TYPE_FIXED } from "./footer.ts";
import { readText, writeText } from "./text.ts";
import { paddedBytes, VHD_BLOCK_SIZE } from "./units.ts";

/** Bytes in a batmap header. */
export const BATMAP_HEADER_SIZE = 512;
/** The cookie of a batmap header. */
export const VHD_BATMAP_COOKIE = "tdbatmap";
/** The version that we write: 1.2. */
export const VHD_BATMAP_CURRENT_VERSION = 0x0001_0002;
/** The version whose checksum counts bytes as signed. */
const VHD_BATMAP_VERSION_SIGNED = 0x0001_0001;

/** Where a batmap header's fields are, in bytes from its start. */
export const BATMAP_OFFSETS = {
  cookie: 0,
  batmapOffset: 8,
  batmapSectors: 16,
  batmapVersion: 20,
  checksum: 24,
  marker: 28,
  keyhash: 29,
  keyNonce: 30,
  keyHash: 62,
} as const;

/** The trace that an encryption key leaves in an image: never the key itself. */
export interface KeyHash {
  /** 1 when a key is set, 0 otherwise. */
  cookie: number;
  /** 32 bytes. */
  nonce: Uint8Array;
  /** 32 bytes: SHA-256 of the nonce and the key. */
  hash: Uint8Array;
}

/** The header that XenServer's images carry after the BAT, field by field. */
export interface BatmapHeader {
  /** 8 characters, one a byte. */
  cookie: string;
  /** Byte offset of the map. */
  batmapOffset: bigint;
  /** Length of the map in sectors. */
  batmapSectors: number;
  batmapVersion: number;
  /** Of the map, not of this header. */
  checksum: number;
  /** A byte for the storage manager's own use. */
  marker: number;
  keyhash: KeyHash;
}

/** Reads a batmap header from the first 512 bytes given. */
export function decodeBatmapHeader(bytes: Uint8Array): BatmapHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, BATMAP_HEADER_SIZE);
  const at = BATMAP_OFFSETS;
  return {
    cookie: readText(bytes, at.cookie, 8),
    batmapOffset: view.getBigUint64(at.batmapOffset),
    batmapSectors: view.getUint32(at.batmapSectors),
    batmapVersion: view.getUint32(at.batmapVersion),
    checksum: view.getUint32(at.checksum),
    marker: bytes[at.marker],
    keyhash: {
      cookie: bytes[at.keyhash],
      nonce: bytes.slice(at.keyNonce, at.keyNonce + 32),
      hash: bytes.slice(at.keyHash, at.keyHash + 32),
    },
  };
}

/** Writes a batmap header as 512 bytes. The checksum is taken as given: it is the map's. */
export function encodeBatmapHeader(header: BatmapHeader): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(BATMAP_HEADER_SIZE);
  const view = new DataView(bytes.buffer);
  const at = BATMAP_OFFSETS;
  writeText(bytes, at.cookie, header.cookie);
  view.setBigUint64(at.batmapOffset, header.batmapOffset);
  view.setUint32(at.batmapSectors, header.batmapSectors);
  view.setUint32(at.batmapVersion, header.batmapVersion);
  view.setUint32(at.checksum, header.checksum);
  bytes[at.marker] = header.marker;
  bytes[at.keyhash] = header.keyhash.cookie;
  bytes.set(header.keyhash.nonce, at.keyNonce);
  bytes.set(header.keyhash.hash, at.keyHash);
  return bytes;
}

/** The checksum of a map. Give it {@linkcode batmapBytes} of the map. */
export function batmapChecksum(bits: Uint8Array, batmapVersion: number): number {
  return batmapVersion === VHD_BATMAP_VERSION_SIGNED
    ? signedOnesComplementChecksum(bits)
    : onesComplementChecksum(bits);
}

/**
 * How much of the map is in use for a disk of `sizeBytes`, in bytes: what is read, summed and
 * written. The division rounds down before it rounds up to sectors, in every implementation, so a
 * map can end a few blocks short; those are never marked as full.
 */
export function batmapBytes(sizeBytes: number): number {
  return paddedBytes(Math.floor(sizeBytes / VHD_BLOCK_SIZE / 8));
}

/** Whether an image has a batmap by what its footer says of its maker. Version 1.1 may lack one. */
export function mayHaveBatmap(footer: Footer): boolean {
  return footer.diskType !== HD_TYPE_FIXED && createdByTap(footer) &&
    footer.creatorVersion > 0x0000_0001;
}

/** Whether such an image must have one. */
export function mustHaveBatmap(footer: Footer): boolean {
  return mayHaveBatmap(footer) && footer.creatorVersion >= 0x0001_0002;
}
