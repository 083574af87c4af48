/**
 * Raw images: files whose content is the disk's.
 *
 * @module
 */
import { syncFile } from "../../../support/vhd.ts";
import { SECTOR_BYTES } from "../stamps.ts";
import type { MadeImage, SimFormat, Wish } from "./format.ts";

/** A device has no room in front of its data that an image could leave alone: it is zeros at first. */
function makeOnDevice({ disk, path, random, mostSectors }: Wish): MadeImage {
  const sectors = Math.min(4096 * (1 + random.below(4)), mostSectors);
  disk.addBlockDevice(path, { sizeBytes: sectors * SECTOR_BYTES, garbage: null });
  return { sectors, blockSectors: 4096 };
}

/** Raw images. */
export const rawFormat: SimFormat = {
  name: "raw",
  parentAs: "raw",
  encrypted: false,
  onDevice: false,
  fixed: true,
  nameOf: (path) => `aio:${path}`,
  make({ disk, path, random, mostSectors }) {
    const wanted = random.chance(0.1) ? 2 ** 33 : 4096 * (1 + random.below(4)) - random.below(9);
    const sectors = Math.min(wanted, mostSectors);
    const file = disk.open(path, "create");
    file.truncate(sectors * SECTOR_BYTES);
    file.close();
    syncFile(disk, path);
    return { sectors, blockSectors: 4096 };
  },
  faults: () => [],
  repair: () => [],
  reader(disk, path) {
    const file = disk.open(path, "read");
    return {
      read: (into, sector) => void into.fill(0, file.readAt(into, sector * SECTOR_BYTES)),
      close: () => file.close(),
    };
  },
  layers(disk, path) {
    const file = disk.open(path, "read");
    const sizeBytes = file.sizeBytes();
    file.close();
    return [{ path, sectors: Math.floor(sizeBytes / SECTOR_BYTES), type: "raw", encrypted: false }];
  },
  held: (_disk, _path, { sector, count }) =>
    new Set(Array.from({ length: count }, (_, i) => sector + i)),
};

/** Raw images that are block devices. */
export const rawDeviceFormat: SimFormat = {
  ...rawFormat,
  name: "raw on a device",
  onDevice: true,
  make: makeOnDevice,
};
