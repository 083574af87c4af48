/**
 * The functions of `mod.ts`, as programs use them: on the operating system's files. The functions that
 * do the work also run on simulated disks, for tests; here they do not.
 *
 * @module
 */
import { checkImage as check, type CheckOptions, type CheckResult } from "../vhd/check/check.ts";
import {
  createDynamic as makeDynamic,
  type CreateDynamicOptions,
  createFixed as makeFixed,
  type CreateFixedOptions,
} from "../vhd/create.ts";
import { describeVhd, type VhdDescription } from "../vhd/describe.ts";
import { snapshot as makeSnapshot, type SnapshotOptions } from "../vhd/snapshot.ts";
import { coalesce as coalesceChain, type CoalesceOptions } from "./coalesce.ts";
import { copyImage as copyChain, type CopyOptions } from "./copy.ts";

/**
 * Creates an image that holds the whole disk, all zeros. It is on stable storage at the end.
 *
 * @param path Where the image goes. A file that is there is replaced.
 * @throws {SystemError} EINVAL for a size that is out of range; EBUSY for a file that somebody has
 * open for writing; what the file system says. A file that was not finished is removed.
 */
export function createFixed(path: string, options: CreateFixedOptions): void {
  const { sizeBytes, sparse } = options;
  makeFixed(path, { sizeBytes, sparse });
}

/**
 * Creates an image that grows as it is written. It is on stable storage at the end.
 *
 * @param path Where the image goes. A file that is there is replaced.
 * @throws {SystemError} EINVAL for sizes that are out of range or a reserve below the size; EBUSY for
 * a file that somebody has open for writing; what the file system says. A file that was not finished
 * is removed.
 */
export function createDynamic(path: string, options: CreateDynamicOptions): void {
  const { sizeBytes, reserveBytes } = options;
  makeDynamic(path, { sizeBytes, reserveBytes });
}

/**
 * Creates a differencing image on top of another. The parent is not changed.
 *
 * @param path Where the image goes. A file that is there is replaced.
 * @throws {SnapshotDepthError} for a chain that would be deeper than the limit.
 * @throws {VhdFormatError} for a parent that is no VHD.
 * @throws {VhdChainError} for a chain that does not hold together, or has 256 layers.
 * @throws {SystemError} for files that cannot be read or written.
 */
export function snapshot(path: string, options: SnapshotOptions): void {
  const { parent, rawParent, keepEmptyParent, reserveBytes, depthLimit } = options;
  makeSnapshot(path, { parent, rawParent, keepEmptyParent, reserveBytes, depthLimit });
}

/**
 * Reads what there is to know of an image and of the images below it. The files are closed again: the
 * description is a plain record that never changes. Images that others are writing to can be read.
 *
 * @throws {VhdFormatError} for what is no VHD or contradicts itself.
 * @throws {SystemError} for a file that cannot be read.
 */
export function openVhd(path: string): VhdDescription {
  return describeVhd(path);
}

/**
 * Checks one image. Nothing is changed, and a damaged image is a result, not an error.
 *
 * @throws {SystemError} for a file that cannot be read.
 */
export function checkImage(path: string, options: CheckOptions = {}): CheckResult {
  const { ignoreFooter, ignoreParentUuid, ignoreTimestamps, checkData, checkOverlaps } = options;
  return check(path, {
    ignoreFooter,
    ignoreParentUuid,
    ignoreTimestamps,
    checkData,
    checkOverlaps,
    onProgress: options.onProgress,
  });
}

/**
 * Writes what an image holds into its parent, an ancestor or a new image. The image itself and the
 * layers between stay as they are: they hide what is written below them, so the chain reads the
 * same at every moment, and the work may be killed and done again.
 *
 * @returns How many sectors of 512 bytes the merged layers held.
 * @throws {VhdFormatError} for an image that is damaged.
 * @throws {VhdChainError} for a chain that does not hold together down to the target.
 * @throws {SystemError} EINVAL for an image without a parent, ERANGE for a target that is too small,
 * ECANCELED for work that was called off; what the file system says.
 */
export async function coalesce(path: string, options: CoalesceOptions = {}): Promise<number> {
  const { ancestor, output, oldest, sparse, onProgress, signal } = options;
  return await coalesceChain(path, { ancestor, output, oldest, sparse, onProgress, signal });
}

/**
 * Copies an image and all that it builds on into one new image without a parent: a dynamic one, or
 * a fixed one of a fixed one. Blocks of zeros are left out. Without keys, a copy of an encrypted
 * image is encrypted with the same key.
 *
 * @returns How many sectors of 512 bytes were moved.
 * @throws {VhdFormatError} for an image that is damaged.
 * @throws {VhdChainError} for a chain that does not hold together.
 * @throws {SystemError} EEXIST when there is such a file, ECANCELED for a copy that was called off;
 * what the file system says.
 */
export async function copyImage(
  path: string,
  output: string,
  options: CopyOptions = {},
): Promise<number> {
  const { key, sourceKey, onProgress, signal } = options;
  return await copyChain(path, output, { key, sourceKey, onProgress, signal });
}
