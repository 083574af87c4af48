import { errnoName, SystemError } from "../../../ffi/errno.ts";
import { findParent, readLocator } from "../image/chain.ts";
import { VhdFormatError } from "../image/errors.ts";
import type { Findings } from "./findings.ts";
import { HEADER_OFFSETS } from "../format/header.ts";
import { openVhd, type VhdImage } from "../image/image.ts";
import {
  decodeParentName,
  isReadableLocator,
  LOCATOR_SIZE,
  type ParentLocator,
  PLAT_CODE_NONE,
} from "../format/locator.ts";
import { fileNameOf } from "../../files/paths.ts";
import { equalUuids } from "../format/uuid.ts";

/** Checks the locators of a differencing image and the parent that they lead to. */
export function checkLocators(
  image: VhdImage,
  findings: Findings,
  { ignoreParentUuid }: { ignoreParentUuid: boolean },
): void {
  const { header, parent } = image;
  if (header === null || parent === null) return;
  const seen = new Set<number>();
  let found = 0;
  for (const [index, locator] of header.locators.entries()) {
    const report = (message: string): void =>
      findings.error(message, `header.locators[${index}]`, locatorOffset(image, index));
    const text = locatorFault(locator);
    if (text !== null) {
      report(`invalid parent locator ${index}: ${text}`);
    } else if (locator.code !== PLAT_CODE_NONE) {
      if (seen.has(locator.code)) {
        report(`duplicate platform code in locator ${index}: 0x${locator.code.toString(16)}`);
      }
      seen.add(locator.code);
      if (!isReadableLocator(locator.code)) continue;
      const problem = targetFault(image, locator, { index, ignoreParentUuid });
      if (problem === null) found++;
      else report(problem);
    }
  }
  if (found > 0 || findings.hasErrors) return;
  const name = decodeParentName(header.parentName);
  findings.error(`could not find parent ${name}`, "header.locators", locatorOffset(image, 0));
}

function locatorOffset(image: VhdImage, index: number): number {
  return Number(image.footer.dataOffset) + HEADER_OFFSETS.locators + index * LOCATOR_SIZE;
}

function locatorFault(locator: ParentLocator): string | null {
  const { code, dataSpace, dataLength, reserved, dataOffset } = locator;
  if (code === PLAT_CODE_NONE) {
    const empty = dataSpace === 0 && dataLength === 0 && reserved === 0 && dataOffset === 0n;
    return empty ? null : "non-zero locator";
  }
  if (dataLength === 0) return "invalid data length";
  return reserved === 0 ? null : "invalid reserved bits";
}

/** What is wrong with the file that a locator leads to. */
function targetFault(
  image: VhdImage,
  locator: ParentLocator,
  { index, ignoreParentUuid }: { index: number; ignoreParentUuid: boolean },
): string | null {
  const { header, parent, storage } = image;
  const path = readLocator(image, locator);
  if (path === null) return `error reading parent locator ${index}`;
  const name = decodeParentName(header?.parentName ?? new Uint8Array(0));
  if (fileNameOf(path) !== name) {
    return `parent locator ${index} name (${
      fileNameOf(path)
    }) does not match header name (${name})`;
  }
  const location = findParent(storage, image.path, path);
  if (location === null) return `error resolving ${path}: no such file`;
  if (parent?.raw !== false || ignoreParentUuid) return null;
  try {
    const target = openVhd(location, { storage, ignoreDisabled: true, lenient: true });
    target.close();
    if (equalUuids(target.footer.uuid, parent.uuid)) return null;
    return `invalid parent ${location}: invalid parent uuid`;
  } catch (error) {
    if (error instanceof VhdFormatError) {
      return `invalid parent ${location}: error opening parent (${error.message})`;
    }
    if (!(error instanceof SystemError)) throw error;
    return `invalid parent ${location}: error opening parent (${errnoName(error.errno)})`;
  }
}
