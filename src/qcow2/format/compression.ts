/**
 * The data of compressed clusters. What follows the compressed data in its last sector is another
 * cluster's: it is not part of it.
 *
 * @module
 */
import { constants, inflateRawSync, zstdDecompressSync } from "node:zlib";
import { Compression } from "./header.ts";

/**
 * A program for a worker, which compresses clusters as QEMU does. It gets `{ id, bytes, type }` and answers
 * `{ id, bytes, packed }`: `packed` is null when it would not be shorter. A worker of a compiled program
 * has no files, so this is its text.
 */
export const COMPRESSOR = `
import { deflateRawSync, zstdCompressSync } from "node:zlib";
onmessage = ({ data: { id, bytes, type } }) => {
  const result = type === ${Compression.Zstd}
    ? zstdCompressSync(bytes)
    : deflateRawSync(bytes, { windowBits: 12, memLevel: 9 });
  const packed = result.length < bytes.length ? new Uint8Array(result) : null;
  postMessage({ id, bytes, packed }, packed === null ? [bytes.buffer] : [bytes.buffer, packed.buffer]);
};
`;

const ZSTD_MAGIC = 0xfd2fb528;
const BLOCK_HEAD_BYTES = 3;
const RLE_BLOCK = 1;

/**
 * Decompresses a cluster.
 *
 * @param bytes From the start of the data to the end of its last sector.
 * @returns Exactly a cluster.
 * @throws {Error} for data that is not that of a cluster.
 */
export function decompressCluster(
  bytes: Uint8Array<ArrayBuffer>,
  { type, clusterBytes }: { type: number; clusterBytes: number },
): Uint8Array {
  const maxOutputLength = clusterBytes;
  const content = type === Compression.Zstd
    ? zstdDecompressSync(bytes.subarray(0, zstdFrameBytes(bytes)), { maxOutputLength })
    : inflateRawSync(bytes, { maxOutputLength, finishFlush: constants.Z_SYNC_FLUSH });
  if (content.length === clusterBytes) return content;
  throw new RangeError(`A compressed cluster has ${content.length} bytes, not ${clusterBytes}`);
}

/**
 * Bytes of the Zstandard frame at the start of some bytes (RFC 8878, 3.1.1): its header, its blocks,
 * its checksum.
 *
 * @throws {RangeError} when there is none, or it is not whole.
 */
function zstdFrameBytes(bytes: Uint8Array<ArrayBuffer>): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(0, true) !== ZSTD_MAGIC) throw new RangeError("It is no Zstandard frame");
  const descriptor = view.getUint8(4);
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const sizeFlag = descriptor >>> 6;
  const sizeBytes = sizeFlag === 0 ? (isSingleSegment ? 1 : 0) : 1 << sizeFlag;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3];
  let at = 5 + (isSingleSegment ? 0 : 1) + dictionaryBytes + sizeBytes;
  for (let isLast = false; !isLast;) {
    const head = view.getUint16(at, true) + view.getUint8(at + 2) * 65536;
    isLast = (head & 1) === 1;
    const isRle = (head >>> 1 & 3) === RLE_BLOCK;
    at += BLOCK_HEAD_BYTES + (isRle ? 1 : head >>> 3);
  }
  at += (descriptor & 4) !== 0 ? 4 : 0;
  if (at > bytes.length) throw new RangeError("A Zstandard frame is cut");
  return at;
}
