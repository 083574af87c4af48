import { Errno, SystemError } from "../../ffi/errno.ts";
import { Arena } from "../../ffi/memory.ts";

/**
 * The most sectors of a disk for which a bit each is kept: 64 TiB, whose bits take 16 GiB of address
 * space. The runtime ends the process when it is given 32 GiB at once.
 */
const MOST_SECTORS = 2 ** 37;

/**
 * Memory for a bit for each sector of a disk. Pages of it without a bit take no room. A server may
 * claim any size.
 *
 * @param what What the bits are, for the error, such as `a map of redirected sectors`.
 * @throws {SystemError} EFBIG, ENOMEM for a disk that is too large.
 */
export function sectorBits(sectors: number, what: string): Arena {
  if (sectors <= MOST_SECTORS) return new Arena(Math.ceil(sectors / 8));
  const most = `it has ${sectors} sectors, and ${MOST_SECTORS} are the most`;
  throw new SystemError(Errno.EFBIG, `Cannot keep ${what} (${most})`);
}
