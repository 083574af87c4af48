/**
 * Conversion of file names between bytes and strings. A Linux file name is a string of bytes,
 * usually but not always in UTF-8. A byte that is not part of valid UTF-8 becomes the lone
 * surrogate U+DC00 plus the byte (U+DC80 to U+DCFF), as in Python's `surrogateescape`. So every
 * name has a string, and the string converts back to the same bytes. JSON writes such a byte as
 * `\udce4`.
 *
 * Every path to and from libc is converted here. The runtime's own file calls are not used for
 * names that users chose: they refuse names that are not UTF-8, or omit them from listings.
 *
 * @module
 */

/** The surrogate of a byte is this plus the byte. */
const ESCAPE_BASE = 0xdc00;
const FIRST_ESCAPE = 0xdc80;
const LAST_ESCAPE = 0xdcff;

const utf8 = new TextEncoder();
// A byte-order mark is part of the name.
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Lone surrogates that stand for bytes. With the flag `u` a surrogate pair does not match. */
const ESCAPED_BYTES = /[\udc80-\udcff]+/gu;

/** Converts the string of a name to its bytes. */
export function encodeName(name: string): Uint8Array<ArrayBuffer> {
  const plain = utf8.encode(name);
  if (name.isWellFormed()) return plain;
  // A lone surrogate takes three bytes in `plain`, as U+FFFD, and at most three here.
  const bytes = new Uint8Array(plain.length);
  let length = 0;
  let from = 0;
  for (const { index, 0: run } of name.matchAll(ESCAPED_BYTES)) {
    length += utf8.encodeInto(name.slice(from, index), bytes.subarray(length)).written;
    for (let i = 0; i < run.length; i++) bytes[length++] = run.charCodeAt(i) - ESCAPE_BASE;
    from = index + run.length;
  }
  length += utf8.encodeInto(name.slice(from), bytes.subarray(length)).written;
  return bytes.slice(0, length);
}

/** Converts the bytes of a name to its string. */
export function decodeName(bytes: Uint8Array): string {
  try {
    return strict.decode(bytes);
  } catch {
    return decodeMixed(bytes);
  }
}

/** Converts bytes that are not valid UTF-8. */
function decodeMixed(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length;) {
    const length = sequenceLength(bytes, at);
    text += length === 0
      ? String.fromCharCode(ESCAPE_BASE + bytes[at])
      : strict.decode(bytes.subarray(at, at + length));
    at += Math.max(1, length);
  }
  return text;
}

/** The length of the UTF-8 character at `at`, bytes; 0 for invalid UTF-8 (RFC 3629, section 4). */
function sequenceLength(bytes: Uint8Array, at: number): number {
  const first = bytes[at];
  if (first < 0x80) return 1;
  const length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || at + length > bytes.length) return 0;
  for (let i = 1; i < length; i++) if ((bytes[at + i] & 0xc0) !== 0x80) return 0;
  const second = bytes[at + 1];
  const tooLong = (first === 0xe0 && second < 0xa0) || (first === 0xf0 && second < 0x90);
  const surrogate = first === 0xed && second >= 0xa0;
  const tooLarge = first === 0xf4 && second >= 0x90;
  return tooLong || surrogate || tooLarge ? 0 : length;
}

/** Whether a lone UTF-16 unit stands for a byte that is not part of valid UTF-8. */
export function isEscapedByte(unit: number): boolean {
  return unit >= FIRST_ESCAPE && unit <= LAST_ESCAPE;
}

/** The name that begins at byte `offset` and ends before the next NUL or at the end of `bytes`. */
export function nameAt(bytes: Uint8Array, offset: number): string {
  const end = bytes.indexOf(0, offset);
  return decodeName(bytes.subarray(offset, end < 0 ? bytes.length : end));
}

/** Compares names by their bytes, as `sort` and glob(3) do in the C locale. */
export function compareNames(a: string, b: string): number {
  if (a === b) return 0;
  const length = Math.min(a.length, b.length);
  let at = 0;
  while (at < length && a.charCodeAt(at) === b.charCodeAt(at)) at++;
  // Below the surrogates UTF-16 units have the order of the bytes.
  const [unitA, unitB] = [a.charCodeAt(at), b.charCodeAt(at)];
  if (at === length) return a.length - b.length;
  if (unitA < 0xd800 && unitB < 0xd800) return unitA - unitB;
  return compareBytes(encodeName(a), encodeName(b));
}

function compareBytes(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return a.length - b.length;
}
