import { ImageFormatError } from "../files/format_error.ts";
import { canonicalPath, folderOf, normalizePath, relativePath } from "../files/paths.ts";
import type { Storage } from "../files/storage.ts";
import { checkQcow2 } from "../qcow2/check.ts";
import { createQcow2 } from "../qcow2/create.ts";
import { openQcow2 } from "../qcow2/image/image.ts";
import { Findings } from "../vhd/check/findings.ts";
import type { CheckResult } from "../vhd/check/check.ts";
import { openVhd } from "../vhd/image/image.ts";
import type { ImageFacts, ImageKind, ParentImage } from "./kind.ts";

/** What QEMU calls the formats of backing files, by the types of their drivers. */
const FORMAT_OF_TYPE: ReadonlyMap<string, string> = new Map([
  ["aio", "raw"],
  ["qcow2", "qcow2"],
  ["vhd", "vpc"],
]);

/** QCOW2 images. */
export const qcow2Kind: ImageKind = {
  type: "qcow2",
  create: (storage, { path, same }, { sizeBytes }) =>
    createQcow2(path, { storage, same, sizeBytes }),
  facts(storage, path): ImageFacts {
    const image = openQcow2(path, { storage });
    try {
      const { header, geometry, backing, dataFile, snapshotTable } = image;
      return {
        version: header.version,
        clusterSizeBytes: geometry.clusterBytes,
        subclusters: geometry.hasSubclusters,
        refcountBits: geometry.refcountBits,
        snapshots: snapshotTable.snapshots.length,
        storedBackingName: backing?.name ?? null,
        storedBackingFormat: backing?.format ?? null,
        dataFile: dataFile?.name ?? null,
      };
    } finally {
      image.close();
    }
  },
  check,
  snapshot: {
    parents: [...FORMAT_OF_TYPE.keys()],
    run(storage, path, parent): void {
      const format = FORMAT_OF_TYPE.get(parent.type) ?? "raw";
      const backing = { name: storedName(storage, path, parent.path), format };
      createQcow2(path, { storage, sizeBytes: sizeOf(storage, parent), backing });
    },
  },
};

/** The parent's name from the folder of the child, so that both can move. */
function storedName(storage: Storage, childPath: string, parentPath: string): string {
  // The child does not exist yet.
  const folder = canonicalPath(storage, folderOf(normalizePath(storage, childPath)));
  const parent = canonicalPath(storage, parentPath);
  const relative = relativePath(`${folder}/child`, parent).replace(/^\.\//, "");
  // QEMU takes what stands in front of a colon for a protocol.
  return relative.includes(":") ? parent : relative;
}

function sizeOf(storage: Storage, { type, path }: ParentImage): number {
  if (type === "qcow2" || type === "vhd") {
    const image = type === "vhd" ? openVhd(path, { storage }) : openQcow2(path, { storage });
    image.close();
    return image.sizeBytes;
  }
  const file = storage.open(path, "read");
  try {
    return file.sizeBytes();
  } finally {
    file.close();
  }
}

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
