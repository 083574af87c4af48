import { errnoName, SystemError } from "../../../ffi/errno.ts";
import { findNamedParent, findParent, type FoundFile } from "../image/parent.ts";
import { VhdChainError, VhdFormatError } from "../image/errors.ts";
import { namedOnCeph, parentOnCeph } from "../image/parent_on_ceph.ts";
import type { Findings } from "./findings.ts";
import { HEADER_OFFSETS } from "../format/header.ts";
import { openVhd, type VhdImage } from "../image/image.ts";
import { declaredLocators, readLocatorName } from "../image/locator_reader.ts";
import {
  isReadableLocator,
  LOCATOR_SIZE,
  type ParentLocator,
  PLAT_CODE_NONE,
} from "../format/locator.ts";
import { fileNameOf } from "../../files/paths.ts";
import { equalUuids } from "../format/uuid.ts";

/**
 * Checks the locators of a differencing image and the parent that they lead to. A fault of one
 * locator is a warning when another locator, or the name in the header, leads to the parent.
 */
export function checkLocators(
  image: VhdImage,
  findings: Findings,
  { ignoreParentUuid }: { ignoreParentUuid: boolean },
): void {
  const { header, parent } = image;
  if (header === null || parent === null) return;
  const problems: { readonly index: number; readonly message: string }[] = [];
  const seen = new Set<number>();
  let found = false;
  for (const [index, locator] of declaredLocators(image).entries()) {
    const report = (message: string): unknown => problems.push({ index, message });
    const text = locatorFault(image, locator, index);
    if (text !== null) report(`invalid parent locator ${index}: ${text}`);
    if (locator.code === PLAT_CODE_NONE) continue;
    if (seen.has(locator.code)) {
      report(`duplicate platform code in locator ${index}: 0x${locator.code.toString(16)}`);
    }
    seen.add(locator.code);
    if (!isReadableLocator(locator.code)) continue;
    const target = checkTarget(image, locator, { index, ignoreParentUuid });
    if (target.problem !== null) report(target.problem);
    if (target.isParent) found = true;
  }
  const named = found || parent.raw ? null : findNamedParent(image).found;
  if (named !== null && targetFault(image, named, { ignoreParentUuid: false }) === null) {
    found = true;
    problems.push({ index: 0, message: `no parent locator leads to the parent ${named.path}` });
  }
  if (parent.name === "") {
    // The name only repeats a locator that leads to the parent.
    const offsetBytes = Number(image.footer.dataOffset) + HEADER_OFFSETS.parentName;
    const where = ["header.parentName", offsetBytes] as const;
    if (found) findings.warning("the header has no name of the parent", ...where);
    else findings.error("differencing header is invalid: invalid parent name", ...where);
  }
  for (const { index, message } of problems) {
    const where = [`header.locators[${index}]`, locatorOffset(image, index)] as const;
    if (found) findings.warning(message, ...where);
    else findings.error(message, ...where);
  }
  if (found || findings.hasErrors) return;
  findings.error(
    `could not find parent ${parent.name}`,
    "header.locators",
    locatorOffset(image, 0),
  );
}

function locatorOffset(image: VhdImage, index: number): number {
  return Number(image.footer.dataOffset) + HEADER_OFFSETS.locators + index * LOCATOR_SIZE;
}

function locatorFault(image: VhdImage, locator: ParentLocator, index: number): string | null {
  const { code, dataSpace, dataLength, reserved, dataOffset } = locator;
  if (code === PLAT_CODE_NONE) {
    const empty = dataSpace === 0 && dataLength === 0 && reserved === 0 && dataOffset === 0n;
    return empty ? null : "non-zero locator";
  }
  if (dataLength === 0) return "invalid data length";
  const fault = image.locatorFaults.find((fault) => fault.index === index)?.error.fault;
  if (fault !== undefined) {
    return `${fault.field.replace(/.*\./, "")} ${fault.value} ${fault.problem}`;
  }
  return reserved === 0 ? null : "invalid reserved bits";
}

interface Target {
  /** Whether the file is the parent that the child was made from. */
  readonly isParent: boolean;
  /** The fault of the locator or of its file; null without one. */
  readonly problem: string | null;
}

/** Checks the file that a locator names. */
function checkTarget(
  image: VhdImage,
  locator: ParentLocator,
  { index, ignoreParentUuid }: { index: number; ignoreParentUuid: boolean },
): Target {
  const refuse = (problem: string): Target => ({ isParent: false, problem });
  const path = readLocatorName(image.file, locator);
  if (path === null) return refuse(`error reading parent locator ${index}`);
  const name = image.parent?.name ?? "";
  const otherName = name === "" || fileNameOf(path) === name
    ? null
    : `parent locator ${index} name (${fileNameOf(path)}) does not match header name (${name})`;
  const isIdentified = image.parent?.raw === false && !ignoreParentUuid;
  if (otherName !== null && !isIdentified) return refuse(otherName);
  const { found: location, refusal } = findParent(image, path);
  if (refusal !== null) return refuse(refusal.problem);
  if (location === null) {
    if (otherName === null && namedOnCeph(image) !== null) return checkOnCeph(image);
    return refuse(otherName ?? `error resolving ${path}: no such file`);
  }
  const fault = targetFault(image, location, { ignoreParentUuid });
  if (fault !== null) return refuse(otherName ?? fault);
  return { isParent: true, problem: otherName };
}

/** An image on Ceph has nothing that could be compared: whether it is there shows when it is opened. */
function checkOnCeph(image: VhdImage): Target {
  try {
    parentOnCeph(image);
    return { isParent: true, problem: null };
  } catch (error) {
    if (!(error instanceof VhdChainError)) throw error;
    return { isParent: false, problem: error.problem };
  }
}

/** The fault of a file as the parent of an image; null without one. */
function targetFault(
  { parent, storage }: VhdImage,
  { path: location, device, inode }: FoundFile,
  { ignoreParentUuid }: { ignoreParentUuid: boolean },
): string | null {
  if (parent?.raw !== false || ignoreParentUuid) return null;
  try {
    const target = openVhd(location, {
      storage,
      ignoreDisabled: true,
      lenient: true,
      same: { device, inode },
    });
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
