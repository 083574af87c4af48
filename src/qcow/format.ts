/**
 * `src/qcow`: images of QCOW version 1, as QEMU and the first blktap wrote them: their structures, how
 * they are opened, made and checked. It must not know the disk queue or the drivers, and must not print.
 *
 * This file has the structures. All numbers are big-endian. A disk is made of clusters. The L1 table
 * has the place of each L2 table, and an L2 table the place of each of its clusters: 0 for none, bit
 * 63 for a compressed one, whose length in bytes is in the bits below.
 *
 * @module
 */
export const SECTOR_BYTES = 512;
export const QCOW_MAGIC = 0x514649fb;
export const QCOW_VERSION = 1;
export const QCOW_HEADER_BYTES = 48;
/** Behind the header: what the first blktap added (`QCowHeader_ext`). */
export const XEN_MAGIC = 0x58454efb;
export const XEN_HEADER_BYTES = 16;
/** The flag of images of that blktap whose L1 table is big-endian, as all others have it. */
export const EXTHDR_L1_BIG_ENDIAN = 2;
export const QCOW_CRYPT_NONE = 0;
export const QCOW_CRYPT_AES = 1;
/** Names of backing files are shorter than this. */
export const MOST_NAME_BYTES = 1023;

/** The header of an image. */
export interface QcowHeader {
  /** 0: there is no backing file. */
  readonly backingOffsetBytes: number;
  readonly backingLengthBytes: number;
  /** Size of the disk. */
  readonly sizeBytes: number;
  readonly clusterBits: number;
  /** A table has 2 to this power entries. */
  readonly l2Bits: number;
  readonly cryptMethod: number;
  readonly l1OffsetBytes: number;
  /** Seconds since 1970: the backing file's last change, or 0. */
  readonly mtime: number;
}

/** Encodes a header. */
export function encodeHeader(header: QcowHeader): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(QCOW_HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, QCOW_MAGIC);
  view.setUint32(4, QCOW_VERSION);
  view.setBigUint64(8, BigInt(header.backingOffsetBytes));
  view.setUint32(16, header.backingLengthBytes);
  view.setUint32(20, header.mtime);
  view.setBigUint64(24, BigInt(header.sizeBytes));
  view.setUint8(32, header.clusterBits);
  view.setUint8(33, header.l2Bits);
  view.setUint32(36, header.cryptMethod);
  view.setBigUint64(40, BigInt(header.l1OffsetBytes));
  return bytes;
}

/** Decodes the fields of a header, whose magic and version are right. */
export function decodeHeader(view: DataView): QcowHeader {
  return {
    backingOffsetBytes: Number(view.getBigUint64(8)),
    backingLengthBytes: view.getUint32(16),
    mtime: view.getUint32(20),
    sizeBytes: Number(view.getBigUint64(24)),
    clusterBits: view.getUint8(32),
    l2Bits: view.getUint8(33),
    cryptMethod: view.getUint32(36),
    l1OffsetBytes: Number(view.getBigUint64(40)),
  };
}

/** Sectors of the disk that one L2 table is for. */
export function sectorsPerTable({ clusterBits, l2Bits }: QcowHeader): number {
  return 2 ** (clusterBits + l2Bits) / SECTOR_BYTES;
}

/** Bytes of an L2 table. */
export function tableBytes({ l2Bits }: QcowHeader): number {
  return 8 * 2 ** l2Bits;
}

/** Entries of the L1 table. */
export function l1Entries(header: QcowHeader): number {
  return Math.ceil(header.sizeBytes / (sectorsPerTable(header) * SECTOR_BYTES));
}

/** What an entry of an L2 table says of its cluster, in place of a sector of the file. */
export const Cluster = { None: 0, Compressed: -1, Wrong: -2 } as const;

/** The sector of the file at which an entry's cluster lies, or one of `Cluster`. */
export function clusterSector(view: DataView, at: number): number {
  const high = view.getUint32(at);
  if (high >= 0x80000000) return Cluster.Compressed;
  const low = view.getUint32(at + 4);
  if (high === 0 && low === 0) return Cluster.None;
  // A place beyond 2^53 bytes, or one that is not on a sector.
  if (high >= 1 << 21 || low % SECTOR_BYTES !== 0) return Cluster.Wrong;
  return high * (2 ** 32 / SECTOR_BYTES) + low / SECTOR_BYTES;
}

/** Puts the place of a cluster into an entry. */
export function putClusterSector(view: DataView, at: number, sector: number): void {
  view.setUint32(at, Math.floor(sector / (2 ** 32 / SECTOR_BYTES)));
  view.setUint32(at + 4, (sector % (2 ** 32 / SECTOR_BYTES)) * SECTOR_BYTES);
}

/** Length of the compressed cluster of an entry, bytes. */
export function packedLength(view: DataView, at: number, clusterBits: number): number {
  const high = view.getUint32(at) & 0x7fffffff;
  return high >>> (31 - clusterBits);
}

/** Byte offset in the file of the compressed cluster of an entry. */
export function packedOffset(view: DataView, at: number, clusterBits: number): number {
  const high = view.getUint32(at) & (2 ** (31 - clusterBits) - 1);
  return high * 2 ** 32 + view.getUint32(at + 4);
}
