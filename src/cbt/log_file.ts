import { Errno, SystemError } from "../../ffi/errno.ts";
import { type OnStorage, osStorage, type Storage, type StorageFile } from "../files/storage.ts";
import {
  bitmapBytes,
  CBT_HEADER_BYTES,
  CBT_UUID_BYTES,
  type CbtHeader,
  type CbtLog,
  checkDiskSize,
  decodeCbtHeader,
  encodeCbtHeader,
} from "./cbt_log.ts";

/** A tapdisk writes bits to the page cache, so all others use the page cache as well. */
const CACHED = { cached: true } as const;

/**
 * Makes a log without a changed block. An existing file is replaced; a block device is written from
 * its start.
 *
 * @param path The file.
 * @throws {SystemError} EINVAL for a size that no disk has; EBUSY while a tapdisk uses the file.
 */
export function createCbtLog(
  path: string,
  { sizeBytes, storage = osStorage }: OnStorage & { readonly sizeBytes: number },
): void {
  checkDiskSize(sizeBytes, path);
  const none = new Uint8Array(CBT_UUID_BYTES);
  const header = { parent: none, child: none, consistent: 0, sizeBytes };
  const file = storage.open(path, isBlockDevice(storage, path) ? "write" : "create", CACHED);
  try {
    writeZeros(file, CBT_HEADER_BYTES, bitmapBytes(sizeBytes));
    file.writeAt(encodeCbtHeader(header), 0);
    file.sync();
  } finally {
    file.close();
  }
}

/**
 * Writes zeros. A hole would not do: on a full file system, changes of the disk would wait for room for
 * their bits.
 */
function writeZeros(file: StorageFile, offsetBytes: number, lengthBytes: number): void {
  const zeros = new Uint8Array(Math.min(lengthBytes, 1 << 20));
  for (let done = 0; done < lengthBytes;) {
    const part = zeros.subarray(0, Math.min(zeros.length, lengthBytes - done));
    file.writeAt(part, offsetBytes + done);
    done += part.length;
  }
}

function isBlockDevice(storage: Storage, path: string): boolean {
  return storage.exists(path) && storage.locate(path).kind === "block";
}

/** Reads the front of a log. Throws `SystemError`: EIO for a file that is too short. */
export function readCbtHeader(path: string, { storage = osStorage }: OnStorage = {}): CbtHeader {
  return reading(storage, path, cbtHeaderOf);
}

/** Reads a log. Throws `SystemError`: EIO for a file that is too short. */
export function readCbtLog(path: string, { storage = osStorage }: OnStorage = {}): CbtLog {
  return reading(storage, path, cbtLogOf);
}

function reading<Result>(
  storage: Storage,
  path: string,
  work: (file: StorageFile) => Result,
): Result {
  const file = storage.open(path, "read", CACHED);
  try {
    return work(file);
  } finally {
    file.close();
  }
}

/** A log that is open. */
export type OpenCbtLog = Pick<StorageFile, "path" | "sizeBytes" | "readAt">;

/** Reads the front of an open log. Throws `SystemError`: EIO for a file that is too short. */
export function cbtHeaderOf(file: OpenCbtLog): CbtHeader {
  return decodeCbtHeader(readWhole(file, 0, CBT_HEADER_BYTES), file.path);
}

/** Reads an open log. Throws `SystemError`: EIO for a file that is too short. */
export function cbtLogOf(file: OpenCbtLog): CbtLog {
  const header = cbtHeaderOf(file);
  const lengthBytes = bitmapBytes(header.sizeBytes);
  checkLength(file, lengthBytes);
  return { header, bits: readWhole(file, CBT_HEADER_BYTES, lengthBytes) };
}

/** Throws `SystemError` EIO for a file without room for so many bytes of bits. */
function checkLength(file: OpenCbtLog, bitsBytes: number): void {
  if (file.sizeBytes() < CBT_HEADER_BYTES + bitsBytes) throw tooShort(file.path);
}

function readWhole(
  file: OpenCbtLog,
  offsetBytes: number,
  lengthBytes: number,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(lengthBytes);
  if (file.readAt(bytes, offsetBytes) < lengthBytes) throw tooShort(file.path);
  return bytes;
}

function tooShort(path: string): SystemError {
  return new SystemError(
    Errno.EIO,
    `Cannot read ${path}: it is shorter than a log of changed blocks for its disk`,
  );
}

/** Fields of a log that are to be changed. */
export interface CbtChanges extends OnStorage {
  readonly parent?: Uint8Array<ArrayBuffer>;
  readonly child?: Uint8Array<ArrayBuffer>;
  readonly consistent?: number;
  /** The disk has grown to this size; its new blocks are unchanged. */
  readonly sizeBytes?: number;
}

/** Where the fields are, and their lengths. */
const PLACES: Readonly<Record<keyof CbtHeader, readonly [number, number]>> = {
  parent: [0, CBT_UUID_BYTES],
  child: [16, CBT_UUID_BYTES],
  consistent: [32, 4],
  sizeBytes: [40, 8],
};

/**
 * Changes fields of a log. The new bits are written before the size that covers them. Nothing but the
 * fields is written, so all but the size can be changed while a tapdisk, also of another host, sets
 * bits: XenServer does so when it deletes the snapshot before a disk that runs.
 *
 * @throws {SystemError} EINVAL for a smaller size; EBUSY for a size while a tapdisk uses the file.
 */
export function changeCbtLog(path: string, changes: CbtChanges): void {
  const { storage = osStorage, ...fields } = changes;
  const unlocked = fields.sizeBytes === undefined;
  const file = storage.open(path, "write", { ...CACHED, unlocked });
  try {
    const header = cbtHeaderOf(file);
    if (fields.sizeBytes !== undefined) growBits(file, header, fields.sizeBytes);
    const encoded = encodeCbtHeader({ ...header, ...fields });
    for (const field of ["parent", "child", "consistent", "sizeBytes"] as const) {
      const [at, length] = PLACES[field];
      if (fields[field] !== undefined) file.writeAt(encoded.slice(at, at + length), at);
    }
    file.sync();
  } finally {
    file.close();
  }
}

/** Adds bits of unchanged blocks, durably, for a disk that has grown. */
function growBits(file: StorageFile, header: CbtHeader, sizeBytes: number): void {
  checkDiskSize(sizeBytes, file.path);
  if (sizeBytes < header.sizeBytes) throw smaller(file.path, header.sizeBytes);
  const before = bitmapBytes(header.sizeBytes);
  checkLength(file, before);
  const added = bitmapBytes(sizeBytes) - before;
  if (added === 0) return;
  writeZeros(file, CBT_HEADER_BYTES + before, added);
  file.sync();
}

function smaller(path: string, sizeBytes: number): SystemError {
  const message = `Cannot change ${path}: Size smaller than current file size (${sizeBytes})`;
  return new SystemError(Errno.EINVAL, message, { message });
}

/**
 * Adds the changed blocks of one log to another, which is of a disk at least as large.
 *
 * @param parent The log whose blocks are added; it is only read.
 * @param child The log that gets them.
 * @throws {SystemError} EINVAL when the parent's log is larger; EBUSY while a tapdisk uses the child's.
 */
export function coalesceCbtLogs(
  { parent, child, storage = osStorage }: OnStorage & {
    readonly parent: string;
    readonly child: string;
  },
): void {
  const { bits: added } = readCbtLog(parent, { storage });
  const file = storage.open(child, "write", CACHED);
  try {
    const { bits } = cbtLogOf(file);
    if (added.length > bits.length) {
      const message = `Cannot add ${parent} to ${child}: ` +
        "Parent bitmap larger than child bitmap, can't coalesce";
      throw new SystemError(Errno.EINVAL, message, { message });
    }
    for (let i = 0; i < added.length; i++) bits[i] |= added[i];
    file.writeAt(bits, CBT_HEADER_BYTES);
    file.sync();
  } finally {
    file.close();
  }
}
