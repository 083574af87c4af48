import { Errno, SystemError } from "../../ffi/errno.ts";
import { DD_BLK_UNUSED } from "./format/bat.ts";
import { encodeBatmapHeader, type KeyHash } from "./format/batmap.ts";
import { openChain, openRawParent, requireFitsBelow, walkImages } from "./image/chain.ts";
import {
  type NewFile,
  type ParentToWrite,
  reserveSize,
  roundToBlocks,
  validateSize,
  writeNewImage,
  writeSparseImage,
} from "./create.ts";
import { VhdChainError } from "./image/errors.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import {
  encodeLocation,
  encodeParentName,
  PLAT_CODE_MACX,
  PLAT_CODE_W2KU,
  PLAT_CODE_W2RU,
} from "./format/locator.ts";
import { canonicalPath, fileNameOf, relativePath } from "../files/paths.ts";
import { type OnStorage, osStorage, type Storage } from "../files/storage.ts";
import { vhdTime } from "./format/time.ts";
import { isNullUuid } from "./format/uuid.ts";

/** The locators that a child gets, all with the relative path, in the order of the header. */
const LOCATOR_CODES = [PLAT_CODE_MACX, PLAT_CODE_W2KU, PLAT_CODE_W2RU];

/** How a differencing image is made. */
export interface SnapshotOptions {
  /** Path of the image that the new one builds on. */
  readonly parent: string;
  /** The parent is a raw image, not a VHD. */
  readonly rawParent?: boolean;
  /** Refer to the parent even if it is empty; otherwise to the first below it that is not. */
  readonly keepEmptyParent?: boolean;
  /** Size that the disk can grow to without moving data, bytes. */
  readonly reserveBytes?: number;
  /** The most layers that the chain may have, the new one included (ENOSPC). */
  readonly depthLimit?: number;
}

/** The chain would be deeper than the caller's limit. */
export class SnapshotDepthError extends VhdChainError {
  /** Layers that the chain has without the new one. */
  readonly depth: number;
  /** The most layers that it was to have. */
  readonly limit: number;

  /** Makes the error of the image at `path`, which was to be the parent. */
  constructor(path: string, depth: number, limit: number) {
    super(path, Errno.ENOSPC, `it has ${depth} layers already, and the limit is ${limit} (ENOSPC)`);
    this.depth = depth;
    this.limit = limit;
  }
}

interface Target {
  readonly path: string;
  readonly raw: boolean;
  /** Size that the child must have, rounded up to blocks; 0 for that of the target. */
  readonly sizeBytes: number;
}

/**
 * Creates a differencing image.
 *
 * @throws {SystemError} | {VhdFormatError} | {VhdChainError} when the parent cannot be used, when
 * the limit would be exceeded ({@linkcode SnapshotDepthError}), when writing fails.
 */
export function snapshot(path: string, options: SnapshotOptions & OnStorage): void {
  const { storage = osStorage } = options;
  const target = findTarget(storage, options);
  if (
    storage.exists(path) && canonicalPath(storage, path) === canonicalPath(storage, target.path)
  ) {
    throw new SystemError(Errno.EINVAL, `Cannot create ${path}, as it would be its own parent`);
  }
  requireFitsBelow(storage, { parentPath: target.path, rawParent: target.raw, childPath: path });
  if (options.depthLimit && !target.raw) limitDepth(storage, target.path, options.depthLimit);
  const parent = target.raw ? describeRaw(storage, target.path) : describeVhd(storage, target.path);
  const { reserveBytes = 0 } = options;
  const sizeBytes = Math.max(roundToBlocks(target.sizeBytes), parent.sizeBytes);
  validateSize(path, sizeBytes);
  const maxBytes = reserveSize(path, sizeBytes, reserveBytes);
  writeNewImage(storage, { path }, (file) => {
    const childPath = canonicalPath(storage, path);
    const toWrite = parentToWrite(storage, { childPath, parentPath: target.path, parent });
    writeSparseImage(file, { sizeBytes, maxBytes, parent: toWrite });
  });
  if (parent.keyhash !== null) setKeyhash(storage, { path }, parent.keyhash);
}

/** The image to refer to: that given or, while images are empty, the one below. */
function findTarget(storage: Storage, options: SnapshotOptions): Target {
  const given = canonicalPath(storage, options.parent);
  if (options.rawParent || options.keepEmptyParent) {
    return { path: given, raw: options.rawParent === true, sizeBytes: 0 };
  }
  const top = openVhd(given, { storage });
  try {
    for (const step of walkImages(top, { storage })) {
      const { image } = step;
      const isTop = image === top;
      const isEmpty = image.bat.every((entry) => entry === DD_BLK_UNUSED);
      if (!isEmpty || step.parent === null) {
        const path = isTop ? given : image.path;
        return { path, raw: false, sizeBytes: isTop ? 0 : top.sizeBytes };
      }
      if (step.parent.raw) return { path: step.parent.path, raw: true, sizeBytes: top.sizeBytes };
    }
    throw new RangeError(`The chain from ${given} has no end`);
  } finally {
    top.close();
  }
}

function limitDepth(storage: Storage, path: string, limit: number): void {
  const chain = openChain(path, { storage, ignoreParentUuid: true });
  chain.close();
  if (chain.depth + 1 > limit) throw new SnapshotDepthError(path, chain.depth, limit);
}

interface ParentFacts {
  readonly uuid: Uint8Array;
  readonly sizeBytes: number;
  readonly keyhash: KeyHash | null;
}

function describeRaw(storage: Storage, path: string): ParentFacts {
  const raw = openRawParent(storage, path);
  raw.file.close();
  return { uuid: new Uint8Array(16), sizeBytes: raw.sizeBytes, keyhash: null };
}

function describeVhd(storage: Storage, path: string): ParentFacts {
  const image = openVhd(path, { storage });
  image.close();
  const { uuid } = image.footer;
  if (isNullUuid(uuid)) {
    throw new SystemError(Errno.EINVAL, `Cannot make a child of ${path}, which has no UUID`);
  }
  return { uuid, sizeBytes: image.sizeBytes, keyhash: keyhashOf(image) };
}

/** The trace of the key that an open image is encrypted with; null when it is not. */
export function keyhashOf(image: VhdImage): KeyHash | null {
  const keyhash = image.batmap?.header.keyhash;
  return keyhash?.cookie === 1 ? keyhash : null;
}

/** What the header and locators of a child say of a parent. Both paths are absolute. */
export function parentToWrite(
  storage: Storage,
  { childPath, parentPath, parent }: {
    childPath: string;
    parentPath: string;
    parent: { readonly uuid: Uint8Array };
  },
): ParentToWrite {
  const relative = relativePath(childPath, canonicalPath(storage, parentPath));
  return {
    uuid: parent.uuid,
    timestamp: vhdTime(storage.status(parentPath).mtimeSeconds),
    name: encodeParentName(fileNameOf(parentPath)),
    locators: LOCATOR_CODES.map((code) => ({ code, bytes: encodeLocation(code, relative) })),
  };
}

/** Children of an encrypted image are encrypted with the same key. */
export function setKeyhash(storage: Storage, { path, same }: NewFile, keyhash: KeyHash): void {
  const image = openVhd(path, { storage, readOnly: false, same });
  try {
    writeKeyhash(image, keyhash);
  } finally {
    image.close();
  }
}

/** Stores the trace of a key in an image that is open for writing; one without a batmap has no room. */
export function writeKeyhash({ batmap, file }: VhdImage, keyhash: KeyHash): void {
  if (batmap === null) return;
  batmap.header.keyhash = keyhash;
  file.writeAt(encodeBatmapHeader(batmap.header), batmap.headerOffsetBytes);
  file.sync();
}
