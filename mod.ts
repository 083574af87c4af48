/**
 * VHD images for TypeScript programs. The library creates, snapshots, merges, checks and copies images,
 * and reads and writes their disks. It is the code of vhd-util.
 *
 * ```ts
 * import assert from "node:assert/strict";
 * import { createDynamic, openDisk } from "blktap";
 *
 * const path = `${Deno.makeTempDirSync()}/disk.vhd`;
 * createDynamic(path, { sizeBytes: 64 * 1024 * 1024 });
 *
 * using disk = openDisk(path, { writable: true });
 * disk.write(new Uint8Array(512).fill(7), 4096);
 * const sector = new Uint8Array(512);
 * disk.read(sector, 4096);
 * assert.ok(sector[0] === 7);
 * ```
 *
 * A snapshot is an image that holds the later writes. `coalesce` merges it into its parent:
 *
 * ```ts
 * import assert from "node:assert/strict";
 * import { checkImage, coalesce, createDynamic, openDisk, snapshot } from "blktap";
 *
 * const folder = Deno.makeTempDirSync();
 * const [base, today] = [`${folder}/base.vhd`, `${folder}/today.vhd`];
 * createDynamic(base, { sizeBytes: 64 * 1024 * 1024 });
 * snapshot(today, { parent: base, keepEmptyParent: true });
 *
 * const disk = openDisk(today, { writable: true });
 * assert.ok(disk.layers.length === 2);
 * disk.write(new Uint8Array(1024).fill(1), 0);
 * disk.close();
 *
 * const sectors = await coalesce(today);
 * assert.ok(sectors === 2);
 * assert.ok(checkImage(base).valid);
 * ```
 *
 * `extents` lists the stretches of a disk that hold data, without reading the data:
 *
 * ```ts
 * import assert from "node:assert/strict";
 * import { createDynamic, openDisk } from "blktap";
 *
 * const path = `${Deno.makeTempDirSync()}/disk.vhd`;
 * createDynamic(path, { sizeBytes: 64 * 1024 * 1024 });
 * const disk = openDisk(path, { writable: true });
 * disk.write(new Uint8Array(8192), 1024 * 1024);
 * const held = [...disk.extents()].filter((extent) => extent.path !== null);
 * assert.ok(held.length === 1 && held[0].lengthBytes === 8192);
 * disk.close();
 * ```
 *
 * `openVhd` describes an image:
 *
 * ```ts
 * import assert from "node:assert/strict";
 * import { createDynamic, openVhd, snapshot } from "blktap";
 *
 * const folder = Deno.makeTempDirSync();
 * const [base, today] = [`${folder}/base.vhd`, `${folder}/today.vhd`];
 * createDynamic(base, { sizeBytes: 64 * 1024 * 1024 });
 * snapshot(today, { parent: base, keepEmptyParent: true });
 * const image = openVhd(today);
 * assert.ok(image.type === "differencing" && image.sizeBytes === 64 * 1024 * 1024);
 * assert.ok(image.blocks === 32 && image.allocatedBlocks === 0);
 * assert.ok(image.parent?.uuid === openVhd(base).uuid && image.layers.length === 2);
 * ```
 *
 * `copyImage` copies a chain into one image:
 *
 * ```ts
 * import assert from "node:assert/strict";
 * import { copyImage, createDynamic, openDisk, snapshot } from "blktap";
 *
 * const folder = Deno.makeTempDirSync();
 * createDynamic(`${folder}/base.vhd`, { sizeBytes: 64 * 1024 * 1024 });
 * snapshot(`${folder}/child.vhd`, { parent: `${folder}/base.vhd`, keepEmptyParent: true });
 * await copyImage(`${folder}/child.vhd`, `${folder}/flat.vhd`);
 * using flat = openDisk(`${folder}/flat.vhd`);
 * assert.ok(flat.type === "dynamic" && flat.layers.length === 1);
 * ```
 *
 * Images of every type are named as for tapdisk. `convertImage` copies a disk into an image of another type,
 * and `imageInfo`, `mapImage`, `diffImages` and `streamImage` look at them:
 *
 * ```ts
 * import assert from "node:assert/strict";
 * import { convertImage, createDynamic, diffImages, imageInfo } from "blktap";
 *
 * const folder = Deno.makeTempDirSync();
 * createDynamic(`${folder}/disk.vhd`, { sizeBytes: 64 * 1024 * 1024 });
 * await convertImage(`vhd:${folder}/disk.vhd`, `qcow:${folder}/disk.qcow`);
 * const { layers } = await imageInfo(`qcow:${folder}/disk.qcow`);
 * assert.ok(layers[0].type === "qcow" && layers[0].sizeBytes === 64 * 1024 * 1024);
 * const { ranges } = await diffImages(`vhd:${folder}/disk.vhd`, `qcow:${folder}/disk.qcow`);
 * assert.ok(ranges.length === 0);
 * ```
 *
 * An error names the action, the file and the reason, and has an `errno`:
 *
 * ```ts
 * import assert from "node:assert/strict";
 * import { openDisk, VhdFormatError } from "blktap";
 *
 * const path = Deno.makeTempFileSync();
 * Deno.writeTextFileSync(path, "This is no image.".repeat(100));
 * try {
 *   openDisk(path);
 * } catch (error) {
 *   assert.ok(error instanceof VhdFormatError && error.fault.field === "footer.cookie");
 * }
 * ```
 *
 * A process needs the permissions `--allow-ffi --allow-read --allow-write`. The library runs only on Linux
 * on x86-64.
 *
 * @module
 */

export { type ErrorDetails, SystemError } from "./ffi/errno.ts";
export type { RbdMaking } from "./ffi/rbd_images.ts";
export type { CoalesceOptions } from "./src/bulk/coalesce.ts";
export type { CopyOptions } from "./src/bulk/copy.ts";
export { Disk, type DiskExtent, openDisk, type OpenDiskOptions } from "./src/bulk/disk.ts";
export {
  checkImage,
  coalesce,
  copyImage,
  createDynamic,
  createFixed,
  openVhd,
  snapshot,
} from "./src/bulk/library.ts";
export { checkChain, type CheckChainOptions, type ImageCheck } from "./src/images/check.ts";
export { type CompactedImage, compactImage } from "./src/images/compact.ts";
export {
  commitImage,
  resizeImage,
  type ResizeImageOptions,
  snapshotImage,
} from "./src/images/change.ts";
export { type Converted, convertImage, type ConvertOptions } from "./src/images/convert.ts";
export { createImage } from "./src/images/create.ts";
export { type Difference, diffImages } from "./src/images/diff.ts";
export { type ImageInfo, imageInfo, type LayerInfo } from "./src/images/info.ts";
export type {
  CompressionName,
  ImageFacts,
  NewImageOptions,
  SnapshotImageOptions,
} from "./src/images/kind.ts";
export { type ImageMap, type MapExtent, mapImage } from "./src/images/map.ts";
export { rebaseImage, type RebaseOptions } from "./src/images/rebase.ts";
export { streamImage, type StreamOptions, type StreamSink } from "./src/images/stream.ts";
export type { WorkOptions } from "./src/images/work.ts";
export { type FormatFault, ImageFormatError } from "./src/files/format_error.ts";
export { allowParentsIn } from "./src/files/confinement.ts";
export type { ProgressListener } from "./src/files/progress.ts";
export type { CheckOptions, CheckResult } from "./src/vhd/check/check.ts";
export type { Finding } from "./src/vhd/check/findings.ts";
export type { CreateDynamicOptions, CreateFixedOptions, CreateOptions } from "./src/vhd/create.ts";
export type { ParentDescription, VhdDescription } from "./src/vhd/describe.ts";
export { VhdChainError, type VhdFault, VhdFormatError } from "./src/vhd/image/errors.ts";
export type { VhdType } from "./src/vhd/image/image.ts";
export { SnapshotDepthError, type SnapshotOptions } from "./src/vhd/snapshot.ts";
