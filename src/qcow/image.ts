import { decodeName } from "../../ffi/names.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { type Confinement, confinementOf } from "../files/confinement.ts";
import { type FormatFault, ImageFormatError } from "../files/format_error.ts";
import { type FileIdentity, osStorage, type Storage, type StorageFile } from "../files/storage.ts";
import {
  Cluster,
  clusterSector,
  decodeHeader,
  EXTHDR_L1_BIG_ENDIAN,
  l1Entries,
  MOST_NAME_BYTES,
  QCOW_CRYPT_AES,
  QCOW_CRYPT_NONE,
  QCOW_HEADER_BYTES,
  QCOW_MAGIC,
  QCOW_VERSION,
  type QcowHeader,
  SECTOR_BYTES,
  tableBytes,
  XEN_HEADER_BYTES,
  XEN_MAGIC,
} from "./format.ts";

/** The most entries of an L1 table: 8 TiB in tables of 2 MiB. The table is kept in memory. */
const MOST_L1_ENTRIES = 4 << 20;
const L1_BYTES_AT_ONCE = 1 << 20;

/** An open image whose header and L1 table were read and are valid. */
export interface QcowImage {
  readonly path: string;
  readonly file: StorageFile;
  readonly storage: Storage;
  /** The folders in which its backing files may be. */
  readonly confinement: Confinement;
  readonly header: QcowHeader;
  /** Whole sectors of the disk. */
  readonly sectors: number;
  /** The sector of the file at which each L2 table begins; 0 without one. */
  readonly l1: Float64Array<ArrayBuffer>;
  /** The name of the backing file, as it is in the header; null without one. */
  readonly backingName: string | null;
  /** Whether the L1 table is little-endian, as the first versions of blktap wrote it. */
  readonly isSwapped: boolean;
  close(): void;
}

/** How an image is opened. */
export interface OpenQcowOptions {
  readonly storage?: Storage;
  /** True by default. */
  readonly readOnly?: boolean;
  readonly same?: FileIdentity;
  readonly lockedBy?: FileIdentity;
  /** Without it, the image is the top of a chain. */
  readonly confinement?: Confinement;
}

/**
 * Opens an image and reads its header and L1 table.
 *
 * @throws {ImageFormatError} for a file that is no QCOW image or contradicts itself.
 * @throws {SystemError} EOPNOTSUPP for an encrypted image; errors of the file.
 */
export function openQcow(path: string, options: OpenQcowOptions = {}): QcowImage {
  const { storage = osStorage, readOnly = true, same, lockedBy } = options;
  const file = storage.open(path, readOnly ? "read" : "write", { same, lockedBy });
  try {
    return readImage(file, storage, options);
  } catch (error) {
    file.close();
    throw error;
  }
}

/** The error for a field of an image. */
function qcowFault(path: string, fault: FormatFault): ImageFormatError {
  return new ImageFormatError(path, "QCOW", fault);
}

function readImage(file: StorageFile, storage: Storage, options: OpenQcowOptions): QcowImage {
  const { path } = file;
  const bytes = new Uint8Array(QCOW_HEADER_BYTES + XEN_HEADER_BYTES);
  const got = file.readAt(bytes, 0);
  const view = new DataView(bytes.buffer);
  requireMagic(path, view, got);
  const header = decodeHeader(view);
  checkHeader(path, header);
  const fileBytes = file.sizeBytes();
  const isSwapped = view.getUint32(QCOW_HEADER_BYTES) === XEN_MAGIC &&
    (view.getUint32(QCOW_HEADER_BYTES + 12) & EXTHDR_L1_BIG_ENDIAN) === 0;
  return {
    path,
    file,
    storage,
    confinement: options.confinement ?? confinementOf(storage, path),
    header,
    sectors: Math.floor(header.sizeBytes / SECTOR_BYTES),
    l1: readL1(file, header, { isSwapped, fileBytes }),
    backingName: readBackingName(file, header),
    isSwapped,
    close: () => file.close(),
  };
}

function requireMagic(path: string, view: DataView, got: number): void {
  const magic = view.getUint32(0);
  const version = view.getUint32(4);
  const wrong = (field: string, offsetBytes: number, value: string, problem: string): never => {
    throw qcowFault(path, { field, offsetBytes, value, problem });
  };
  if (got < QCOW_HEADER_BYTES) wrong("header", 0, `${got} bytes`, "is too short for a header");
  if (magic !== QCOW_MAGIC) {
    wrong("header.magic", 0, `0x${magic.toString(16)}`, "is not that of a QCOW image");
  }
  if (version === QCOW_VERSION) return;
  const isQcow2 = version === 2 || version === 3;
  const problem = isQcow2 ? "is QCOW2: name it qcow2:PATH" : "is not version 1";
  wrong("header.version", 4, `${version}`, problem);
}

/** What QEMU requires as well, and limits. */
function checkHeader(path: string, header: QcowHeader): void {
  const require = (
    isRight: boolean,
    field: string,
    offsetBytes: number,
    value: number,
    problem: string,
  ): void => {
    if (isRight) return;
    throw qcowFault(path, { field: `header.${field}`, offsetBytes, value: `${value}`, problem });
  };
  const { clusterBits, l2Bits, sizeBytes, cryptMethod } = header;
  require(clusterBits >= 9 && clusterBits <= 16, "cluster_bits", 32, clusterBits, "is not 9 to 16");
  require(l2Bits >= 6 && l2Bits <= 13, "l2_bits", 33, l2Bits, "is not 6 to 13");
  require(sizeBytes >= SECTOR_BYTES, "size", 24, sizeBytes, "is not one sector");
  const isSize = sizeBytes <= Number.MAX_SAFE_INTEGER;
  require(isSize && l1Entries(header) <= MOST_L1_ENTRIES, "size", 24, sizeBytes, "is too large");
  require(cryptMethod <= QCOW_CRYPT_AES, "crypt_method", 36, cryptMethod, "is no known method");
  if (cryptMethod !== QCOW_CRYPT_NONE) {
    const hint = "decrypt it with 'qemu-img convert'";
    const what = `Cannot open ${path}: it is encrypted with AES, which QEMU has given up as unsafe`;
    throw new SystemError(Errno.EOPNOTSUPP, what, { hint });
  }
  const { l1OffsetBytes, backingOffsetBytes, backingLengthBytes } = header;
  const isPlace = l1OffsetBytes >= QCOW_HEADER_BYTES && l1OffsetBytes % 8 === 0;
  require(isPlace, "l1_table_offset", 40, l1OffsetBytes, "is no place for a table");
  if (backingOffsetBytes === 0) return;
  const isName = backingLengthBytes <= MOST_NAME_BYTES;
  require(isName, "backing_file_size", 16, backingLengthBytes, "is longer than 1023 bytes");
}

function readL1(
  file: StorageFile,
  header: QcowHeader,
  { isSwapped, fileBytes }: { isSwapped: boolean; fileBytes: number },
): Float64Array<ArrayBuffer> {
  const entries = l1Entries(header);
  const { l1OffsetBytes } = header;
  if (l1OffsetBytes + 8 * entries > fileBytes) {
    throw qcowFault(file.path, {
      field: "header.l1_table_offset",
      offsetBytes: 40,
      value: `${l1OffsetBytes}`,
      problem: `puts a table of ${entries} entries past the end of the file`,
    });
  }
  const l1 = new Float64Array(entries);
  const bytes = new Uint8Array(Math.min(8 * entries, L1_BYTES_AT_ONCE));
  const view = new DataView(bytes.buffer);
  const atOnce = bytes.length / 8;
  for (let first = 0; first < entries; first += atOnce) {
    const count = Math.min(atOnce, entries - first);
    const part = bytes.subarray(0, 8 * count);
    part.fill(0, file.readAt(part, l1OffsetBytes + 8 * first));
    for (let i = 0; i < count; i++) {
      if (isSwapped) part.subarray(8 * i, 8 * i + 8).reverse();
      l1[first + i] = checkedTable(file.path, header, {
        view,
        at: 8 * i,
        index: first + i,
        fileBytes,
      });
    }
  }
  return l1;
}

/** The sector of an L2 table, which must lie in the file, behind the header and the L1 table. */
function checkedTable(
  path: string,
  header: QcowHeader,
  { view, at, index, fileBytes }: { view: DataView; at: number; index: number; fileBytes: number },
): number {
  const sector = clusterSector(view, at);
  if (sector === Cluster.None) return 0;
  const offsetBytes = sector * SECTOR_BYTES;
  const isInside = sector > 0 && offsetBytes + tableBytes(header) <= fileBytes;
  if (isInside && !overlapsFront(header, offsetBytes, tableBytes(header))) return sector;
  throw qcowFault(path, {
    field: `l1[${index}]`,
    offsetBytes: header.l1OffsetBytes + 8 * index,
    value: `0x${view.getBigUint64(at).toString(16)}`,
    problem: "is no place for a table",
  });
}

/** Whether a range of the file meets the header, the name behind it, or the L1 table. */
export function overlapsFront(header: QcowHeader, from: number, lengthBytes: number): boolean {
  const { l1OffsetBytes, backingOffsetBytes, backingLengthBytes } = header;
  const meets = (start: number, length: number): boolean =>
    length > 0 && from < start + length && start < from + lengthBytes;
  return meets(0, QCOW_HEADER_BYTES) || meets(l1OffsetBytes, 8 * l1Entries(header)) ||
    (backingOffsetBytes !== 0 && meets(backingOffsetBytes, backingLengthBytes));
}

function readBackingName(
  file: StorageFile,
  { backingOffsetBytes, backingLengthBytes }: QcowHeader,
): string | null {
  if (backingOffsetBytes === 0 || backingLengthBytes === 0) return null;
  const bytes = new Uint8Array(backingLengthBytes);
  const got = file.readAt(bytes, backingOffsetBytes);
  const end = bytes.indexOf(0);
  if (got === bytes.length && end < 0) return decodeName(bytes);
  throw qcowFault(file.path, {
    field: "header.backing_file_offset",
    offsetBytes: 8,
    value: `${backingOffsetBytes}`,
    problem: end < 0 ? "puts the name past the end of the file" : "leads to a name with a NUL byte",
  });
}
