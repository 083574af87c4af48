/**
 * QCOW2 images of all sizes of clusters, also on other images.
 *
 * @module
 */
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { checkQcow2 } from "../../../../src/qcow2/check.ts";
import { createQcow2 } from "../../../../src/qcow2/create.ts";
import { openQcow2 } from "../../../../src/qcow2/image/image.ts";
import { type BackingFile, locateBacking } from "../../../../src/qcow2/image/named_files.ts";
import { Qcow2Reader } from "../../../support/qcow2_reader.ts";
import { SECTOR_BYTES } from "../stamps.ts";
import type { Layer, MadeImage, OfflineReader, SimFormat, Wish } from "./format.ts";
import { rawFormat } from "./raw.ts";
import { dynamicFormat } from "./vhd.ts";

/** The size of a disk with small clusters: their tables take much room. */
const SMALL_SECTORS = 65536;
/** 16 TiB. */
const LARGE_SECTORS = 2 ** 35;

function make(wish: Wish): MadeImage {
  return makeIn(wish, wish.random.chance(0.1));
}

/** The size of a device: room for all data, tables, and clusters that cuts and errors take for good. */
export function qcow2DeviceBytes(sectors: number): number {
  return 3 * sectors * SECTOR_BYTES + (256 << 20);
}

function makeOnDevice(wish: Wish): MadeImage {
  const sizeBytes = qcow2DeviceBytes(Math.min(SMALL_SECTORS, wish.mostSectors));
  wish.disk.addBlockDevice(wish.path, { sizeBytes });
  return makeIn(wish, false);
}

function makeIn({ disk, path, random, mostSectors }: Wish, isLarge: boolean): MadeImage {
  const extendedL2 = random.chance(0.25);
  const least = isLarge ? 16 : extendedL2 ? 14 : 9;
  const clusterBytes = 2 ** (least + random.below(22 - least));
  const wanted = isLarge ? LARGE_SECTORS : 1 + random.below(SMALL_SECTORS);
  const sectors = Math.min(wanted, mostSectors);
  createQcow2(path, {
    storage: disk,
    sizeBytes: sectors * SECTOR_BYTES,
    clusterBytes,
    extendedL2,
    refcountBits: 2 ** random.below(7),
  });
  return { sectors, blockSectors: clusterBytes / SECTOR_BYTES };
}

function faults(disk: SimulatedDisk, path: string): string[] {
  const image = openQcow2(path, { storage: disk });
  try {
    // Clusters without a reference are what a cut or an error may leave.
    return [...checkQcow2(image).errors];
  } finally {
    image.close();
  }
}

/** The image below one; null without one. */
function belowOf(disk: SimulatedDisk, path: string): BackingFile | null {
  const image = openQcow2(path, { storage: disk });
  try {
    return locateBacking(image);
  } finally {
    image.close();
  }
}

function formatOfType(type: string): SimFormat {
  return type === "qcow2" ? qcow2Format : type === "vhd" ? dynamicFormat : rawFormat;
}

function layers(disk: SimulatedDisk, path: string): Layer[] {
  const image = openQcow2(path, { storage: disk });
  image.close();
  const sectors = image.sizeBytes / SECTOR_BYTES;
  const own: Layer = { path, sectors, type: "qcow2", encrypted: false };
  const below = belowOf(disk, path);
  return below === null ? [own] : [own, ...formatOfType(below.type).layers(disk, below.path)];
}

/** Reads a chain: what an image does not hold is read from the one below, if that is long enough. */
function reader(disk: SimulatedDisk, path: string): OfflineReader {
  const own = new Qcow2Reader(disk, path);
  const found = belowOf(disk, path);
  const format = found === null ? null : formatOfType(found.type);
  const below = found === null ? null : format?.reader(disk, found.path) ?? null;
  const belowSectors = found === null ? 0 : format?.layers(disk, found.path)[0].sectors ?? 0;
  return {
    read(into, sector): void {
      own.read(into, sector);
      for (let i = 0; i < into.length / SECTOR_BYTES; i++) {
        if (sector + i >= belowSectors || own.placeOf(sector + i) !== -1) continue;
        below?.read(into.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES), sector + i);
      }
    },
    close(): void {
      own.close();
      below?.close();
    },
  };
}

/** QCOW2 images. */
export const qcow2Format: SimFormat = {
  name: "qcow2",
  parentAs: "qcow2",
  encrypted: false,
  onDevice: false,
  fixed: false,
  nameOf: (path) => `qcow2:${path}`,
  make,
  faults,
  repair: () => [],
  reader,
  layers,
  held(disk, path, { sector, count }) {
    const reader = new Qcow2Reader(disk, path);
    const found = new Set<number>();
    for (let i = 0; i < count; i++) if (reader.placeOf(sector + i) !== -1) found.add(sector + i);
    reader.close();
    return found;
  },
};

/** QCOW2 images on block devices. */
export const qcow2DeviceFormat: SimFormat = {
  ...qcow2Format,
  name: "qcow2 on a device",
  onDevice: true,
  make: makeOnDevice,
};
