import { readAt, writeAt } from "../../ffi/files.ts";
import { Arena } from "../../ffi/memory.ts";

/** How much goes past the page cache at a time: what a copy through memory costs least with. */
const BUFFER_BYTES = 1 << 20;

/** One for all files: the calls come back before the next can begin. */
let buffer: Arena | null = null;

function bufferBytes(): Uint8Array<ArrayBuffer> {
  buffer ??= new Arena(BUFFER_BYTES);
  return buffer.bytes;
}

/** A file that was opened with O_DIRECT. */
export interface DirectFile {
  readonly fd: number;
  /** Offsets and lengths of its transfers are multiples of this. */
  readonly sectorBytes: number;
}

/**
 * Reads from a file past the page cache, from any offset into any memory.
 *
 * @returns The bytes read: fewer than asked where the file ends.
 * @throws {SystemError} what pread(2) says.
 */
export function readDirect(
  { fd, sectorBytes }: DirectFile,
  into: Uint8Array<ArrayBuffer>,
  offsetBytes: number,
): number {
  const bytes = bufferBytes();
  for (let done = 0; done < into.length;) {
    const skip = (offsetBytes + done) % sectorBytes;
    const wanted = Math.min(into.length - done, BUFFER_BYTES - skip);
    const length = Math.ceil((skip + wanted) / sectorBytes) * sectorBytes;
    const got = readAt(fd, bytes.subarray(0, length), offsetBytes + done - skip) - skip;
    const count = Math.min(wanted, got);
    if (count <= 0) return done;
    into.set(bytes.subarray(skip, skip + count), done);
    done += count;
    if (count < wanted) return done;
  }
  return into.length;
}

/**
 * Writes to a file past the page cache, to any offset from any memory. Of sectors that are written in
 * part the rest is read first and stays.
 *
 * @throws {SystemError} what pread(2) and pwrite(2) say.
 */
export function writeDirect(
  { fd, sectorBytes }: DirectFile,
  from: Uint8Array<ArrayBuffer>,
  offsetBytes: number,
): void {
  const bytes = bufferBytes();
  for (let done = 0; done < from.length;) {
    const skip = (offsetBytes + done) % sectorBytes;
    const count = Math.min(from.length - done, BUFFER_BYTES - skip);
    const length = Math.ceil((skip + count) / sectorBytes) * sectorBytes;
    const start = offsetBytes + done - skip;
    if (skip > 0) readSector({ fd, sectorBytes }, 0, start);
    if (skip + count < length && (skip === 0 || length > sectorBytes)) {
      readSector({ fd, sectorBytes }, length - sectorBytes, start);
    }
    bytes.set(from.subarray(done, done + count), skip);
    writeAt(fd, bytes.subarray(0, length), start);
    done += count;
  }
}

/** Reads one sector to where it belongs in the buffer, which begins at `start` of the file. */
function readSector({ fd, sectorBytes }: DirectFile, at: number, start: number): void {
  const part = bufferBytes().subarray(at, at + sectorBytes);
  part.fill(0, readAt(fd, part, start + at));
}
