/**
 * The images that canonical operations start from: small chains, in files or on block devices. A
 * block has 4 KiB, so that every sector of every image is compared after every cut.
 *
 * @module
 */
import type { Storage } from "../../../src/files/storage.ts";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { createDynamic, createFixed } from "../../../src/vhd/create.ts";
import { encodeFooter, HD_FOOTER_SIZE } from "../../../src/vhd/format/footer.ts";
import { encodeHeader } from "../../../src/vhd/format/header.ts";
import { openVhd } from "../../../src/vhd/image/image.ts";
import { snapshot } from "../../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../../src/vhd/write.ts";
import { stampedSectors } from "../../support/sim.ts";

export const SECTOR = 512;
/** Sectors of a block. */
export const BLOCK = 8;
/** Blocks of a disk. */
export const BLOCKS = 6;
export const DISK_SECTORS = BLOCK * BLOCKS;
export const DISK_BYTES = DISK_SECTORS * SECTOR;
/** Room of a block device, and of one for a new image, whose blocks have 2 MiB. */
const DEVICE_BYTES = 128 * 1024;
const NEW_DEVICE_BYTES = 8 << 20;

/** Where the images of a chain are. */
export type Place = "files" | "devices";

/** The names of the images of the chain, which are the same in each place but for the folder. */
export interface Names {
  readonly base: string;
  readonly other: string;
  readonly child: string;
  /** An image that the operation makes. */
  readonly made: string;
  readonly journal: string;
}

export const IN_FILES: Names = {
  base: "/a.vhd",
  other: "/b.vhd",
  child: "/c.vhd",
  made: "/new.vhd",
  journal: "/journal",
};

const ON_DEVICES: Names = {
  base: "/dev/vg/a",
  other: "/dev/vg/b",
  child: "/dev/vg/c",
  made: "/dev/vg/new",
  journal: "/journal",
};

export function namesIn(place: Place): Names {
  return place === "files" ? IN_FILES : ON_DEVICES;
}

/** Makes a new image that holds no data small: blocks of 4 KiB, `blocks` of them. */
export function makeSmall(
  storage: Storage,
  path: string,
  { blocks = BLOCKS, reserve = blocks }: { blocks?: number; reserve?: number } = {},
): void {
  const image = openVhd(path, { storage, readOnly: false });
  const { file, footer, header } = image;
  if (header === null) throw new TypeError(`${path} is fixed`);
  header.blockSize = BLOCK * SECTOR;
  header.maxBatEntries = reserve;
  footer.currentSize = BigInt(blocks * BLOCK * SECTOR);
  file.writeAt(new Uint8Array(SECTOR).fill(0xff), Number(header.tableOffset));
  file.writeAt(encodeHeader(header), Number(footer.dataOffset));
  for (const at of [0, file.sizeBytes() - HD_FOOTER_SIZE]) file.writeAt(encodeFooter(footer), at);
  image.close();
}

/** Writes sectors of a stamp, each different from all others. */
export function put(
  storage: Storage,
  path: string,
  { sector, count, stamp }: { sector: number; count: number; stamp: number },
): void {
  const image = openVhd(path, { storage, readOnly: false });
  const bytes = new Uint8Array(stampedSectors(sector, count, stamp));
  writeRange(image, bytes, sector * SECTOR);
  finishWriting(image);
  image.close();
}

/** A child of the first base, without data. */
export function makeEmptyChild(disk: SimulatedDisk, place: Place): void {
  const { base, child } = namesIn(place);
  snapshot(child, { storage: disk, parent: base });
  makeSmall(disk, child);
}

/** What the child holds: `put(first sector, number of sectors)` is called for each part. */
export const CHILD_PARTS: readonly (readonly [sector: number, count: number])[] = [
  [BLOCK, 4],
  [2 * BLOCK + 4, 2],
  [3 * BLOCK, BLOCK],
];

/**
 * Two bases, and a child of the first. Block 0 is only in the bases, block 1 is in all, in part,
 * block 2 is only in the child, block 3 is full in the child and in the first base.
 */
export function makeChain(disk: SimulatedDisk, place: Place): void {
  makeBases(disk, place);
  makeEmptyChild(disk, place);
  const { child } = namesIn(place);
  for (const [i, [sector, count]] of CHILD_PARTS.entries()) {
    put(disk, child, { sector, count, stamp: 0x31 + i });
  }
}

export function makeBases(disk: SimulatedDisk, place: Place): void {
  const { base, other, child, made } = namesIn(place);
  if (place === "devices") {
    for (const path of [base, other, child]) {
      disk.addBlockDevice(path, { sizeBytes: DEVICE_BYTES });
    }
    disk.addBlockDevice(made, { sizeBytes: NEW_DEVICE_BYTES });
  }
  for (const [path, stamp] of [[base, 0x10], [other, 0x20]] as const) {
    createDynamic(path, { storage: disk, sizeBytes: DISK_BYTES });
    makeSmall(disk, path);
    put(disk, path, { sector: 0, count: BLOCK, stamp });
    put(disk, path, { sector: BLOCK + 2, count: 4, stamp: stamp + 1 });
  }
  put(disk, base, { sector: 3 * BLOCK, count: BLOCK, stamp: 0x13 });
}

/** A child of a raw image. */
export function makeRawChain(disk: SimulatedDisk): void {
  const raw = disk.open("/raw", "create-new");
  raw.writeAt(new Uint8Array(stampedSectors(0, DISK_SECTORS, 0x40)), 0);
  raw.close();
  snapshot(IN_FILES.child, { storage: disk, parent: "/raw", rawParent: true });
  makeSmall(disk, IN_FILES.child);
  put(disk, IN_FILES.child, { sector: 4, count: BLOCK, stamp: 0x41 });
}

/** A fixed image, with a sector of data. */
export function makeFixed(disk: SimulatedDisk): void {
  const path = "/f.vhd";
  createFixed(path, { storage: disk, sizeBytes: DISK_BYTES, sparse: true });
  const image = openVhd(path, { storage: disk, readOnly: false });
  const { file, footer } = image;
  footer.currentSize = BigInt(DISK_BYTES);
  file.truncate(DISK_BYTES);
  file.writeAt(encodeFooter(footer), DISK_BYTES);
  file.writeAt(new Uint8Array(stampedSectors(3, 2, 0x50)), 3 * SECTOR);
  image.close();
}
