/**
 * `src/vhd/check`: reports on valid and damaged images: faults, statistics, scans of many images.
 *
 * This folder must not write to any file, and it must not stop at the first fault: a fault of an
 * image is a result here, not an error.
 *
 * This file checks an image and lists its ancestors.
 *
 * @module
 */

import { Errno, SystemError } from "../../../ffi/errno.ts";
import { checkBat, checkBatmap, checkBitmaps, checkSlack } from "./check_blocks.ts";
import { checkFooters } from "./check_footer.ts";
import { checkHeader, checkParentFields } from "./check_header.ts";
import { checkLocators } from "./check_parents.ts";
import { walkImages } from "../image/chain.ts";
import { VhdChainError, VhdFormatError } from "../image/errors.ts";
import { type Finding, Findings } from "./findings.ts";
import { HD_TYPE_FIXED } from "../format/footer.ts";
import { HEADER_OFFSETS } from "../format/header.ts";
import { openVhd, type VhdImage } from "../image/image.ts";
import type { Confinement } from "../../files/confinement.ts";
import type { ProgressListener } from "../../files/progress.ts";
import { type OnStorage, osStorage, type StorageFile } from "../../files/storage.ts";

/** Options of a check. */
export interface CheckOptions {
  /** Accept an image without a footer at its end, and use the backup. */
  readonly ignoreFooter?: boolean;
  /** Do not compare the parent UUID in the header with the parent's UUID. */
  readonly ignoreParentUuid?: boolean;
  /** Accept time stamps in the future. */
  readonly ignoreTimestamps?: boolean;
  /** Read the bitmaps, and check that sectors without a bit are zero. */
  readonly checkData?: boolean;
  /** Check for overlapping blocks; true by default. */
  readonly checkOverlaps?: boolean;
  /** Called while data is checked, with numbers of blocks. */
  readonly onProgress?: ProgressListener;
}

/** Options of the check of an image in a chain. */
export interface ChainCheckOptions extends CheckOptions, OnStorage {
  /**
   * The folders in which parents may be. When the images of a chain are checked one by one, this is
   * the confinement of the top.
   */
  readonly confinement?: Confinement;
}

/** The result of a check. */
export interface CheckResult {
  /** The image. */
  readonly path: string;
  /** Whether no finding is an error. */
  readonly valid: boolean;
  /** The findings, in the order of detection. */
  readonly findings: readonly Finding[];
}

/**
 * Checks one image. Nothing is changed. A damaged image gives findings, not an error.
 *
 * @throws {SystemError} when the file cannot be read.
 */
export function checkImage(path: string, options: ChainCheckOptions = {}): CheckResult {
  const { storage = osStorage } = options;
  const { kind } = storage.status(path);
  if (kind !== "file" && kind !== "block") {
    throw new SystemError(Errno.EINVAL, `${path} is not a regular file or block device`);
  }
  const findings = new Findings();
  const file = storage.open(path, "read");
  try {
    if (checkFrame(file, findings, options)) checkInside(path, findings, options);
  } finally {
    file.close();
  }
  return { path, valid: !findings.hasErrors, findings: findings.list() };
}

/** Checks footers and header. Returns whether the image can be opened. */
function checkFrame(file: StorageFile, findings: Findings, options: CheckOptions): boolean {
  const { ignoreFooter = false, ignoreTimestamps = false } = options;
  const footer = checkFooters(file, findings, { ignoreFooter, ignoreTimestamps });
  if (footer === null) return false;
  return footer.diskType === HD_TYPE_FIXED || checkHeader(file, footer, findings);
}

function checkInside(path: string, findings: Findings, options: ChainCheckOptions): void {
  let image: VhdImage;
  try {
    const { storage, confinement } = options;
    image = openVhd(path, { storage, confinement, ignoreDisabled: true, lenient: true });
  } catch (error) {
    if (!(error instanceof VhdFormatError)) throw error;
    const { field, offsetBytes, value, problem } = error.fault;
    findings.error(`${field} is invalid: ${value} ${problem}`, field, offsetBytes);
    return;
  }
  try {
    if (image.type !== "fixed") checkTables(image, findings, options);
  } finally {
    image.close();
  }
}

function checkTables(image: VhdImage, findings: Findings, options: CheckOptions): void {
  const { ignoreTimestamps = false, checkOverlaps = true, ignoreParentUuid = false } = options;
  checkParentFields(image, findings, { ignoreTimestamps });
  checkBat(image, findings, { checkOverlaps });
  if (options.checkData && !findings.hasErrors) checkBitmaps(image, findings, options);
  checkBatmap(image, findings);
  checkSlack(image, findings);
  checkLocators(image, findings, { ignoreParentUuid });
}

/**
 * The paths of an image's VHD ancestors, the parent first.
 *
 * @throws {VhdChainError} for a missing parent or a loop.
 * @throws {VhdFormatError} | {SystemError} when an image of the chain cannot be read.
 */
export function ancestorPaths(path: string, { storage = osStorage }: OnStorage = {}): string[] {
  const paths: string[] = [];
  const options = { storage, ignoreDisabled: true, lenient: true };
  const top = openVhd(path, options);
  try {
    const walk = walkImages(top, { ...options, ignoreParentUuid: true, blamesLayer: true });
    for (const { image, parent } of walk) {
      if (image !== top) paths.push(image.path);
      if (parent === null) break;
    }
    return paths;
  } finally {
    top.close();
  }
}

/** Converts an error of a chain to a finding about the image whose parent cannot be used. */
export function chainFinding(
  { path, problem }: VhdChainError,
  { storage = osStorage }: OnStorage = {},
): Finding {
  const image = openVhd(path, { storage, ignoreDisabled: true, lenient: true });
  image.close();
  return {
    severity: "error",
    message: `parent of ${path} is invalid: ${problem}`,
    field: "header.locators",
    offsetBytes: Number(image.footer.dataOffset) + HEADER_OFFSETS.locators,
  };
}
