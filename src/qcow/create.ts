import { encodeName } from "../../ffi/names.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { type NewFile, writeNewImage } from "../files/new_file.ts";
import type { Storage, StorageFile } from "../files/storage.ts";
import { writeZeros } from "../vhd/create.ts";
import {
  encodeHeader,
  l1Entries,
  MOST_NAME_BYTES,
  QCOW_CRYPT_NONE,
  QCOW_HEADER_BYTES,
  type QcowHeader,
  SECTOR_BYTES,
} from "./format.ts";

/** Options of a new image. */
export interface CreateQcowOptions {
  /** Size of the disk, whole sectors. */
  readonly sizeBytes: number;
  /** The name of the backing file, as it is to be in the header; none by default. */
  readonly backingName?: string;
  /** The table has room in the file at once; by default it is a hole. */
  readonly fixed?: boolean;
}

/** The largest disk: its L1 table has 4 Mi entries of 2 MiB each. */
const MOST_QCOW_BYTES = 8 * 1024 ** 4;

/**
 * Makes an empty image as QEMU does: with clusters of 4 KiB, or of one sector when there is a backing
 * file, because QEMU writes parts of a new cluster without what surrounds them.
 *
 * @throws {SystemError} EINVAL for a size or a name that the format cannot hold. An incomplete file is
 * removed.
 */
export function createQcow(
  storage: Storage,
  file: NewFile,
  { sizeBytes, backingName, fixed = false }: CreateQcowOptions,
): void {
  const cannot = (why: string): SystemError =>
    new SystemError(Errno.EINVAL, `Cannot create ${file.path} (${why})`);
  if (!(sizeBytes > 0) || sizeBytes % SECTOR_BYTES !== 0) {
    throw cannot("its size must be whole sectors of 512 bytes, at least one");
  }
  if (sizeBytes > MOST_QCOW_BYTES) throw cannot("a QCOW has at most 8 TiB");
  const name = encodeName(backingName ?? "");
  if (name.length > MOST_NAME_BYTES) {
    throw cannot(`the name of its backing file is longer than ${MOST_NAME_BYTES} bytes`);
  }
  const isBacked = backingName !== undefined;
  const header: QcowHeader = {
    backingOffsetBytes: isBacked ? QCOW_HEADER_BYTES : 0,
    backingLengthBytes: name.length,
    mtime: 0,
    sizeBytes,
    clusterBits: isBacked ? 9 : 12,
    l2Bits: isBacked ? 12 : 9,
    cryptMethod: QCOW_CRYPT_NONE,
    l1OffsetBytes: Math.ceil((QCOW_HEADER_BYTES + name.length) / 8) * 8,
  };
  writeNewImage(storage, file, (opened) => {
    writeEmpty(opened, header, name);
    if (fixed) writeZeros(opened, header.l1OffsetBytes, 8 * l1Entries(header));
  });
}

function writeEmpty(file: StorageFile, header: QcowHeader, name: Uint8Array<ArrayBuffer>): void {
  if (file.isBlockDevice) {
    const why = "on a block device nothing would say where its data ends";
    throw new SystemError(Errno.EINVAL, `Cannot create ${file.path} (${why})`);
  }
  file.truncate(header.l1OffsetBytes + 8 * l1Entries(header));
  file.writeAt(name, QCOW_HEADER_BYTES);
  file.writeAt(encodeHeader(header), 0);
}
