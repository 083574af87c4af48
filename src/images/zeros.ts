import { equalMemory, memoryAddress, SECTOR_BYTES } from "../../ffi/memory.ts";

/** What a copy takes for either zeros or data: 4 KiB. */
export const UNIT_SECTORS = 8;

const WORD_BYTES = 8;
const HALVES_PER_SECTOR = 2 * SECTOR_BYTES / WORD_BYTES;

/** Whether memory at an address, whose first word is zero, holds only zeros. */
function isZero(address: number, lengthBytes: number): boolean {
  // Memory whose start is zero, and which equals itself at an offset, is zero.
  return equalMemory(address, address + WORD_BYTES, lengthBytes - WORD_BYTES);
}

/**
 * Calls back with runs of memory: those that hold data, in whole units, without units of zeros. A look
 * at the ends of each unit finds most of the data. What then may be zeros is compared in as long a
 * piece as possible, and by units only if there is data in it.
 *
 * @param unitSectors What is either data or zeros.
 * @param memorySector Where `bytes` are.
 */
export function eachData(
  bytes: Uint8Array<ArrayBuffer>,
  { unitSectors, memorySector }: { unitSectors: number; memorySector: number },
  call: (from: number, count: number) => void,
): void {
  const halves = new Int32Array(bytes.buffer, bytes.byteOffset, 2 * bytes.length / WORD_BYTES);
  const sectors = bytes.length / SECTOR_BYTES;
  const address = memoryAddress(memorySector);
  const isZeroWord = (at: number): boolean => halves[at] === 0 && halves[at + 1] === 0;
  const mayBeZero = (at: number): boolean =>
    isZeroWord(at * HALVES_PER_SECTOR) &&
    isZeroWord(Math.min(sectors, at + unitSectors) * HALVES_PER_SECTOR - 2);
  const isZeroFrom = (at: number, end: number): boolean =>
    isZero(address + at * SECTOR_BYTES, (end - at) * SECTOR_BYTES);
  /** Start of the data that `call` was not told of; -1: none. */
  let start = -1;
  const zeros = (from: number): void => {
    if (start >= 0) call(start, from - start);
    start = -1;
  };
  for (let at = 0; at < sectors;) {
    let end = at;
    while (end < sectors && mayBeZero(end)) end = Math.min(sectors, end + unitSectors);
    if (end === at) {
      if (start < 0) start = at;
      at += unitSectors;
    } else if (isZeroFrom(at, end)) {
      zeros(at);
      at = end;
    } else {
      for (; at < end; at += unitSectors) {
        if (isZeroFrom(at, Math.min(sectors, at + unitSectors))) zeros(at);
        else if (start < 0) start = at;
      }
    }
  }
  zeros(sectors);
}
