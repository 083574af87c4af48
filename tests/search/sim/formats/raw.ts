/**
 * Raw images: files whose content is the disk's.
 *
 * @module
 */
import { syncFile } from "../../../support/vhd.ts";
import { SECTOR_BYTES } from "../stamps.ts";
import type { SimFormat } from "./format.ts";

/** Raw images. */
export const rawFormat: SimFormat = {
  name: "raw",
  parentAs: "raw",
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
    const { sizeBytes } = disk.status(path);
    return [{ path, sectors: Math.floor(sizeBytes / SECTOR_BYTES), raw: true }];
  },
  held: (_disk, _path, { sector, count }) =>
    new Set(Array.from({ length: count }, (_, i) => sector + i)),
};
