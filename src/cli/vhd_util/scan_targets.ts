import { Errno, SystemError } from "../../../ffi/errno.ts";
import {
  admitParent,
  type Confinement,
  confinementOf,
  describeRefusal,
} from "../../files/confinement.ts";
import { VhdChainError } from "../../vhd/image/errors.ts";
import { fileNameOf, folderOf } from "../../files/paths.ts";
import { scanFast, scanFully, type ScannedImage, scanVolume } from "../../vhd/check/scan.ts";
import { osStorage } from "../../files/storage.ts";
import { expandGlob, patternToRegExp } from "../glob.ts";
import { type LogicalVolume, logicalVolumes, volumeOfDevice } from "../lvm.ts";

/** Something to scan: a file, or a logical volume. */
export interface ScanTarget {
  /** As it is printed: the path as given, or the volume's name. */
  readonly name: string;
  readonly sizeBytes: number;
  /** A raw image: the parent of another image. */
  readonly raw: boolean;
  /** Reads the image. Throws `ScanError`. */
  scan(): ScannedImage;
  /** Finds the parent. Throws `SystemError` where there is none. */
  parentTarget(scanned: ScannedImage): ScanTarget;
}

/** How targets are scanned. */
export interface ScanOptions {
  readonly fast: boolean;
  readonly markers: boolean;
}

/** Called for each target that cannot be scanned. */
export type TargetFault = (name: string, error: unknown) => void;

function rawFacts(sizeBytes: number): ScannedImage {
  const common = { parent: null, rawParent: false, marker: 0, keyhash: null };
  return { ...common, capacityBytes: sizeBytes, hidden: 1 };
}

function fileTarget(
  path: string,
  { options, raw, confinement = confinementOf(osStorage, path) }: {
    options: ScanOptions;
    raw: boolean;
    confinement?: Confinement;
  },
): ScanTarget {
  const { kind, sizeBytes } = osStorage.status(path);
  return {
    name: path,
    sizeBytes: kind === "block" ? deviceBytes(path) : sizeBytes,
    raw,
    scan(): ScannedImage {
      if (raw) return rawFacts(this.sizeBytes);
      return options.fast ? scanFast(osStorage, path, options) : scanFully(osStorage, path);
    },
    parentTarget({ parent, rawParent }: ScannedImage): ScanTarget {
      const name = parent ?? "";
      const beside = `${path.includes("/") ? `${folderOf(path)}/` : ""}${name}`;
      const found = !name.startsWith("/") && osStorage.exists(beside) ? beside : name;
      if (osStorage.exists(found) && admitParent(osStorage, confinement, found) === null) {
        throw new VhdChainError(path, Errno.EPERM, describeRefusal(confinement, found));
      }
      return fileTarget(found, { options, raw: rawParent, confinement });
    },
  };
}

function deviceBytes(path: string): number {
  const file = osStorage.open(path, "read");
  try {
    return file.sizeBytes();
  } finally {
    file.close();
  }
}

/** The files that match a pattern, and those that are named. */
export function fileTargets(
  { pattern, names, options, fault }: {
    pattern: string | null;
    names: readonly string[];
    options: ScanOptions;
    fault: TargetFault;
  },
): ScanTarget[] {
  const paths = [...(pattern === null ? [] : expandGlob(pattern, fault)), ...names];
  const targets: ScanTarget[] = [];
  for (const path of paths) {
    try {
      targets.push(fileTarget(path, { options, raw: false }));
    } catch (error) {
      fault(path, error);
    }
  }
  return targets;
}

const SMALLEST_VOLUME_BYTES = 4096;

function volumeTarget(
  volume: LogicalVolume,
  { all, raw }: { all: readonly LogicalVolume[]; raw: boolean },
): ScanTarget {
  if (volume.segmentType !== "linear") {
    throw new SystemError(
      Errno.ENOSYS,
      `Cannot scan ${volume.name}: its segment type is ${volume.segmentType}, not linear`,
    );
  }
  return {
    name: volume.name,
    sizeBytes: volume.sizeBytes,
    raw,
    scan(): ScannedImage {
      if (raw) return rawFacts(volume.sizeBytes);
      if (volume.segmentBytes < SMALLEST_VOLUME_BYTES) {
        throw new SystemError(
          Errno.EINVAL,
          `Cannot scan ${volume.name}: its first segment is shorter than ${SMALLEST_VOLUME_BYTES} bytes`,
        );
      }
      const scanned = scanVolume(osStorage, volume.device, volume);
      if (scanned.parent === null) return scanned;
      return { ...scanned, parent: volumeOfDevice(scanned.parent) ?? fileNameOf(scanned.parent) };
    },
    parentTarget({ parent, rawParent }: ScannedImage): ScanTarget {
      const found = all.find(({ name }) => name === parent);
      if (found !== undefined) return volumeTarget(found, { all, raw: rawParent });
      throw new SystemError(Errno.ENOENT, `Cannot find the volume ${parent}`);
    },
  };
}

/** The volumes of a group that match patterns. */
export function volumeTargets(
  group: string,
  { patterns, fault }: { patterns: readonly string[]; fault: TargetFault },
): ScanTarget[] {
  const all = logicalVolumes(group);
  const matching = new Set<LogicalVolume>();
  for (const pattern of patterns) {
    const expression = patternToRegExp(pattern);
    for (const volume of all) if (expression.test(volume.name)) matching.add(volume);
  }
  const targets: ScanTarget[] = [];
  for (const volume of matching) {
    try {
      targets.push(volumeTarget(volume, { all, raw: false }));
    } catch (error) {
      fault(volume.name, error);
    }
  }
  return targets;
}
