import { ImageFormatError } from "../files/format_error.ts";
import type { Storage } from "../files/storage.ts";
import { checkQcow2 } from "../qcow2/check.ts";
import { compactQcow2 } from "../qcow2/compact.ts";
import { createQcow2 } from "../qcow2/create.ts";
import { ExtensionType } from "../qcow2/format/extensions.ts";
import { openQcow2 } from "../qcow2/image/image.ts";
import { backingNameOnCeph } from "../qcow2/image/named_files.ts";
import { refuseSnapshots, setBackingFile } from "../qcow2/rebase.ts";
import { repairQcow2 } from "../qcow2/repair.ts";
import { resizeQcow2 } from "../qcow2/resize.ts";
import { SequentialQcow2 } from "../qcow2/sequential.ts";
import { snapshotQcow2 } from "../qcow2/snapshot.ts";
import { Findings } from "../vhd/check/findings.ts";
import type { CheckResult } from "../vhd/check/check.ts";
import type { ImageFacts, ImageKind } from "./kind.ts";

/** QCOW2 images. */
export const qcow2Kind: ImageKind = {
  type: "qcow2",
  create: (storage, { path, same }, { sizeBytes }) =>
    createQcow2(path, { storage, same, sizeBytes }),
  createSequential: (storage, { path, same }, options) =>
    new SequentialQcow2(path, { storage, same, ...options }),
  createCompressed: (storage, { path, same }, options) =>
    new SequentialQcow2(path, { storage, same, ...options }),
  facts(storage, path): ImageFacts {
    const image = openQcow2(path, { storage });
    try {
      const { header, geometry, backing, dataFile, snapshotTable, extensions, bitmaps } = image;
      const hidden = extensions.find(({ type }) => type === ExtensionType.Hidden)?.data[0] ?? 0;
      return {
        version: header.version,
        clusterSizeBytes: geometry.clusterBytes,
        subclusters: geometry.hasSubclusters,
        refcountBits: geometry.refcountBits,
        snapshots: snapshotTable.snapshots.length,
        bitmaps: bitmaps?.bitmaps ?? 0,
        hidden: hidden !== 0,
        storedBackingName: backing?.name ?? null,
        storedBackingFormat: backing?.format ?? null,
        dataFile: dataFile?.name ?? null,
      };
    } finally {
      image.close();
    }
  },
  check,
  repair: (storage, path) => repairQcow2(path, { storage }),
  snapshot: {
    parents: ["aio", "qcow2", "vhd"],
    run: (storage, path, parent) => snapshotQcow2(path, { storage, parent }),
    onCeph(storage, path, { sizeBytes, ...named }): void {
      const backing = { name: backingNameOnCeph(path, named), format: "raw" };
      createQcow2(path, { storage, sizeBytes, backing });
    },
  },
  compact: (storage, path, onProgress) => compactQcow2(path, { storage, onProgress }),
  rebase: {
    parents: ["aio", "qcow2", "vhd"],
    refuse: (storage, path) => refuseSnapshots(path, { storage }),
    run: (storage, path, parent) => setBackingFile(path, { storage, parent }),
  },
  resize: (storage, path, { sizeBytes }) => resizeQcow2(path, { storage, sizeBytes, shrink: true }),
};

function check(storage: Storage, path: string): CheckResult {
  const findings = new Findings();
  try {
    const image = openQcow2(path, { storage });
    try {
      const { errors, errorCount, leakedClusters } = checkQcow2(image);
      for (const error of errors) findings.error(error, "tables", 0);
      findings.countErrors("tables", errorCount - errors.length);
      if (leakedClusters > 0) {
        findings.warning(`${leakedClusters} clusters are not used, and not free`, "refcounts", 0);
      }
    } finally {
      image.close();
    }
  } catch (error) {
    if (!(error instanceof ImageFormatError)) throw error;
    findings.error(error.message, error.fault.field, error.fault.offsetBytes);
  }
  return { path, valid: !findings.hasErrors, findings: findings.list() };
}
