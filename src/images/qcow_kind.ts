import { syncFile } from "../files/new_file.ts";
import { canonicalPath } from "../files/paths.ts";
import type { Storage } from "../files/storage.ts";
import { backingNameOf } from "../qcow/backing.ts";
import { checkQcow } from "../qcow/check.ts";
import { createQcow } from "../qcow/create.ts";
import { openQcow } from "../qcow/image.ts";
import { setBackingName } from "../qcow/rebase.ts";
import type { ImageFacts, ImageKind, ParentImage } from "./kind.ts";

/** The types of drivers that serve what is below a QCOW. */
const BACKING_TYPES = ["qcow", "aio"] as const;

/** QCOWs of version 1. */
export const qcowKind: ImageKind = {
  type: "qcow",
  hasFixed: true,
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
    run(storage, path, parent, { sizeBytes, fixed }): void {
      const sameBytes = Math.ceil(qcowParentBytes(storage, parent) / 512) * 512;
      const backingName = backingNameFor(storage, parent);
      // From now on flushes sync the child only.
      syncFile(storage, parent.path);
      createQcow(storage, { path }, { sizeBytes: sizeBytes ?? sameBytes, backingName, fixed });
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
