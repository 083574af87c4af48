/**
 * The contents of images after each stage of an operation, and what may be found in their place.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { testBit } from "../../../src/vhd/format/bitmap.ts";
import { presentSectors } from "../../../src/vhd/image/block.ts";
import { openChain } from "../../../src/vhd/image/chain.ts";
import { openVhd } from "../../../src/vhd/image/image.ts";
import { readRange } from "../../../src/vhd/image/read.ts";
import { Qcow2Reader } from "../../support/qcow2_reader.ts";
import { DISK_BYTES, DISK_SECTORS, SECTOR } from "./images.ts";
import type { Operation } from "./operation.ts";

/** The contents of one image. */
export interface Content {
  readonly bytes: Uint8Array;
  /** Whether the image itself holds each sector, not only its parents. */
  readonly held: readonly boolean[];
  readonly isDevice: boolean;
}

/** The contents of all images, by path. */
export type Version = ReadonlyMap<string, Content>;

/** Which versions an image may show, and how exactly. */
export interface Range {
  readonly versions: readonly Version[];
  readonly from: number;
  readonly to: number;
  /** Whether unflushed changes were lost: see docs/on-disk-order.md, "What is promised". */
  readonly cut: boolean;
}

export function isRaw(path: string): boolean {
  return path.startsWith("/raw");
}

/** Whether an image is a QCOW2: on a raw image, if it has a parent. */
export function isQcow2(path: string): boolean {
  return path.endsWith(".qcow2");
}

function readQcow2(disk: SimulatedDisk, path: string, bytes: Uint8Array<ArrayBuffer>): void {
  const reader = new Qcow2Reader(disk, path);
  try {
    reader.read(bytes, 0);
    const { backing } = reader.image;
    if (backing === null) return;
    const below = readDisk(disk, `/${backing.name}`);
    for (let sector = 0; sector < DISK_SECTORS; sector++) {
      if (reader.placeOf(sector) !== -1) continue;
      const at = sector * SECTOR;
      bytes.set(below.subarray(at, at + SECTOR), at);
    }
  } finally {
    reader.close();
  }
}

/** The disk of an image. A larger one is compared at its start only. */
export function readDisk(disk: SimulatedDisk, path: string): Uint8Array {
  const bytes = new Uint8Array(DISK_BYTES);
  if (isRaw(path)) {
    const file = disk.open(path, "read");
    file.readAt(bytes, 0);
    file.close();
    return bytes;
  }
  if (isQcow2(path)) {
    readQcow2(disk, path, bytes);
    return bytes;
  }
  const chain = openChain(path, { storage: disk });
  try {
    readRange(chain, bytes, 0);
    return bytes;
  } finally {
    chain.close();
  }
}

function contentOf(disk: SimulatedDisk, { contents = readDisk }: Operation, path: string): Content {
  const isDevice = disk.locate(path).kind === "block";
  const bytes = contents(disk, path);
  if (isRaw(path)) return { bytes, isDevice, held: new Array(DISK_SECTORS).fill(true) };
  if (isQcow2(path)) {
    const reader = new Qcow2Reader(disk, path);
    const held = Array.from({ length: DISK_SECTORS }, (_, i) => reader.placeOf(i) !== -1);
    reader.close();
    return { bytes, isDevice, held };
  }
  const image = openVhd(path, { storage: disk });
  try {
    const held = Array.from({ length: DISK_SECTORS }, (_, sector) => {
      if (image.type === "fixed") return true;
      const block = Math.floor(sector / image.sectorsPerBlock);
      return testBit(presentSectors(image, block), sector - block * image.sectorsPerBlock);
    });
    return { bytes, isDevice, held };
  } finally {
    image.close();
  }
}

export function versionOf(disk: SimulatedDisk, operation: Operation): Version {
  const { images, made } = operation;
  const paths = made !== undefined && disk.exists(made) && !images.includes(made)
    ? [...images, made]
    : images;
  return new Map(
    paths.flatMap((path) => {
      try {
        return [[path, contentOf(disk, operation, path)] as const];
      } catch (error) {
        // A device that will hold the new image holds garbage.
        if (path === made) return [];
        throw error;
      }
    }),
  );
}

/** Requires that an image shows, sector by sector, one of the versions of a range. */
export function requireVersion(
  disk: SimulatedDisk,
  operation: Operation,
  { path, range }: { path: string; range: Range },
): void {
  const { versions, from, to } = range;
  const found = (operation.contents ?? readDisk)(disk, path);
  const ever = versions.flatMap((version) => version.get(path) ?? []);
  const allowed = versions.slice(from, to + 1).flatMap((version) => version.get(path) ?? []);
  assert.ok(allowed.length > 0, `${path} has no contents to compare`);
  if (allowed.some(({ bytes }) => Buffer.compare(bytes, found) === 0)) return;
  for (let sector = 0; sector < DISK_SECTORS; sector++) {
    const at = sector * SECTOR;
    const part = Buffer.from(found.buffer, found.byteOffset + at, SECTOR);
    const possible = operation.isDiscarded?.(sector) ? ever : allowed;
    const same = possible.some(({ bytes }) => part.equals(bytes.subarray(at, at + SECTOR)));
    if (same) continue;
    const words = new DataView(found.buffer, found.byteOffset + at);
    const seen = `${words.getUint32(0, true)}, ${words.getUint32(4, true)}`;
    assert.fail(`Sector ${sector} of ${path} has other data: it starts with ${seen}`);
  }
}
