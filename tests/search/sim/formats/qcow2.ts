/**
 * QCOW2 images of all sizes of clusters. They have no children here, as the steps make VHDs.
 *
 * @module
 */
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { checkQcow2 } from "../../../../src/qcow2/check.ts";
import { createQcow2 } from "../../../../src/qcow2/create.ts";
import { openQcow2 } from "../../../../src/qcow2/image/image.ts";
import { Qcow2Reader } from "../../../support/qcow2_reader.ts";
import { SECTOR_BYTES } from "../stamps.ts";
import type { MadeImage, SimFormat, Wish } from "./format.ts";

/** The size of a disk with small clusters: their tables take much room. */
const SMALL_SECTORS = 65536;
/** 16 TiB. */
const LARGE_SECTORS = 2 ** 35;

function make(wish: Wish): MadeImage {
  return makeIn(wish, wish.random.chance(0.1));
}

/** Room of a device: that of all data, of tables, and of clusters that cuts and errors take for good. */
function makeOnDevice(wish: Wish): MadeImage {
  const sizeBytes = 3 * Math.min(SMALL_SECTORS, wish.mostSectors) * SECTOR_BYTES + (256 << 20);
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

/** QCOW2 images. */
export const qcow2Format: SimFormat = {
  name: "qcow2",
  parentAs: null,
  encrypted: false,
  onDevice: false,
  fixed: false,
  nameOf: (path) => `qcow2:${path}`,
  make,
  faults,
  repair: () => [],
  reader: (disk, path) => new Qcow2Reader(disk, path),
  layers(disk, path) {
    const image = openQcow2(path, { storage: disk });
    image.close();
    return [{ path, sectors: image.sizeBytes / SECTOR_BYTES, raw: false, encrypted: false }];
  },
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
