import { writeNewImage } from "../files/new_file.ts";
import { checkImage } from "../vhd/check/check.ts";
import { compactVhd } from "../vhd/compact.ts";
import { validateSize, writeFixed, writeSparseImage } from "../vhd/create.ts";
import { describeVhd } from "../vhd/describe.ts";
import { changeParent } from "../vhd/modify.ts";
import { repairImage } from "../vhd/repair.ts";
import { resizeVhd } from "../vhd/resize/resize.ts";
import { SequentialVhd } from "../vhd/sequential.ts";
import { snapshot, snapshotOnCeph } from "../vhd/snapshot.ts";
import type { ImageFacts, ImageKind } from "./kind.ts";

/** VHDs. */
export const vhdKind: ImageKind = {
  type: "vhd",
  hasFixed: true,
  create(storage, { path, same }, { sizeBytes, fixed = false }): void {
    validateSize(path, sizeBytes);
    if (fixed) return writeFixed(path, { storage, sizeBytes, sparse: true, same });
    const options = { sizeBytes, maxBytes: sizeBytes };
    writeNewImage(storage, { path, same }, (file) => writeSparseImage(file, options));
  },
  createSequential: (storage, { path, same }, { sizeBytes }) =>
    new SequentialVhd(path, { storage, same, sizeBytes }),
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
  check: (storage, path, onProgress) => checkImage(path, { storage, checkData: true, onProgress }),
  repair: (storage, path) => repairImage(path, { storage }),
  snapshot: {
    parents: ["vhd", "aio"],
    run(storage, path, { type, path: parent }): void {
      snapshot(path, { storage, parent, rawParent: type === "aio", keepEmptyParent: true });
    },
    onCeph(storage, path, { name, sizeBytes }): void {
      snapshotOnCeph(path, { storage, name, sizeBytes });
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
