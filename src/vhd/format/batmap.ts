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

/** The offsets of a batmap header's fields, in bytes. */
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

/** The hash of an encryption key in an image. The key itself is never stored. */
export interface KeyHash {
  /** 1 when a key is set, else 0. */
  cookie: number;
  /** 32 bytes. */
  nonce: Uint8Array;
  /** 32 bytes: SHA-256 of the nonce and the key. */
  hash: Uint8Array;
}

/** The batmap header, field by field. XenServer's images have it behind the BAT. */
export interface BatmapHeader {
  /** 8 characters, one a byte. */
  cookie: string;
  /** Byte offset of the map. */
  batmapOffset: bigint;
  /** Length of the map in sectors. */
  batmapSectors: number;
  batmapVersion: number;
  /** The checksum of the map, not of this header. */
  checksum: number;
  /** A byte for the storage manager's own use. */
  marker: number;
  keyhash: KeyHash;
}

/** Decodes a batmap header from the first 512 bytes. */
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

/** Encodes a batmap header as 512 bytes. The checksum is the map's, so it is written as given. */
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

/** The checksum of a map. `bits` must have {@linkcode batmapBytes} bytes. */
export function batmapChecksum(bits: Uint8Array, batmapVersion: number): number {
  return batmapVersion === VHD_BATMAP_VERSION_SIGNED
    ? signedOnesComplementChecksum(bits)
    : onesComplementChecksum(bits);
}

/**
 * The number of bytes of the map that are read, summed and written for a disk of `sizeBytes`. Every
 * implementation rounds the division down before it rounds up to sectors, so a map can end a few
 * blocks short. Those blocks are never marked as full. All implementations count blocks of 2 MiB, so
 * the map of an image of smaller blocks ends early, too. A map of larger blocks has room for the
 * entries of the block table only.
 */
export function batmapBytes(sizeBytes: number, blockSizeBytes = VHD_BLOCK_SIZE): number {
  return paddedBytes(Math.floor(sizeBytes / Math.max(VHD_BLOCK_SIZE, blockSizeBytes) / 8));
}

/** Whether an image may have a batmap, by the creator in its footer. Version 1.1 may lack one. */
export function mayHaveBatmap(footer: Footer): boolean {
  return footer.diskType !== HD_TYPE_FIXED && createdByTap(footer) &&
    footer.creatorVersion > 0x0000_0001;
}

/** Whether an image must have a batmap, by the creator in its footer. */
export function mustHaveBatmap(footer: Footer): boolean {
  return mayHaveBatmap(footer) && footer.creatorVersion >= 0x0001_0002;
}
