/**
 * `src/vhd/check`: what is true of images, good and damaged ones: faults, statistics, scans of many.
 *
 * It must not write to any file, and it must not stop at the first fault: what is wrong with an image
 * is a result here, not an error.
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

/** What is checked. */
export interface CheckOptions {
  /** Accept an image whose footer at the end is missing, going by the backup. */
  readonly ignoreFooter?: boolean;
  /** Do not compare UUIDs with the parent's. */
  readonly ignoreParentUuid?: boolean;
  /** Accept time stamps in the future. */
  readonly ignoreTimestamps?: boolean;
  /** Read bitmaps and the data that they say is not there. */
  readonly checkData?: boolean;
  /** Look for blocks that overlap: true by default. */
  readonly checkOverlaps?: boolean;
  /** Called while data is being checked, with numbers of blocks. */
  readonly onProgress?: ProgressListener;
}

/** How an image of a chain is checked. */
export interface ChainCheckOptions extends CheckOptions, OnStorage {
  /** Where parents may be: that of the top of the chain, when its images are checked one by one. */
  readonly confinement?: Confinement;
}

/** What a check found. */
export interface CheckResult {
  /** The image. */
  readonly path: string;
  /** Whether there is no error among the findings. */
  readonly valid: boolean;
  /** What was found, in the order in which it was found. */
  readonly findings: readonly Finding[];
}

/**
 * Checks one image. Nothing is changed, and a damaged image is no error of this function.
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

/** Checks footers and header. Returns whether the image is worth opening. */
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
 * The paths of an image's ancestors that are VHDs, the parent first.
 *
 * @throws {VhdChainError} for a missing parent or a loop.
 * @throws {VhdFormatError} | {SystemError} when an image on the way cannot be read.
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

/** A fault of a chain, as what is wrong with the image whose parent is the trouble. */
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
