import { Errno, SystemError } from "../../ffi/errno.ts";
import { DD_BLK_UNUSED } from "./format/bat.ts";
import { pathOfCephName } from "./format/ceph_path.ts";
import { encodeBatmapHeader, type KeyHash } from "./format/batmap.ts";
import { openChain, openRawParent, requireFitsBelow, walkImages } from "./image/chain.ts";
import {
  type ParentToWrite,
  reserveSize,
  roundToBlocks,
  validateSize,
  writeSparseImage,
} from "./create.ts";
import { VhdChainError } from "./image/errors.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { namedOnCeph } from "./image/parent_on_ceph.ts";
import {
  encodeLocation,
  encodeParentName,
  PLAT_CODE_MACX,
  PLAT_CODE_W2KU,
  PLAT_CODE_W2RU,
} from "./format/locator.ts";
import { type NewFile, syncFile, writeNewImage } from "../files/new_file.ts";
import { canonicalPath, fileNameOf, relativePath } from "../files/paths.ts";
import { type FileIdentity, type OnStorage, osStorage, type Storage } from "../files/storage.ts";
import { vhdTime, vhdTimeNow } from "./format/time.ts";
import { isNullUuid } from "./format/uuid.ts";

/** The locators of a new child, in header order. All hold the relative path. */
const LOCATOR_CODES = [PLAT_CODE_MACX, PLAT_CODE_W2KU, PLAT_CODE_W2RU];

/** Options of a new differencing image. */
export interface SnapshotOptions {
  /** Path of the new image's parent. */
  readonly parent: string;
  /** The parent is a raw image, not a VHD. */
  readonly rawParent?: boolean;
  /**
   * Refer to the parent even if it is empty. By default the first image below it with data is used.
   */
  readonly keepEmptyParent?: boolean;
  /** The size that the disk can grow to without moving data, in bytes. */
  readonly reserveBytes?: number;
  /** The largest number of layers of the chain, including the new one (ENOSPC). */
  readonly depthLimit?: number;
}

/** The chain would be deeper than the caller's limit. */
export class SnapshotDepthError extends VhdChainError {
  /** The number of layers without the new one. */
  readonly depth: number;
  /** The largest number of layers that the caller allows. */
  readonly limit: number;

  /** Makes the error for the image at `path`, the intended parent. */
  constructor(path: string, depth: number, limit: number) {
    super(path, Errno.ENOSPC, `it has ${depth} layers already, and the limit is ${limit} (ENOSPC)`);
    this.depth = depth;
    this.limit = limit;
  }
}

interface Target {
  readonly path: string;
  readonly raw: boolean;
  /** Minimum size of the child, rounded up to blocks; 0 for the size of the target. */
  readonly sizeBytes: number;
}

/**
 * Creates a differencing image.
 *
 * @throws {SystemError} | {VhdFormatError} | {VhdChainError} when the parent cannot be used, when
 * the limit would be exceeded ({@linkcode SnapshotDepthError}), when a write fails.
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
  syncFile(storage, target.path);
  writeNewImage(storage, { path }, (file) => {
    const childPath = canonicalPath(storage, path);
    const toWrite = parentToWrite(storage, { childPath, parentPath: target.path, parent });
    writeSparseImage(file, { sizeBytes, maxBytes, parent: toWrite });
  });
  if (parent.keyhash !== null) setKeyhash(storage, { path }, parent.keyhash);
}

/** Options of a new differencing image on an image on Ceph. */
export interface SnapshotOnCephOptions {
  /** `POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]`. */
  readonly name: string;
  /** Size of the disk, bytes. */
  readonly sizeBytes: number;
}

/**
 * Creates a differencing image on an image on Ceph, which is for it a raw image. The cluster is not
 * asked.
 *
 * @throws {SystemError} EINVAL for a name that a VHD cannot store, and a size that it cannot have;
 * errors of the file system.
 */
export function snapshotOnCeph(path: string, options: SnapshotOnCephOptions & OnStorage): void {
  const { storage = osStorage, name, sizeBytes } = options;
  const parentPath = pathOfCephName(name);
  if (parentPath === null) {
    const why = `a VHD cannot store the name rbd:${name} of its parent`;
    throw new SystemError(Errno.EINVAL, `Cannot create ${path} (${why})`);
  }
  validateSize(path, sizeBytes);
  const parent: ParentToWrite = {
    uuid: new Uint8Array(16),
    timestamp: vhdTimeNow(),
    name: encodeParentName(fileNameOf(parentPath)),
    locators: LOCATOR_CODES.map((code) => ({ code, bytes: encodeLocation(code, parentPath) })),
  };
  writeNewImage(storage, { path }, (file) => {
    writeSparseImage(file, { sizeBytes, maxBytes: sizeBytes, parent });
  });
}

/**
 * The parent of the new image: the given image, or the first below it that is not empty. An empty image is
 * used as well where the next one is larger, and at the end of a chain without a raw image.
 */
function findTarget(storage: Storage, options: SnapshotOptions): Target {
  const given = canonicalPath(storage, options.parent);
  if (options.rawParent || options.keepEmptyParent) {
    return { path: given, raw: options.rawParent === true, sizeBytes: 0 };
  }
  const top = openVhd(given, { storage });
  try {
    let above: Target | null = null;
    for (const step of walkImages(top, { storage })) {
      const { image } = step;
      // A larger image below would show more than the disk has.
      if (above !== null && image.sizeBytes > top.sizeBytes) return above;
      const isTop = image === top;
      const here = {
        path: isTop ? given : image.path,
        raw: false,
        sizeBytes: isTop ? 0 : top.sizeBytes,
      };
      const isEmpty = image.bat.every((entry) => entry === DD_BLK_UNUSED);
      if (!isEmpty || namedOnCeph(image) !== null || step.parent === null) return here;
      if (step.parent.raw) {
        const { path } = step.parent;
        if (describeRaw(storage, path, step.parent).sizeBytes > top.sizeBytes) return here;
        return { path, raw: true, sizeBytes: top.sizeBytes };
      }
      above = here;
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

function describeRaw(storage: Storage, path: string, same?: FileIdentity): ParentFacts {
  const raw = openRawParent(storage, path, same);
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

/** The key hash of an open image; null for an image that is not encrypted. */
export function keyhashOf(image: VhdImage): KeyHash | null {
  const keyhash = image.batmap?.header.keyhash;
  return keyhash?.cookie === 1 ? keyhash : null;
}

/** The parent's fields for a child's header and locators. Both paths are absolute. */
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

/** Stores the key hash of the parent in a child: both are encrypted with the same key. */
export function setKeyhash(storage: Storage, { path, same }: NewFile, keyhash: KeyHash): void {
  const image = openVhd(path, { storage, readOnly: false, same });
  try {
    writeKeyhash(image, keyhash);
  } finally {
    image.close();
  }
}

/**
 * Stores a key hash in an image that is open for writing. An image without a batmap cannot hold
 * one.
 */
export function writeKeyhash({ batmap, file }: VhdImage, keyhash: KeyHash): void {
  if (batmap === null) return;
  batmap.header.keyhash = keyhash;
  file.writeAt(encodeBatmapHeader(batmap.header), batmap.headerOffsetBytes);
  file.sync();
}
