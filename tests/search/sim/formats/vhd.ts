/**
 * VHD: dynamic, differencing and fixed images, ours and those in the layout of others.
 *
 * @module
 */
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { checkImage } from "../../../../src/vhd/check/check.ts";
import { createDynamic, createFixed } from "../../../../src/vhd/create.ts";
import { Disk } from "../../../../src/bulk/disk.ts";
import { isEncrypted } from "../../../../src/bulk/layers.ts";
import { openChain, type VhdChain } from "../../../../src/vhd/image/chain.ts";
import { openVhd } from "../../../../src/vhd/image/image.ts";
import { heldExtents } from "../../../../src/vhd/image/read.ts";
import { repairImage } from "../../../../src/vhd/repair.ts";
import { putForeignImage } from "../../../support/foreign_vhd.ts";
import { syncFile } from "../../../support/vhd.ts";
import { SECTOR_BYTES } from "../stamps.ts";
import type { Layer, LookOptions, MadeImage, OfflineReader, SimFormat, Wish } from "./format.ts";
import { addKeyhash, decrypt } from "./keys.ts";

const BLOCK_BYTES = 2 << 20;
/** Room behind the last block that no block has: what a block took that was not published. */
const UNUSED_ROOM = /bytes past the end of data belong to nothing/;
const NO_BATMAP = /there is no batmap/;
const CLEAR_SECTORS = /has data where bitmap is clear|^\d+ more faults like those/;
/** Numbers of blocks of new images. */
const BLOCKS = [1, 3, 8, 130, 520];
/** The largest number of blocks: 2040 GiB. */
const MOST_BLOCKS = 1_044_480;

function dynamicSectors({ random, mostSectors }: Wish): number {
  const blockSectors = BLOCK_BYTES / SECTOR_BYTES;
  const wanted = random.chance(0.04) ? MOST_BLOCKS : BLOCKS[random.below(BLOCKS.length)];
  return blockSectors * Math.max(1, Math.min(wanted, Math.floor(mostSectors / blockSectors)));
}

function makeDynamic(wish: Wish): MadeImage {
  const sectors = dynamicSectors(wish);
  const { disk, path, random } = wish;
  const sizeBytes = sectors * SECTOR_BYTES;
  const reserves = sizeBytes < 1000 * BLOCK_BYTES && random.chance(0.3);
  createDynamic(path, {
    storage: disk,
    sizeBytes,
    reserveBytes: reserves ? sizeBytes + (1 + random.below(300)) * BLOCK_BYTES : 0,
  });
  return { sectors, blockSectors: BLOCK_BYTES / SECTOR_BYTES };
}

/** Blocks whose room power cuts and errors may take for good: it lies below blocks that are in use. */
const LOST_BLOCKS = 64;

/** The size of a device for a dynamic image in which all blocks have room. */
export function deviceBytes(sectors: number, lostBlocks = LOST_BLOCKS): number {
  const blocks = Math.ceil(sectors * SECTOR_BYTES / BLOCK_BYTES);
  return (1 << 20) + (blocks + lostBlocks) * (BLOCK_BYTES + 8192);
}

function makeOnDevice(wish: Wish): MadeImage {
  const sectors = dynamicSectors(wish);
  const { disk, path } = wish;
  disk.addBlockDevice(path, { sizeBytes: deviceBytes(sectors) });
  createDynamic(path, { storage: disk, sizeBytes: sectors * SECTOR_BYTES });
  return { sectors, blockSectors: BLOCK_BYTES / SECTOR_BYTES };
}

function withKey(make: SimFormat["make"]): SimFormat["make"] {
  return (wish) => {
    const made = make(wish);
    addKeyhash(wish.disk, wish.path);
    return made;
  };
}

/** A fixed image on a device that is larger: the footer is at the end of the device. */
function makeFixedOnDevice({ disk, path }: Wish): MadeImage {
  const blockSectors = BLOCK_BYTES / SECTOR_BYTES;
  disk.addBlockDevice(path, { sizeBytes: BLOCK_BYTES + 65536 });
  createFixed(path, { storage: disk, sizeBytes: BLOCK_BYTES });
  return { sectors: blockSectors, blockSectors };
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
  const library = new Disk(chain, false);
  const hasKeys = chain.images.some(isEncrypted);
  return {
    read(into, sector) {
      library.read(into, sector * SECTOR_BYTES);
      if (hasKeys) decryptRange(chain, into, sector);
    },
    close: () => library.close(),
  };
}

/** Decrypts the sectors that an encrypted image of a chain holds. */
function decryptRange(chain: VhdChain, bytes: Uint8Array<ArrayBuffer>, first: number): void {
  const lengthSectors = bytes.length / SECTOR_BYTES;
  const found = new Uint8Array(lengthSectors);
  let end = first + lengthSectors;
  for (const image of chain.images) {
    end = Math.min(end, image.sizeBytes / SECTOR_BYTES);
    if (end <= first) return;
    for (const extent of heldExtents(image, { sector: first, lengthSectors: end - first })) {
      for (let i = 0; i < extent.lengthSectors; i++) {
        const at = extent.sector + i - first;
        if (found[at]++ > 0 || !isEncrypted(image)) continue;
        decrypt(bytes.subarray(at * SECTOR_BYTES, (at + 1) * SECTOR_BYTES), first + at);
      }
    }
  }
}

function layers(disk: SimulatedDisk, path: string): Layer[] {
  const chain = openChain(path, { storage: disk });
  chain.close();
  const found: Layer[] = chain.images.map((image) => ({
    path: image.path,
    sectors: image.sizeBytes / SECTOR_BYTES,
    type: "vhd",
    encrypted: isEncrypted(image),
  }));
  if (chain.raw === null) return found;
  return [...found, {
    path: chain.raw.path,
    sectors: chain.raw.sizeBytes / SECTOR_BYTES,
    type: "raw",
    encrypted: false,
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

function vhdFormat(
  name: string,
  make: SimFormat["make"],
  is: { encrypted?: boolean; onDevice?: boolean; fixed?: boolean } = {},
): SimFormat {
  return {
    name,
    parentAs: "vhd",
    encrypted: false,
    onDevice: false,
    fixed: false,
    ...is,
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
export const fixedFormat = vhdFormat("fixed", makeFixed, { fixed: true });
/** Encrypted images. */
export const encryptedFormat = vhdFormat("encrypted", withKey(makeDynamic), { encrypted: true });
/** Dynamic images on block devices. */
export const deviceFormat = vhdFormat("on a device", makeOnDevice, { onDevice: true });
/** Encrypted images on block devices. */
export const encryptedDeviceFormat = vhdFormat("encrypted on a device", withKey(makeOnDevice), {
  encrypted: true,
  onDevice: true,
});
/** Fixed images on block devices. */
export const fixedDeviceFormat = vhdFormat("fixed on a device", makeFixedOnDevice, {
  onDevice: true,
  fixed: true,
});
