/**
 * Archives in the format of an initramfs (cpio's "newc": see
 * Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
 *
 * @module
 */

/** A file or a folder of an archive. */
export interface CpioEntry {
  /** The path without a leading slash. Its folders must come before it. */
  readonly name: string;
  /** The contents of a file; undefined for a folder. */
  readonly data?: Uint8Array;
}

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;

/** Length of the header: the magic and 13 numbers of eight digits. */
const HEADER_BYTES = 110;

/** The archive of these entries, all owned by root and executable. */
export function cpioArchive(entries: readonly CpioEntry[]): Uint8Array<ArrayBuffer> {
  const records = entries.map(({ name, data }, index) =>
    record(name, index + 1, (data === undefined ? S_IFDIR : S_IFREG) | 0o755, data)
  );
  records.push(record("TRAILER!!!", 0, 0));
  return joined(records);
}

function record(
  name: string,
  inode: number,
  mode: number,
  data: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const nameBytes = new TextEncoder().encode(`${name}\0`);
  // c_ino, c_mode, c_uid, c_gid, c_nlink, c_mtime, c_filesize, c_maj, c_min, c_rmaj, c_rmin,
  // c_namesize, c_chksum
  const numbers = [inode, mode, 0, 0, 1, 0, data.length, 0, 0, 0, 0, nameBytes.length, 0];
  const digits = numbers.map((number) => number.toString(16).padStart(8, "0")).join("");
  const dataAt = padded(HEADER_BYTES + nameBytes.length);
  const bytes = new Uint8Array(padded(dataAt + data.length));
  bytes.set(new TextEncoder().encode(`070701${digits}`));
  bytes.set(nameBytes, HEADER_BYTES);
  bytes.set(data, dataAt);
  return bytes;
}

function padded(length: number): number {
  return Math.ceil(length / 4) * 4;
}

function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
