/**
 * `src/cbt`: logs of changed blocks, which XenServer keeps beside its disks: one bit for each 64 KiB
 * of a disk, and the logs of the snapshots before and after it. A backup program reads the logs
 * between two snapshots to copy only what changed.
 *
 * This file has the layout of a log (`struct cbt_log_metadata` of blktap's cbt-util.h, as an x86-64
 * machine has it in memory):
 *
 * | offset | bytes | field                                                              |
 * | ------ | ----- | ------------------------------------------------------------------ |
 * | 0      | 16    | UUID of the log before this one; zeros without one                 |
 * | 16     | 16    | UUID of the log after this one; zeros without one                  |
 * | 32     | 4     | whether the bits are complete: 1 while no tapdisk has the disk open |
 * | 36     | 4     | unused                                                             |
 * | 40     | 8     | size of the disk, bytes                                            |
 * | 48     |       | the bits, the least significant bit of a byte first                |
 *
 * The files are in `log_file.ts`. This folder must not know disks that are served, and must not
 * print.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";

/** Bytes of the disk that one bit stands for. */
export const CBT_BLOCK_BYTES = 64 * 1024;
/** Bytes in front of the bits. */
export const CBT_HEADER_BYTES = 48;
/** Bytes of a UUID. */
export const CBT_UUID_BYTES = 16;

/** The largest disk that a log is made for, bytes; its bits take 256 MiB. */
const MOST_DISK_BYTES = 2 ** 47;

/** What is in front of the bits. */
export interface CbtHeader {
  readonly parent: Uint8Array<ArrayBuffer>;
  readonly child: Uint8Array<ArrayBuffer>;
  /** 0 or 1; the original allows any 32-bit number. */
  readonly consistent: number;
  /** Size of the disk, bytes. */
  readonly sizeBytes: number;
}

/** A log in memory. */
export interface CbtLog {
  readonly header: CbtHeader;
  readonly bits: Uint8Array<ArrayBuffer>;
}

/** The number of bytes of the bits for a disk of `sizeBytes`. */
export function bitmapBytes(sizeBytes: number): number {
  return Math.ceil(Math.ceil(sizeBytes / CBT_BLOCK_BYTES) / 8);
}

/** Encodes the front of a log. */
export function encodeCbtHeader(header: CbtHeader): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(CBT_HEADER_BYTES);
  bytes.set(header.parent, 0);
  bytes.set(header.child, 16);
  const view = new DataView(bytes.buffer);
  view.setInt32(32, header.consistent, true);
  view.setBigUint64(40, BigInt(header.sizeBytes), true);
  return bytes;
}

/**
 * Decodes the front of a log.
 *
 * @throws {SystemError} EINVAL for the size of no disk.
 */
export function decodeCbtHeader(bytes: Uint8Array<ArrayBuffer>, path: string): CbtHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, CBT_HEADER_BYTES);
  const sizeBytes = Number(view.getBigUint64(40, true));
  checkDiskSize(sizeBytes, path);
  return {
    parent: bytes.slice(0, 16),
    child: bytes.slice(16, 32),
    consistent: view.getInt32(32, true),
    sizeBytes,
  };
}

/** Throws `SystemError` EINVAL for a size that no disk has. */
export function checkDiskSize(sizeBytes: number, path: string): void {
  if (sizeBytes > 0 && sizeBytes <= MOST_DISK_BYTES) return;
  throw new SystemError(
    Errno.EINVAL,
    `Cannot use ${path} as a log of changed blocks: it is for a disk of ${sizeBytes} bytes`,
  );
}

/** Byte `at` of the bits, with those of the blocks from `first` to `last` set. */
export function changedByte(bits: Uint8Array, at: number, first: number, last: number): number {
  const from = at === first >>> 3 ? first & 7 : 0;
  const to = at === last >>> 3 ? last & 7 : 7;
  return bits[at] | ((0xff << from) & (0xff >>> (7 - to)));
}

/** A run of changed bytes of a disk. */
export interface ChangedExtent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** The runs of changed bytes, in order; the last ends with the disk at the latest. */
export function* changedExtents({ header, bits }: CbtLog): Generator<ChangedExtent> {
  const blocks = Math.ceil(header.sizeBytes / CBT_BLOCK_BYTES);
  for (let block = 0; block < blocks;) {
    const start = nextBlock(bits, block, blocks, true);
    block = nextBlock(bits, start, blocks, false);
    if (start === blocks) return;
    const offsetBytes = start * CBT_BLOCK_BYTES;
    const endBytes = Math.min(block * CBT_BLOCK_BYTES, header.sizeBytes);
    yield { offsetBytes, lengthBytes: endBytes - offsetBytes };
  }
}

/** The first block from `block` on that is changed, or is not; `blocks` when there is none. */
export function nextBlock(
  bits: Uint8Array,
  block: number,
  blocks: number,
  changed: boolean,
): number {
  const none = changed ? 0 : 0xff;
  while (block < blocks) {
    if ((block & 7) === 0 && block + 8 <= blocks && bits[block >>> 3] === none) block += 8;
    else if (((bits[block >>> 3] >>> (block & 7)) & 1) === (changed ? 1 : 0)) return block;
    else block++;
  }
  return blocks;
}

/** The number of changed bytes. */
export function changedBytes(log: CbtLog): number {
  let sum = 0;
  for (const { lengthBytes } of changedExtents(log)) sum += lengthBytes;
  return sum;
}
