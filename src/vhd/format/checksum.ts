/**
 * The checksum of a footer, header or batmap: the ones' complement of the sum of its bytes.
 *
 * @param bytes The structure as it is on disk.
 * @param checksumOffsetBytes The offset of the structure's own 32-bit checksum field, which counts
 * as zero. Left out for a structure that does not contain its checksum.
 * @returns An unsigned 32-bit number.
 */
export function onesComplementChecksum(bytes: Uint8Array, checksumOffsetBytes = -1): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i++) sum = (sum + bytes[i]) >>> 0;
  if (checksumOffsetBytes >= 0) {
    for (let i = 0; i < 4; i++) sum = (sum - bytes[checksumOffsetBytes + i]) >>> 0;
  }
  return ~sum >>> 0;
}

/** The checksum over signed bytes, as in batmaps of version 1.1. */
export function signedOnesComplementChecksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i++) sum = (sum + (bytes[i] << 24 >> 24)) >>> 0;
  return ~sum >>> 0;
}
