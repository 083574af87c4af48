import { SystemError } from "../../ffi/errno.ts";
import { seekData, seekHole } from "../../ffi/files.ts";
import { SECTOR_BYTES } from "../../ffi/memory.ts";

/**
 * The length of the run at an offset of a regular file, at most `lengthBytes`: positive for data,
 * negative for a hole. Where the file system does not tell, all is data.
 */
export function allocatedRun(file: number, offsetBytes: number, lengthBytes: number): number {
  try {
    return runBetween(
      { data: seekData(file, offsetBytes), hole: () => seekHole(file, offsetBytes) },
      offsetBytes,
      lengthBytes,
    );
  } catch (error) {
    // EIO, ESTALE, or EINVAL from a filesystem without SEEK_DATA.
    if (!(error instanceof SystemError)) throw error;
    return lengthBytes;
  }
}

/**
 * The run at an offset, from what lseek(2) says: where the next data starts (-1: nowhere), and
 * where the next hole does (-1: past the end). The file may change between the two calls, and odd
 * filesystems answer with offsets that lie before the one they were asked about.
 */
export function runBetween(
  { data, hole }: { data: number; hole: () => number },
  offsetBytes: number,
  lengthBytes: number,
): number {
  if (data < 0 || data >= offsetBytes + lengthBytes) return -lengthBytes;
  // A hole ends, and data starts, on a sector, wherever the filesystem says it does.
  const firstSector = Math.floor(data / SECTOR_BYTES) * SECTOR_BYTES;
  if (firstSector > offsetBytes) return offsetBytes - firstSector;
  const start = hole();
  const end = start < 0 ? Infinity : Math.ceil(start / SECTOR_BYTES) * SECTOR_BYTES;
  return end > offsetBytes ? Math.min(lengthBytes, end - offsetBytes) : lengthBytes;
}
