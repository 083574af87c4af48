/**
 * The functions of `mod.ts` that users call. They work on the operating system's files. The
 * functions that they call also take simulated disks, for tests.
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
 * Creates a fixed image. All sectors are zero, and the image is durable on return.
 *
 * @param path The new image. An existing file is replaced.
 * @throws {SystemError} EINVAL for a size that is out of range; EBUSY for a file that another
 * process has open for writing; errors of the file system. An incomplete file is removed.
 */
export function createFixed(path: string, options: CreateFixedOptions): void {
  const { sizeBytes, sparse } = options;
  makeFixed(path, { sizeBytes, sparse });
}

/**
 * Creates a dynamic image, which grows as it is written. The image is durable on return.
 *
 * @param path The new image. An existing file is replaced.
 * @throws {SystemError} EINVAL for a size that is out of range or a reserve below the size; EBUSY
 * for a file that another process has open for writing; errors of the file system. An incomplete
 * file is removed.
 */
export function createDynamic(path: string, options: CreateDynamicOptions): void {
  const { sizeBytes, reserveBytes } = options;
  makeDynamic(path, { sizeBytes, reserveBytes });
}

/**
 * Creates a differencing image on top of another. The parent is not changed.
 *
 * @param path The new image. An existing file is replaced.
 * @throws {SnapshotDepthError} for a chain that would be deeper than the limit.
 * @throws {VhdFormatError} for a parent that is no VHD.
 * @throws {VhdChainError} for a chain that cannot be followed, or has 256 layers.
 * @throws {SystemError} for files that cannot be read or written.
 */
export function snapshot(path: string, options: SnapshotOptions): void {
  const { parent, rawParent, keepEmptyParent, reserveBytes, depthLimit } = options;
  makeSnapshot(path, { parent, rawParent, keepEmptyParent, reserveBytes, depthLimit });
}

/**
 * Describes an image and the images below it. All files are closed again. The description is a
 * plain record that never changes. Images that other processes are writing can be described too.
 *
 * @throws {VhdFormatError} for a file that is no VHD or contradicts itself.
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
 * Writes an image's data into its parent, an ancestor or a new image. The image itself and the
 * layers between do not change. They hide the data that is written below them, so the chain reads
 * the same at every moment, and the operation may be killed and repeated.
 *
 * @returns The number of sectors of 512 bytes that the merged layers held.
 * @throws {VhdFormatError} for a damaged image.
 * @throws {VhdChainError} for a chain that cannot be followed down to the target.
 * @throws {SystemError} EINVAL for an image without a parent; ERANGE for a target that is too
 * small; ECANCELED for a cancelled operation; errors of the file system.
 */
export async function coalesce(path: string, options: CoalesceOptions = {}): Promise<number> {
  const { ancestor, output, oldest, sparse, onProgress, signal } = options;
  return await coalesceChain(path, { ancestor, output, oldest, sparse, onProgress, signal });
}

/**
 * Copies an image and its parents into one new image without a parent. The copy of a fixed image is
 * fixed; every other copy is dynamic. Blocks of zeros are left out. Without keys, a copy of an
 * encrypted image is encrypted with the same key.
 *
 * @returns The number of sectors of 512 bytes that were moved.
 * @throws {VhdFormatError} for a damaged image.
 * @throws {VhdChainError} for a chain that cannot be followed.
 * @throws {SystemError} EEXIST when the file exists; ECANCELED for a cancelled copy; errors of the
 * file system.
 */
export async function copyImage(
  path: string,
  output: string,
  options: CopyOptions = {},
): Promise<number> {
  const { key, sourceKey, onProgress, signal } = options;
  return await copyChain(path, output, { key, sourceKey, onProgress, signal });
}
