import { readAt, writeAt } from "../../ffi/files.ts";
import { Arena } from "../../ffi/memory.ts";

/**
 * The size of a transfer that bypasses the page cache. At this size the copy through memory costs
 * least.
 */
const BUFFER_BYTES = 1 << 20;

/** One buffer for all files: each call returns before the next one starts. */
let buffer: Arena | null = null;

function bufferBytes(): Uint8Array<ArrayBuffer> {
  buffer ??= new Arena(BUFFER_BYTES);
  return buffer.bytes;
}

/** A file that was opened with O_DIRECT. */
export interface DirectFile {
  readonly fd: number;
  /** Transfers have offsets and lengths that are multiples of this. */
  readonly sectorBytes: number;
}

/**
 * Reads from a file, bypassing the page cache, from any offset into any memory.
 *
 * @returns The number of bytes read. It is smaller than requested at the end of the file.
 * @throws {SystemError} for errors of pread(2).
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
 * Writes to a file, bypassing the page cache, to any offset from any memory. The first and last
 * sectors are read first when they are written in part.
 *
 * @throws {SystemError} for errors of pread(2) and pwrite(2).
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

/** Reads one sector to its place in the buffer, whose first byte is at `start` in the file. */
function readSector({ fd, sectorBytes }: DirectFile, at: number, start: number): void {
  const part = bufferBytes().subarray(at, at + sectorBytes);
  part.fill(0, readAt(fd, part, start + at));
}
