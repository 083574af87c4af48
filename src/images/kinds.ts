import { Errno, SystemError } from "../../ffi/errno.ts";
import { createQcow } from "../qcow/create.ts";
import type { Storage } from "../files/storage.ts";
import { type NewFile, writeNewImage } from "../files/new_file.ts";
import { validateSize, writeFixed, writeSparseImage } from "../vhd/create.ts";

/** Options of a new image without a parent. */
export interface NewImageOptions {
  /** Size of the disk, whole sectors. */
  readonly sizeBytes: number;
  /** All room is taken at once, where the type has both: a fixed VHD. */
  readonly fixed?: boolean;
}

/** A type of image that can be made. */
export interface ImageKind {
  /** The driver's name. */
  readonly type: string;
  /** Makes an empty image, whose disk reads as zeros. */
  create(storage: Storage, file: NewFile, options: NewImageOptions): void;
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
  create(storage, file, { sizeBytes, fixed = false }): void {
    validateSize(file.path, sizeBytes);
    if (fixed) {
      return writeFixed(file.path, { ...file, storage, sizeBytes, sparse: true, same: file.same });
    }
    writeNewImage(
      storage,
      file,
      (opened) => writeSparseImage(opened, { sizeBytes, maxBytes: sizeBytes }),
    );
  },
};

const qcow: ImageKind = { type: "qcow", create: createQcow };

const KINDS: readonly ImageKind[] = [raw, vhd, qcow];

/** The kind of a type that can be made; null for other types. */
export function kindOf(type: string): ImageKind | null {
  return KINDS.find((kind) => kind.type === type) ?? null;
}

/** The types that can be made, for messages. */
export function kindNames(): string {
  return KINDS.map(({ type }) => type).join(", ");
}
