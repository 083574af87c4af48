/** `length` bytes as a string with one character for each byte. It is exact for any bytes. */
export function readText(bytes: Uint8Array, offsetBytes: number, length: number): string {
  return String.fromCharCode(...bytes.subarray(offsetBytes, offsetBytes + length));
}

/** The reverse of {@linkcode readText}. */
export function writeText(bytes: Uint8Array, offsetBytes: number, text: string): void {
  for (let i = 0; i < text.length; i++) bytes[offsetBytes + i] = text.charCodeAt(i);
}

/** Text as UTF-16 code units in the given byte order, without a byte-order mark. */
export function encodeUtf16(text: string, { littleEndian }: { littleEndian: boolean }): Uint8Array {
  const bytes = new Uint8Array(text.length * 2);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < text.length; i++) view.setUint16(i * 2, text.charCodeAt(i), littleEndian);
  return bytes;
}

/** Decodes UTF-16 up to the first NUL, or to the end. */
export function decodeUtf16(
  bytes: Uint8Array,
  { littleEndian }: { littleEndian: boolean },
): string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let text = "";
  for (let i = 0; i + 1 < bytes.length; i += 2) {
    const unit = view.getUint16(i, littleEndian);
    if (unit === 0) break;
    text += String.fromCharCode(unit);
  }
  return text;
}
