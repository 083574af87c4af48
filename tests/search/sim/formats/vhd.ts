/**
 * VHD: dynamic, differencing and fixed images, ours and those in the layout of others.
 *
 * @module
 */
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { checkImage } from "../../../../src/vhd/check/check.ts";
import { createDynamic, createFixed } from "../../../../src/vhd/create.ts";
import { openChain } from "../../../../src/vhd/image/chain.ts";
import { openVhd } from "../../../../src/vhd/image/image.ts";
import { heldExtents, readRange } from "../../../../src/vhd/image/read.ts";
import { repairImage } from "../../../../src/vhd/repair.ts";
import { putForeignImage } from "../../../support/foreign_vhd.ts";
import { syncFile } from "../../../support/vhd.ts";
import { SECTOR_BYTES } from "../stamps.ts";
import type { Layer, LookOptions, MadeImage, OfflineReader, SimFormat, Wish } from "./format.ts";

const BLOCK_BYTES = 2 << 20;
/** Room behind the last block that no block has: what a block took that was not published. */
const UNUSED_ROOM = /bytes past the end of data belong to nothing/;
const NO_BATMAP = /there is no batmap/;
const CLEAR_SECTORS = /has data where bitmap is clear|^\d+ more faults like those/;
/** Numbers of blocks of new images. */
const BLOCKS = [1, 3, 8, 130, 520];
/** The largest number of blocks: 2040 GiB. */
const MOST_BLOCKS = 1_044_480;

function makeDynamic({ disk, path, random, mostSectors }: Wish): MadeImage {
  const blockSectors = BLOCK_BYTES / SECTOR_BYTES;
  const wanted = random.chance(0.04) ? MOST_BLOCKS : BLOCKS[random.below(BLOCKS.length)];
  const blocks = Math.max(1, Math.min(wanted, Math.floor(mostSectors / blockSectors)));
  const sizeBytes = blocks * BLOCK_BYTES;
  const reserves = blocks < 1000 && random.chance(0.3);
  createDynamic(path, {
    storage: disk,
    sizeBytes,
    reserveBytes: reserves ? sizeBytes + (1 + random.below(300)) * BLOCK_BYTES : 0,
  });
  return { sectors: sizeBytes / SECTOR_BYTES, blockSectors };
}

/** An image in the layout of other programs, with small blocks. */
function makeForeign({ disk, path, random, mostSectors }: Wish): MadeImage {
  const blockSizeBytes = 4096 * 2 ** random.below(7);
  const sectors = Math.max(1, Math.min(2048 * (1 + random.below(4)), mostSectors));
  const sizeBytes = sectors * SECTOR_BYTES;
  putForeignImage(disk, path, { sizeBytes, blockSizeBytes });
  syncFile(disk, path);
  return { sectors, blockSectors: blockSizeBytes / SECTOR_BYTES };
}

function makeFixed({ disk, path, random, mostSectors }: Wish): MadeImage {
  const blockSectors = BLOCK_BYTES / SECTOR_BYTES;
  const blocks = Math.max(1, Math.min(1 + random.below(3), Math.floor(mostSectors / blockSectors)));
  createFixed(path, { storage: disk, sizeBytes: blocks * BLOCK_BYTES, sparse: true });
  return { sectors: blocks * blockSectors, blockSectors };
}

function faults(disk: SimulatedDisk, path: string, { data, mayHaveData }: LookOptions): string[] {
  const found = checkImage(path, { storage: disk, ignoreTimestamps: true, checkData: data });
  return found.findings.map(({ message }) => message).filter((message) => {
    if (UNUSED_ROOM.test(message) || NO_BATMAP.test(message)) return false;
    // Data of a write that was not flushed may survive without its bit: the sector reads as before.
    return !mayHaveData || !CLEAR_SECTORS.test(message);
  });
}

function reader(disk: SimulatedDisk, path: string): OfflineReader {
  const chain = openChain(path, { storage: disk });
  return {
    read: (into, sector) => readRange(chain, into, sector * SECTOR_BYTES),
    close: () => chain.close(),
  };
}

function layers(disk: SimulatedDisk, path: string): Layer[] {
  const chain = openChain(path, { storage: disk });
  chain.close();
  const found = chain.images.map((image) => ({
    path: image.path,
    sectors: image.sizeBytes / SECTOR_BYTES,
    raw: false,
  }));
  if (chain.raw === null) return found;
  return [...found, {
    path: chain.raw.path,
    sectors: chain.raw.sizeBytes / SECTOR_BYTES,
    raw: true,
  }];
}

function held(
  disk: SimulatedDisk,
  path: string,
  { sector, count }: { sector: number; count: number },
): Set<number> {
  const image = openVhd(path, { storage: disk });
  const found = new Set<number>();
  try {
    for (const extent of heldExtents(image, { sector, lengthSectors: count })) {
      for (let i = 0; i < extent.lengthSectors; i++) found.add(extent.sector + i);
    }
  } finally {
    image.close();
  }
  return found;
}

function vhdFormat(name: string, make: SimFormat["make"]): SimFormat {
  return {
    name,
    parentAs: "vhd",
    nameOf: (path) => `vhd:${path}`,
    make,
    faults,
    repair: (disk, path) => repairImage(path, { storage: disk }),
    reader,
    layers,
    held,
  };
}

/** Dynamic images as we make them; differencing images, too. */
export const dynamicFormat = vhdFormat("dynamic", makeDynamic);
/** Dynamic images as others make them. */
export const foreignFormat = vhdFormat("foreign", makeForeign);
/** Fixed images. */
export const fixedFormat = vhdFormat("fixed", makeFixed);
