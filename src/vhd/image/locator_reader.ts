import { VhdFormatError } from "./errors.ts";
import { HD_FOOTER_SIZE } from "../format/footer.ts";
import { type DynamicHeader, HEADER_OFFSETS } from "../format/header.ts";
import {
  decodeLocation,
  LOCATOR_SIZE,
  locatorSpaceBytes,
  MAX_LOCATOR_NAME_BYTES,
  MAX_LOCATOR_SPACE_BYTES,
  NO_LOCATOR,
  type ParentLocator,
  PLAT_CODE_NONE,
} from "../format/locator.ts";
import type { StorageFile } from "../../files/storage.ts";
import { paddedBytes } from "../format/units.ts";

/** A locator that is not used as it is in the file. */
export interface LocatorFault {
  /** The index of the locator in the header. */
  readonly index: number;
  /** The locator as it is in the file. */
  readonly locator: ParentLocator;
  readonly error: VhdFormatError;
}

/**
 * Makes a header's locators safe to use. A locator only repeats the place of the parent, so a wrong
 * one is no reason to refuse an image. A locator whose name cannot be read is left out. A locator
 * with an invalid space keeps its name, and its space becomes the length of the name in whole
 * sectors.
 *
 * @returns The faults. The header's own list then holds the locators to use.
 */
export function settleLocators(
  file: StorageFile,
  header: DynamicHeader,
  { headerOffsetBytes }: { headerOffsetBytes: number },
): LocatorFault[] {
  const sizeBytes = file.sizeBytes();
  return replaceWrong(file, header, {
    headerOffsetBytes,
    faultOf: (locator) => locatorFault(locator, sizeBytes),
  });
}

/**
 * Leaves out the locators whose space overlaps a block: the name there is the guest's data, or was
 * overwritten by it.
 *
 * @returns The faults, as from `settleLocators`.
 */
export function dropBuriedLocators(
  file: StorageFile,
  header: DynamicHeader,
  { headerOffsetBytes, isInBlock }: {
    headerOffsetBytes: number;
    /** Whether a block overlaps a byte range of the file. */
    isInBlock: (fromBytes: number, toBytes: number) => boolean;
  },
): LocatorFault[] {
  const problem = "makes a room that reaches into a block";
  return replaceWrong(file, header, {
    headerOffsetBytes,
    faultOf: (locator) => {
      const from = Number(locator.dataOffset);
      if (!isInBlock(from, from + locatorSpaceBytes(locator))) return null;
      const hasName = !isInBlock(from, from + paddedBytes(locator.dataLength));
      return { field: hasName ? "dataSpace" : "dataOffset", problem, hasName };
    },
  });
}

function replaceWrong(
  file: StorageFile,
  header: DynamicHeader,
  { headerOffsetBytes, faultOf }: {
    headerOffsetBytes: number;
    faultOf: (locator: ParentLocator) => Fault | null;
  },
): LocatorFault[] {
  const faults: LocatorFault[] = [];
  header.locators = header.locators.map((locator, index) => {
    const fault = locator.code === PLAT_CODE_NONE ? null : faultOf(locator);
    if (fault === null) return locator;
    const { field, problem } = fault;
    const error = new VhdFormatError(file.path, {
      field: `header.locators[${index}].${field}`,
      offsetBytes: headerOffsetBytes + HEADER_OFFSETS.locators + index * LOCATOR_SIZE +
        FIELD_OFFSETS[field],
      value: String(locator[field]),
      problem,
    });
    faults.push({ index, locator, error });
    if (!fault.hasName) return NO_LOCATOR;
    return { ...locator, dataSpace: paddedBytes(locator.dataLength) };
  });
  return faults;
}

const FIELD_OFFSETS = { dataSpace: 4, dataLength: 8, dataOffset: 16 } as const;

interface Fault {
  readonly field: keyof typeof FIELD_OFFSETS;
  readonly problem: string;
  /** Whether the name can be read in spite of the fault. */
  readonly hasName: boolean;
}

function locatorFault(locator: ParentLocator, sizeBytes: number): Fault | null {
  const { dataLength, dataOffset } = locator;
  if (dataLength === 0) return { field: "dataLength", problem: "is no name", hasName: false };
  if (dataLength > MAX_LOCATOR_NAME_BYTES) {
    return { field: "dataLength", problem: "is longer than any path", hasName: false };
  }
  if (dataOffset < BigInt(HD_FOOTER_SIZE) || dataOffset + BigInt(dataLength) > BigInt(sizeBytes)) {
    return { field: "dataOffset", problem: "makes a name that is not in the file", hasName: false };
  }
  const space = locatorSpaceBytes(locator);
  if (space === 0) {
    return { field: "dataSpace", problem: "is no number of sectors", hasName: true };
  }
  if (dataLength > space) {
    return {
      field: "dataLength",
      problem: `is more than the ${space} bytes of its room`,
      hasName: true,
    };
  }
  if (space > MAX_LOCATOR_SPACE_BYTES || dataOffset + BigInt(space) > BigInt(sizeBytes)) {
    return { field: "dataSpace", problem: "is more room than any name takes", hasName: true };
  }
  return null;
}

/** The stored name of a locator; null when it cannot be read. */
export function readLocatorName(file: StorageFile, locator: ParentLocator): string | null {
  const { code, dataLength, dataOffset } = locator;
  if (dataLength > MAX_LOCATOR_NAME_BYTES || dataOffset > BigInt(Number.MAX_SAFE_INTEGER)) {
    return null;
  }
  const bytes = new Uint8Array(dataLength);
  if (file.readAt(bytes, Number(dataOffset)) < bytes.length) return null;
  return decodeLocation(code, bytes);
}

/** The locators as they are in the file, including the unused ones. */
export function declaredLocators(
  { header, locatorFaults }: {
    readonly header: DynamicHeader | null;
    readonly locatorFaults: readonly LocatorFault[];
  },
): ParentLocator[] {
  const locators = [...header?.locators ?? []];
  // The first fault of a locator holds it as it is in the file.
  for (const { index, locator } of locatorFaults.toReversed()) locators[index] = locator;
  return locators;
}
