import { Errno, SystemError } from "../../ffi/errno.ts";
import { type NewFile, writeNewImage } from "../files/new_file.ts";
import type { Storage } from "../files/storage.ts";
import { createQcow } from "../qcow/create.ts";
import { openQcow } from "../qcow/image.ts";
import { openVhdx } from "../vhdx/image.ts";
import { validateSize, writeFixed, writeSparseImage } from "../vhd/create.ts";
import { describeVhd } from "../vhd/describe.ts";

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
}

const raw: ImageKind = {
  type: "aio",
  create(storage, file, { sizeBytes }): void {
    writeNewImage(storage, file, (opened) => {
      if (opened.isBlockDevice) requireRoom(opened.path, opened.sizeBytes(), sizeBytes);
      else opened.truncate(sizeBytes);
    });
  },
};

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
};

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
};

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
