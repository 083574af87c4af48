/**
 * Operations of td-util on QCOW2 images.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { checkQcow2 } from "../../../../src/qcow2/check.ts";
import { compactQcow2 } from "../../../../src/qcow2/compact.ts";
import { createQcow2, type CreateQcow2Options } from "../../../../src/qcow2/create.ts";
import { Incompatible } from "../../../../src/qcow2/format/header.ts";
import { openQcow2, type Qcow2Image } from "../../../../src/qcow2/image/image.ts";
import { setBackingFile } from "../../../../src/qcow2/rebase.ts";
import { repairQcow2 } from "../../../../src/qcow2/repair.ts";
import { resizeQcow2 } from "../../../../src/qcow2/resize.ts";
import { Qcow2Reader } from "../../../support/qcow2_reader.ts";
import { stampedSectors } from "../../../support/sim.ts";
import { BLOCK, BLOCKS, DISK_BYTES, DISK_SECTORS, SECTOR } from "../images.ts";
import { serve } from "../live.ts";
import type { Operation } from "../operation.ts";

const PATH = "/c.qcow2";
const DEVICE = "/dev/vg/c.qcow2";
const NO_STAGES = { ended: (): void => {}, flushed: (): void => {} };
/** A size whose L1 table has more clusters, where clusters are small. */
const LARGE_BYTES = 4 << 20;

type Options = Omit<CreateQcow2Options, "sizeBytes">;

const KINDS: Readonly<Record<string, Options>> = {
  "QCOW2": { clusterBytes: 4096 },
  "QCOW2 with small clusters": { clusterBytes: 512, refcountBits: 64 },
  "QCOW2 with subclusters": { clusterBytes: 16384, extendedL2: true },
  "QCOW2 of version 2": { clusterBytes: 4096, version: 2 },
};

function makeRaw(disk: SimulatedDisk, path: string, stamp: number): void {
  const raw = disk.open(path, "create-new");
  raw.writeAt(new Uint8Array(stampedSectors(0, DISK_SECTORS, stamp)), 0);
  raw.close();
}

/** An image with all blocks but one, the last ones in front. */
function make(disk: SimulatedDisk, options: Options, path = PATH): void {
  if (options.backing !== undefined) makeRaw(disk, "/raw", 0x40);
  createQcow2(path, { storage: disk, sizeBytes: DISK_BYTES, ...options });
  serve(disk, { path, stages: NO_STAGES }, (served) => {
    for (let block = BLOCKS - 1; block > 0; block--) served.write(block * BLOCK, BLOCK);
  });
}

/** Overwrites data with zeros, in the clusters that are there. */
function clear(disk: SimulatedDisk, sector: number, count: number, path = PATH): void {
  const reader = new Qcow2Reader(disk, path);
  const places = Array.from({ length: count }, (_, i) => reader.placeOf(sector + i));
  reader.close();
  const file = disk.open(path, "write");
  for (const place of places) if (place >= 0) file.writeAt(new Uint8Array(SECTOR), place);
  file.close();
}

function look<Result>(
  disk: SimulatedDisk,
  see: (image: Qcow2Image) => Result,
  path = PATH,
): Result {
  const image = openQcow2(path, { storage: disk });
  try {
    return see(image);
  } finally {
    image.close();
  }
}

/** Requires that no cluster is free in front of another, and none is lost. */
function requireDense(disk: SimulatedDisk, path = PATH): void {
  const see = (image: Qcow2Image): void => {
    const { references, leakedClusters } = checkQcow2(image);
    assert.equal(leakedClusters, 0);
    assert.equal(references.end, references.used, "There is room between clusters");
    const { file, geometry: { clusterBytes } } = image;
    if (!file.isBlockDevice) assert.equal(file.sizeBytes(), references.end * clusterBytes);
  };
  look(disk, see, path);
}

function requireSize(disk: SimulatedDisk, sizeBytes: number): void {
  look(disk, (image) => {
    assert.equal(image.sizeBytes, sizeBytes);
    assert.equal(checkQcow2(image).leakedClusters, 0);
  });
}

function eachKind(
  name: string,
  operation: (options: Options) => Omit<Operation, "name" | "images" | "run"> & {
    run: (disk: SimulatedDisk) => void;
  },
): Operation[] {
  const backing = { name: "raw", format: "raw" };
  return Object.entries(KINDS).flatMap(([kind, options]) =>
    [options, { ...options, backing }].map((each: Options) => ({
      name: `${name}, ${kind}${each.backing === undefined ? "" : " on a raw image"}`,
      images: each.backing === undefined ? [PATH] : ["/raw", PATH],
      ...operation(each),
    }))
  );
}

/** Makes some counts and flags wrong, and marks the image as one that was not closed. */
function damage(disk: SimulatedDisk): void {
  const { block, entry, header } = look(disk, (image) => ({
    block: image.refcountTable.getUint32(4, false),
    entry: image.l1.getUint32(4, false) + image.geometry.l2EntryBytes,
    header: image.header,
  }));
  const file = disk.open(PATH, "write");
  file.writeAt(Uint8Array.of(0, 0, 0, 7, 0, 0), block + 4);
  file.writeAt(Uint8Array.of(0), entry);
  const features = Number(header.incompatibleFeatures) + Incompatible.Dirty;
  if (header.version >= 3) file.writeAt(Uint8Array.of(features), 79);
  file.close();
}

const REBASES: readonly [string, Options, string][] = [
  [
    "QCOW2 on a raw image",
    { clusterBytes: 4096, backing: { name: "raw", format: "raw" } },
    "/raw2",
  ],
  ["QCOW2 of version 2", {
    clusterBytes: 4096,
    version: 2,
    backing: { name: "raw", format: "raw" },
  }, "/raw2"],
  ["QCOW2 with small clusters", {
    clusterBytes: 512,
    backing: { name: "raw", format: "raw" },
  }, "/raw2"],
  ["QCOW2 with nothing below", { clusterBytes: 4096 }, "/raw2"],
  ["QCOW2 with a long name", {
    clusterBytes: 4096,
    backing: { name: "raw", format: "raw" },
  }, `/raw${"x".repeat(600)}`],
];

/** The operations of td-util on QCOW2 images. */
export const OFFLINE_QCOW2: readonly Operation[] = [
  ...eachKind("compact", (options) => ({
    make: (disk) => {
      make(disk, options);
      // The L1 table, the refcount table and its block are behind the data then.
      if (options.clusterBytes === 512 && options.backing === undefined) {
        resizeQcow2(PATH, { storage: disk, sizeBytes: LARGE_BYTES });
      }
      // Room that is free before, and not counted.
      serve(disk, { path: PATH, stages: NO_STAGES }, (served) => served.discard(4 * BLOCK, BLOCK));
      clear(disk, 2 * BLOCK, BLOCK);
      clear(disk, 5 * BLOCK, BLOCK);
    },
    run: (storage) => void compactQcow2(PATH, { storage }),
    verify: (disk) => requireDense(disk),
  })),
  {
    name: "compact, QCOW2 on a device",
    make: (disk) => {
      disk.addBlockDevice(DEVICE, { sizeBytes: 128 * 1024 });
      make(disk, { clusterBytes: 512, refcountBits: 64 }, DEVICE);
      clear(disk, 2 * BLOCK, 2 * BLOCK, DEVICE);
    },
    run: (storage) => void compactQcow2(DEVICE, { storage }),
    images: [DEVICE],
    verify: (disk) => requireDense(disk, DEVICE),
  },
  ...eachKind("resize smaller", (options) => ({
    make: (disk) => make(disk, options),
    run: (storage) => resizeQcow2(PATH, { storage, sizeBytes: 20 * SECTOR, shrink: true }),
    verify: (disk) => requireSize(disk, 20 * SECTOR),
  })),
  ...eachKind("resize larger", (options) => ({
    make: (disk) => {
      make(disk, { ...options });
      resizeQcow2(PATH, { storage: disk, sizeBytes: 40 * SECTOR, shrink: true });
      if (options.backing !== undefined) {
        const raw = disk.open("/raw", "write");
        raw.truncate(40 * SECTOR);
        raw.close();
      }
    },
    run: (storage) => resizeQcow2(PATH, { storage, sizeBytes: LARGE_BYTES }),
    verify: (disk) => requireSize(disk, LARGE_BYTES),
  })),
  ...eachKind("repair", (options) => ({
    make: (disk) => make(disk, options),
    damage,
    run: (storage) => void repairQcow2(PATH, { storage }),
    verify: (disk) => requireSize(disk, DISK_BYTES),
  })),
  ...REBASES.map(([kind, options, other]): Operation => ({
    name: `rebase -u, ${kind}`,
    make: (disk) => {
      if (options.backing === undefined) makeRaw(disk, "/raw", 0x40);
      make(disk, options);
      makeRaw(disk, other, 0x50);
    },
    run: (storage) => setBackingFile(PATH, { storage, parent: { type: "aio", path: other } }),
    images: ["/raw", other, PATH],
    verify: (disk) =>
      assert.deepEqual(look(disk, ({ backing }) => backing), {
        name: other.slice(1),
        format: "raw",
      }),
  })),
];
