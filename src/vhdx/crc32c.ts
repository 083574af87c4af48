/** The polynomial of CRC-32C, with its bits reversed. */
const POLYNOMIAL = 0x82f63b78;

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 0 ? crc >>> 1 : (crc >>> 1) ^ POLYNOMIAL;
  return crc >>> 0;
});

/**
 * The CRC-32C of a structure whose own field for it, of four bytes, counts as zeros.
 *
 * @param fieldAt Offset of that field.
 */
export function crc32cWithout(bytes: Uint8Array, fieldAt: number): number {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) {
    const byte = i >= fieldAt && i < fieldAt + 4 ? 0 : bytes[i];
    crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
