import { Errno, SystemError } from "../../ffi/errno.ts";
import { closeFile, O_RDONLY, openFile, readAt } from "../../ffi/files.ts";
import { Secret } from "../../ffi/secret.ts";

/** The longest line of a file of keys, bytes. */
const LONGEST_LINE_BYTES = 4096;
/** The most bytes of a file that are looked at. */
const MOST_BYTES = 1 << 20;
const NEWLINE = 0x0a;
const CARRIAGE_RETURN = 0x0d;
const COLON = 0x3a;

/** The value of a hexadecimal digit; -1 for another character. */
function digit(character: number): number {
  if (character >= 0x30 && character <= 0x39) return character - 0x30;
  const lower = character | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x61 + 10 : -1;
}

/** The key behind the colon of a line, in memory for keys; null when it is not valid. */
function parseKey(line: Uint8Array, at: number): Secret | null {
  const digits = line.length - at;
  if (digits === 0 || digits % 2 !== 0) return null;
  const key = new Secret(digits / 2);
  for (let i = 0; i < digits; i += 2) {
    const [high, low] = [digit(line[at + i]), digit(line[at + i + 1])];
    if (high < 0 || low < 0) {
      key.release();
      return null;
    }
    key.bytes[i / 2] = high * 16 + low;
  }
  return key;
}

/** The key of a line `NAME:HEX`; null when it is that of another name, or none. */
function keyOfLine(line: Uint8Array, name: Uint8Array): Secret | null {
  const end = line[line.length - 1] === CARRIAGE_RETURN ? line.length - 1 : line.length;
  if (end <= name.length || line[name.length] !== COLON) return null;
  for (let i = 0; i < name.length; i++) if (line[i] !== name[i]) return null;
  return parseKey(line.subarray(0, end), name.length + 1);
}

/**
 * The key of a name in a file as `psktool` writes it: lines `NAME:HEX`. The file is read each time,
 * so that a changed file counts at once, and straight into memory for keys, which is wiped.
 *
 * @returns The key, which the caller releases; null when the file has none for the name.
 * @throws {SystemError} The file cannot be read.
 */
export function findPreSharedKey(path: string, name: string): Secret | null {
  const wanted = new TextEncoder().encode(name);
  if (wanted.length === 0 || wanted.includes(NEWLINE) || wanted.includes(COLON)) return null;
  const fd = openFile(path, O_RDONLY);
  const window = new Secret(LONGEST_LINE_BYTES);
  try {
    let kept = 0;
    for (let at = 0; at < MOST_BYTES;) {
      const got = readAt(fd, window.bytes.subarray(kept), at);
      at += got;
      const filled = kept + got;
      const known = window.bytes.subarray(0, filled);
      let start = 0;
      for (;;) {
        const newline = known.indexOf(NEWLINE, start);
        if (newline < 0 && got > 0) break;
        const key = keyOfLine(known.subarray(start, newline < 0 ? filled : newline), wanted);
        if (key !== null) return key;
        if (newline < 0) return null;
        start = newline + 1;
      }
      window.bytes.copyWithin(0, start, filled);
      kept = filled - start;
      // No key is so long: what follows belongs to the same line, and is passed over.
      if (kept === LONGEST_LINE_BYTES) kept = 0;
    }
    return null;
  } finally {
    closeFile(fd);
    window.release();
  }
}

/** Throws `SystemError` for a file of keys that cannot be read. */
export function requireKeyFile(path: string): void {
  if (!path.startsWith("/")) {
    throw new SystemError(Errno.EINVAL, `Cannot use the keys of ${path} (it is no whole path)`);
  }
  closeFile(openFile(path, O_RDONLY));
}
