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

/** A locator that is not used as it stands in the file. */
export interface LocatorFault {
  /** Which of the header's locators. */
  readonly index: number;
  /** The locator as the file has it. */
  readonly locator: ParentLocator;
  readonly error: VhdFormatError;
}

/**
 * Makes a header's locators safe to work with. Locators only repeat where the parent is, so a wrong
 * one is no reason to refuse an image. One whose name cannot be read is left out. One whose room
 * makes no sense keeps its name, and has as much room as the name takes.
 *
 * @returns What was wrong; the header's own list holds the locators to use.
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
 * Leaves out the locators whose room reaches into a block: what they point to is the guest's data,
 * or was overwritten by it.
 *
 * @returns What was wrong, as `settleLocators` does.
 */
export function dropBuriedLocators(
  file: StorageFile,
  header: DynamicHeader,
  { headerOffsetBytes, isInBlock }: {
    headerOffsetBytes: number;
    /** Whether a block lies between two bytes of the file. */
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
  /** Whether the name can be read all the same. */
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

/** The name that a locator points to, as it is stored; null when it cannot be read. */
export function readLocatorName(file: StorageFile, locator: ParentLocator): string | null {
  const { code, dataLength, dataOffset } = locator;
  if (dataLength > MAX_LOCATOR_NAME_BYTES || dataOffset > BigInt(Number.MAX_SAFE_INTEGER)) {
    return null;
  }
  const bytes = new Uint8Array(dataLength);
  if (file.readAt(bytes, Number(dataOffset)) < bytes.length) return null;
  return decodeLocation(code, bytes);
}

/** A header's locators as the file has them, those that are not used included. */
export function declaredLocators(
  { header, locatorFaults }: {
    readonly header: DynamicHeader | null;
    readonly locatorFaults: readonly LocatorFault[];
  },
): ParentLocator[] {
  const locators = [...header?.locators ?? []];
  // The first fault of a locator has it as the file does.
  for (const { index, locator } of locatorFaults.toReversed()) locators[index] = locator;
  return locators;
}
