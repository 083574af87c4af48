import { Errno, SystemError } from "../../ffi/errno.ts";
import { type NewFile, writeNewImage } from "../files/new_file.ts";
import { ImageFormatError } from "../files/format_error.ts";
import { canonicalPath } from "../files/paths.ts";
import type { ProgressListener } from "../files/progress.ts";
import type { Storage } from "../files/storage.ts";
import { backingNameOf } from "../qcow/backing.ts";
import { checkQcow } from "../qcow/check.ts";
import { createQcow } from "../qcow/create.ts";
import { setBackingName } from "../qcow/rebase.ts";
import { openQcow } from "../qcow/image.ts";
import { openVhdx } from "../vhdx/image.ts";
import { checkImage as checkVhd, type CheckResult } from "../vhd/check/check.ts";
import { compactVhd } from "../vhd/compact.ts";
import { validateSize, writeFixed, writeSparseImage } from "../vhd/create.ts";
import { describeVhd } from "../vhd/describe.ts";
import { changeParent } from "../vhd/modify.ts";
import { repairImage } from "../vhd/repair.ts";
import { resizeVhd } from "../vhd/resize/resize.ts";
import { snapshot } from "../vhd/snapshot.ts";

/** Options of a new image without a parent. */
export interface NewImageOptions {
  /** Size of the disk, whole sectors. */
  readonly sizeBytes: number;
  /** All room is there from the start, where the type has both: a fixed VHD. */
  readonly fixed?: boolean;
}

/** Facts about an image that only its type has, by name. */
export type ImageFacts = Readonly<Record<string, string | number | boolean | null>>;

/** A type of image, and what can be done with its images. What is missing cannot be done. */
export interface ImageKind {
  /** The driver's name. */
  readonly type: string;
  /** Makes an empty image, whose disk reads as zeros. */
  create?(storage: Storage, file: NewFile, options: NewImageOptions): void;
  /** Says what is special about an image. */
  facts?(storage: Storage, path: string): ImageFacts;
  /** Looks for faults; a damaged image is a result. */
  check?(storage: Storage, path: string, onProgress?: ProgressListener): CheckResult;
  /** Mends what can be mended; returns a line for each repair. */
  repair?(storage: Storage, path: string): string[];
  /** Makes an image that holds the later writes of another. */
  readonly snapshot?: {
    /** The types of drivers that can serve what is below. */
    readonly parents: readonly string[];
    run(storage: Storage, path: string, parent: ParentImage): void;
  };
  /** Gives the disk another size. */
  resize?(storage: Storage, path: string, options: ResizeOptions): void;
  /** Gives unused room back. */
  compact?(
    storage: Storage,
    path: string,
    onProgress?: ProgressListener,
  ): { beforeBytes: number; afterBytes: number };
  /** Changes which image is below, whatever they hold. */
  readonly rebase?: {
    readonly parents: readonly string[];
    run(storage: Storage, path: string, parent: ParentImage): void;
  };
}

/** An image that is to be below another. */
export interface ParentImage {
  /** The type of its driver. */
  readonly type: string;
  readonly path: string;
  /** As it was named. */
  readonly name: string;
}

/** Options of a resize. */
interface ResizeOptions {
  readonly sizeBytes: number;
  readonly onProgress?: ProgressListener;
}

const raw: ImageKind = {
  type: "aio",
  create(storage, file, { sizeBytes }): void {
    writeNewImage(storage, file, (opened) => {
      if (opened.isBlockDevice) requireRoom(opened.path, opened.sizeBytes(), sizeBytes);
      else opened.truncate(sizeBytes);
    });
  },
  resize: resizeRaw,
};

/** Cuts a raw image, or makes it longer. */
function resizeRaw(storage: Storage, path: string, { sizeBytes }: ResizeOptions): void {
  const file = storage.open(path, "write");
  try {
    if (file.isBlockDevice) {
      throw new SystemError(Errno.EINVAL, `Cannot resize ${path}: it is a block device`);
    }
    file.refuseReaders();
    file.truncate(sizeBytes);
    file.sync();
  } finally {
    file.close();
  }
}

function requireRoom(path: string, there: number, needed: number): void {
  if (there >= needed) return;
  const why = `it has ${there} bytes, and the disk ${needed}`;
  throw new SystemError(Errno.ENOSPC, `Cannot write to ${path} (${why})`);
}

const vhd: ImageKind = {
  type: "vhd",
  create(storage, { path, same }, { sizeBytes, fixed = false }): void {
    validateSize(path, sizeBytes);
    if (fixed) return writeFixed(path, { storage, sizeBytes, sparse: true, same });
    const options = { sizeBytes, maxBytes: sizeBytes };
    writeNewImage(storage, { path, same }, (file) => writeSparseImage(file, options));
  },
  facts(storage, path): ImageFacts {
    const found = describeVhd(path, { storage });
    return {
      kind: found.type,
      uuid: found.uuid,
      blockSizeBytes: found.blockSizeBytes,
      blocks: found.blocks,
      allocatedBlocks: found.allocatedBlocks,
      hidden: found.hidden,
      encrypted: found.encrypted,
    };
  },
  check: (storage, path, onProgress) => checkVhd(path, { storage, checkData: true, onProgress }),
  repair: (storage, path) => repairImage(path, { storage }),
  snapshot: {
    parents: ["vhd", "aio"],
    run(storage, path, { type, path: parent }): void {
      snapshot(path, { storage, parent, rawParent: type === "aio", keepEmptyParent: true });
    },
  },
  resize(storage, path, { sizeBytes, onProgress }): void {
    resizeVhd(path, { storage, sizeBytes, journal: `${path}.resize-journal`, onProgress });
  },
  rebase: {
    parents: ["vhd", "aio"],
    run(storage, path, { type, path: parent }): void {
      changeParent(path, { storage, parent, rawParent: type === "aio" });
    },
  },
  compact: (storage, path, onProgress) => compactVhd(path, { storage, onProgress }),
};

/** The types of drivers that serve what is below a QCOW. */
const BACKING_TYPES = ["qcow", "aio"] as const;

const qcow: ImageKind = {
  type: "qcow",
  create: createQcow,
  facts(storage, path): ImageFacts {
    const image = openQcow(path, { storage });
    try {
      const { header: { clusterBits }, backingName } = image;
      return { clusterSizeBytes: 2 ** clusterBits, storedBackingName: backingName };
    } finally {
      image.close();
    }
  },
  check: (storage, path) => checkQcow(path, { storage }),
  snapshot: {
    parents: BACKING_TYPES,
    run(storage, path, parent): void {
      const sizeBytes = Math.ceil(qcowParentBytes(storage, parent) / 512) * 512;
      createQcow(storage, { path }, { sizeBytes, backingName: backingNameFor(storage, parent) });
    },
  },
  rebase: {
    parents: BACKING_TYPES,
    run: (storage, path, parent) => setBackingName(storage, path, backingNameFor(storage, parent)),
  },
};

/** Sizes of disks that can be below a QCOW. */
function qcowParentBytes(storage: Storage, { type, path }: ParentImage): number {
  if (type === "qcow") {
    const image = openQcow(path, { storage });
    image.close();
    return image.sectors * 512;
  }
  const file = storage.open(path, "read");
  try {
    return file.sizeBytes();
  } finally {
    file.close();
  }
}

/** The name that says what the file is, too. It is absolute: QEMU would look for another one elsewhere. */
function backingNameFor(storage: Storage, { type, path }: ParentImage): string {
  const format = type === "qcow" ? "qcow" : "raw";
  return backingNameOf({ path: canonicalPath(storage, path), format });
}

const vhdx: ImageKind = {
  type: "vhdx",
  facts(storage, path): ImageFacts {
    const image = openVhdx(path, { storage });
    try {
      return {
        differencing: image.locator !== null,
        blockSizeBytes: image.blockBytes,
        logicalSectorBytes: image.logicalSectorBytes,
        physicalSectorBytes: image.physicalSectorBytes,
        dataWriteGuid: image.header.dataWriteGuid,
        pagesInLog: image.replayed.pages.size,
      };
    } finally {
      image.close();
    }
  },
  check(storage, path): CheckResult {
    try {
      openVhdx(path, { storage }).close();
      return { path, valid: true, findings: [] };
    } catch (error) {
      if (!(error instanceof ImageFormatError)) throw error;
      const { message, fault: { field, offsetBytes } } = error;
      const findings = [{ severity: "error", message, field, offsetBytes }] as const;
      return { path, valid: false, findings };
    }
  },
};

const KINDS: readonly ImageKind[] = [raw, qcow, vhd, vhdx];

/** What can be done with images of a type; null for types that nothing is known of. */
export function kindOf(type: string): ImageKind | null {
  return KINDS.find((kind) => kind.type === type) ?? null;
}

/** The types that are known, for messages. */
export function kindNames(): string {
  return KINDS.map(({ type }) => type).join(", ");
}
