import { VhdFormatError } from "./errors.ts";
import { type Footer, FOOTER_OFFSETS, HD_FOOTER_SIZE } from "../format/footer.ts";
import {
  DD_COOKIE,
  DD_HEADER_SIZE,
  DD_VERSION,
  decodeHeader,
  type DynamicHeader,
  HEADER_OFFSETS,
  headerChecksum,
} from "../format/header.ts";
import { blocksOf } from "../format/layout.ts";
import { type LocatorFault, settleLocators } from "./locator_reader.ts";
import type { StorageFile } from "../../files/storage.ts";
import { VHD_SECTOR_SIZE } from "../format/units.ts";

/** The smallest block size: a sector. */
const MIN_BLOCK_SIZE = VHD_SECTOR_SIZE;
/** The largest block size that is accepted. It bounds the buffers for a block and its bitmap. */
const MAX_BLOCK_SIZE = 64 * 1024 * 1024;
/**
 * The largest number of BAT entries that is accepted: 64 MiB of table, 16 times the need of the
 * largest disk.
 */
export const MAX_BAT_ENTRIES = 16 * 1024 * 1024;

/** A header, and the faults of its locators. */
export interface FoundHeader {
  /** It holds only usable locators; see `settleLocators`. */
  readonly header: DynamicHeader;
  readonly locatorFaults: readonly LocatorFault[];
}

/**
 * Reads the header that the footer points to and checks every field against the file.
 *
 * @throws {VhdFormatError} for the first wrong field.
 */
export function readHeader(file: StorageFile, footer: Footer): FoundHeader {
  const sizeBytes = file.sizeBytes();
  const { dataOffset } = footer;
  const fits = dataOffset + BigInt(DD_HEADER_SIZE) <= BigInt(sizeBytes);
  if (dataOffset < BigInt(HD_FOOTER_SIZE) || dataOffset % BigInt(VHD_SECTOR_SIZE) !== 0n || !fits) {
    throw new VhdFormatError(file.path, {
      field: "footer.dataOffset",
      offsetBytes: FOOTER_OFFSETS.dataOffset,
      value: String(dataOffset),
      problem: `does not point to a header within the ${sizeBytes} bytes of the file`,
    });
  }
  const bytes = new Uint8Array(DD_HEADER_SIZE);
  file.readAt(bytes, Number(dataOffset));
  const header = decodeHeader(bytes);
  const fault = headerFault(header, bytes) ?? tableFault(header, footer, sizeBytes);
  if (fault !== null) {
    throw new VhdFormatError(file.path, {
      field: `header.${fault.field}`,
      offsetBytes: Number(dataOffset) + HEADER_OFFSETS[fault.field],
      value: String(header[fault.field]),
      problem: fault.problem,
    });
  }
  const locatorFaults = settleLocators(file, header, { headerOffsetBytes: Number(dataOffset) });
  return { header, locatorFaults };
}

interface HeaderFault {
  readonly field: Exclude<keyof typeof HEADER_OFFSETS, "locators">;
  readonly problem: string;
}

/** The fault of a header by itself; null for a valid header. */
export function headerFault(header: DynamicHeader, bytes: Uint8Array): HeaderFault | null {
  if (header.cookie !== DD_COOKIE) return { field: "cookie", problem: `is not "${DD_COOKIE}"` };
  const checksum = headerChecksum(bytes);
  if (header.checksum !== checksum) {
    return {
      field: "checksum",
      problem: `should be ${checksum}; vhd-util repair completes a change that was broken off`,
    };
  }
  if (header.headerVersion !== DD_VERSION) {
    return { field: "headerVersion", problem: `is not version 1.0 (${DD_VERSION})` };
  }
  const { blockSize } = header;
  if (blockSize < MIN_BLOCK_SIZE || blockSize > MAX_BLOCK_SIZE || (blockSize & (blockSize - 1))) {
    return { field: "blockSize", problem: "is not a power of two from 512 bytes to 64 MiB" };
  }
  return null;
}

/** The fault of the block table's place in a header; null for a valid place. */
export function tableFault(
  header: DynamicHeader,
  footer: Footer,
  sizeBytes: number,
): HeaderFault | null {
  const { tableOffset, maxBatEntries } = header;
  const behind = tableOffset >= footer.dataOffset + BigInt(DD_HEADER_SIZE);
  const before = tableOffset + BigInt(maxBatEntries) * 4n <= footer.dataOffset;
  if (
    tableOffset < BigInt(HD_FOOTER_SIZE) || tableOffset % BigInt(VHD_SECTOR_SIZE) !== 0n ||
    tableOffset >= BigInt(sizeBytes) || !(behind || before)
  ) {
    return { field: "tableOffset", problem: "is no place for the BAT" };
  }
  if (
    maxBatEntries > MAX_BAT_ENTRIES || tableOffset + BigInt(maxBatEntries) * 4n > BigInt(sizeBytes)
  ) {
    return { field: "maxBatEntries", problem: "makes a BAT that reaches past the end of the file" };
  }
  const needed = blocksOf(Number(footer.currentSize), header.blockSize);
  if (maxBatEntries < needed) {
    return {
      field: "maxBatEntries",
      problem: `is less than the ${needed} blocks of a disk of ${footer.currentSize} bytes`,
    };
  }
  return null;
}
