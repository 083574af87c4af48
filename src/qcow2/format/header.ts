import { SECTOR_BYTES } from "./units.ts";

/** "QFI\xfb". */
const QCOW_MAGIC = 0x514649fb;
/** Bytes of the header of version 2, and the fewest of version 3. */
export const V2_HEADER_BYTES = 72;
export const V3_HEADER_BYTES = 104;
/** The header that QEMU writes: with the type of compression, padded. */
export const FULL_HEADER_BYTES = 112;

/** Bits of the incompatible features. */
export const Incompatible = {
  Dirty: 1,
  Corrupt: 2,
  DataFile: 4,
  Compression: 8,
  ExtendedL2: 16,
} as const;
/** Incompatible features that are known. */
export const KNOWN_INCOMPATIBLE = 0x1fn;
/** Bits of the compatible features. */
export const Compatible = { LazyRefcounts: 1 } as const;
/** Bits of the autoclear features. */
export const Autoclear = { Bitmaps: 1, RawDataFile: 2 } as const;

/** Values of crypt_method. */
export const CryptMethod = { None: 0, Aes: 1, Luks: 2 } as const;
/** Values of compression_type. */
export const Compression = { Zlib: 0, Zstd: 1 } as const;

/** Offsets of the fields that change in an image that exists. */
export const HeaderField = {
  BackingFileOffset: 8,
  BackingFileSize: 16,
  Size: 24,
  L1Size: 36,
  L1TableOffset: 40,
  RefcountTableOffset: 48,
  RefcountTableClusters: 56,
  IncompatibleFeatures: 72,
  AutoclearFeatures: 88,
} as const;

/** The fields of a header, in the order of the file. */
export interface Header {
  readonly version: number;
  readonly backingFileOffset: bigint;
  readonly backingFileSize: number;
  readonly clusterBits: number;
  readonly size: bigint;
  readonly cryptMethod: number;
  readonly l1Size: number;
  readonly l1TableOffset: bigint;
  readonly refcountTableOffset: bigint;
  readonly refcountTableClusters: number;
  readonly nbSnapshots: number;
  readonly snapshotsOffset: bigint;
  readonly incompatibleFeatures: bigint;
  readonly compatibleFeatures: bigint;
  readonly autoclearFeatures: bigint;
  readonly refcountOrder: number;
  readonly headerLength: number;
  readonly compressionType: number;
}

/** The version in the first bytes of a file; null when the magic number is another. */
export function versionOf(bytes: Uint8Array<ArrayBuffer>): number | null {
  if (bytes.length < 8) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return view.getUint32(0, false) === QCOW_MAGIC ? view.getUint32(4, false) : null;
}

/** Decodes a header of version 2 or 3. `bytes` has at least 512 bytes, filled up with zeros. */
export function decodeHeader(bytes: Uint8Array<ArrayBuffer>): Header {
  const view = new DataView(bytes.buffer, bytes.byteOffset, SECTOR_BYTES);
  const version = view.getUint32(4, false);
  const isNew = version >= 3;
  const headerLength = isNew ? view.getUint32(100, false) : V2_HEADER_BYTES;
  return {
    version,
    backingFileOffset: view.getBigUint64(8, false),
    backingFileSize: view.getUint32(16, false),
    clusterBits: view.getUint32(20, false),
    size: view.getBigUint64(24, false),
    cryptMethod: view.getUint32(32, false),
    l1Size: view.getUint32(36, false),
    l1TableOffset: view.getBigUint64(40, false),
    refcountTableOffset: view.getBigUint64(48, false),
    refcountTableClusters: view.getUint32(56, false),
    nbSnapshots: view.getUint32(60, false),
    snapshotsOffset: view.getBigUint64(64, false),
    incompatibleFeatures: isNew ? view.getBigUint64(72, false) : 0n,
    compatibleFeatures: isNew ? view.getBigUint64(80, false) : 0n,
    autoclearFeatures: isNew ? view.getBigUint64(88, false) : 0n,
    refcountOrder: isNew ? view.getUint32(96, false) : 4,
    headerLength,
    compressionType: isNew && headerLength > 104 ? view.getUint8(104) : 0,
  };
}

/** Encodes a header of `headerLength` bytes; bytes behind the known fields are zero. */
export function encodeHeader(header: Header): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(Math.max(header.headerLength, FULL_HEADER_BYTES));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, QCOW_MAGIC, false);
  view.setUint32(4, header.version, false);
  view.setBigUint64(8, header.backingFileOffset, false);
  view.setUint32(16, header.backingFileSize, false);
  view.setUint32(20, header.clusterBits, false);
  view.setBigUint64(24, header.size, false);
  view.setUint32(32, header.cryptMethod, false);
  view.setUint32(36, header.l1Size, false);
  view.setBigUint64(40, header.l1TableOffset, false);
  view.setBigUint64(48, header.refcountTableOffset, false);
  view.setUint32(56, header.refcountTableClusters, false);
  view.setUint32(60, header.nbSnapshots, false);
  view.setBigUint64(64, header.snapshotsOffset, false);
  if (header.version >= 3) {
    view.setBigUint64(72, header.incompatibleFeatures, false);
    view.setBigUint64(80, header.compatibleFeatures, false);
    view.setBigUint64(88, header.autoclearFeatures, false);
    view.setUint32(96, header.refcountOrder, false);
    view.setUint32(100, header.headerLength, false);
    if (header.headerLength > 104) view.setUint8(104, header.compressionType);
  }
  return bytes.slice(0, header.headerLength);
}
