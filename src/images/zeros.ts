import { equalMemory, memoryAddress, SECTOR_BYTES } from "../../ffi/memory.ts";

/** Bytes that are looked at one by one before the rest is compared. */
const PROBE_BYTES = 64;

/** Whether sectors of I/O memory hold only zeros. */
function isZero(bytes: Uint8Array, memorySector: number): boolean {
  for (let i = 0; i < PROBE_BYTES; i++) if (bytes[i] !== 0) return false;
  const address = memoryAddress(memorySector);
  // Memory whose start is zero, and which equals itself at an offset, is zero.
  return equalMemory(address, address + PROBE_BYTES, bytes.length - PROBE_BYTES);
}

/**
 * Calls back with runs of memory: those that hold data, in whole units, without units of zeros.
 *
 * @param unitSectors What is either data or zeros.
 * @param memorySector Where `bytes` are.
 */
export function eachData(
  bytes: Uint8Array<ArrayBuffer>,
  { unitSectors, memorySector }: { unitSectors: number; memorySector: number },
  call: (from: number, count: number) => void,
): void {
  const sectors = bytes.length / SECTOR_BYTES;
  let start = -1;
  for (let at = 0; at < sectors; at += unitSectors) {
    const end = Math.min(sectors, at + unitSectors);
    const unit = bytes.subarray(at * SECTOR_BYTES, end * SECTOR_BYTES);
    const zero = isZero(unit, memorySector + at);
    if (!zero && start < 0) start = at;
    if (zero && start >= 0) {
      call(start, at - start);
      start = -1;
    }
  }
  if (start >= 0) call(start, sectors - start);
}
