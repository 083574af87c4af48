/**
 * Operations of served disks.
 *
 * @module
 */
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { DiskKey, hashKey, storeKeyhash } from "../../../../src/vhd/key.ts";
import { createQcow2, type CreateQcow2Options } from "../../../../src/qcow2/create.ts";
import { hasLibcrypto } from "../../../support/libcrypto.ts";
import { stampedSectors } from "../../../support/sim.ts";
import {
  BLOCK,
  CHILD_PARTS,
  DISK_BYTES,
  DISK_SECTORS,
  makeBases,
  makeChain,
  makeEmptyChild,
  makeRawChain,
  namesIn,
  type Place,
} from "../images.ts";
import { serve, type Served } from "../live.ts";
import type { Operation, Stages } from "../operation.ts";

/** What is done with a served child; see `makeChain` for what it and its parent hold. */
const WORK: Readonly<Record<string, (disk: Served) => void>> = {
  "first write to a block, in part": (disk) => {
    disk.write(4 * BLOCK + 2, 3);
    disk.flush();
  },
  "first write to a block, whole": (disk) => {
    disk.write(5 * BLOCK, BLOCK);
    disk.flush();
  },
  "first write to a block of the parent": (disk) => {
    disk.write(2, 3);
    disk.flush();
  },
  "write to an allocated block": (disk) => {
    disk.write(3 * BLOCK + 1, 4);
    disk.flush();
    disk.write(3 * BLOCK + 3, 4);
  },
  "bitmap update": (disk) => {
    disk.write(2 * BLOCK, 2);
    disk.write(BLOCK + 6, 1);
    disk.flush();
  },
  "last bits of a block": (disk) => {
    disk.start(2 * BLOCK, 4);
    disk.start(2 * BLOCK + 6, 2);
    disk.settle();
  },
  "growth by several blocks": (disk) => {
    for (const block of [0, 5, 4]) disk.start(block * BLOCK + 1, 2);
    disk.settle();
    disk.flush();
  },
  "FUA": (disk) => {
    disk.writeThrough(4 * BLOCK, 2);
    disk.writeThrough(3 * BLOCK + 2, 2);
  },
  "flush": (disk) => {
    disk.write(3 * BLOCK, 2);
    disk.write(4 * BLOCK, 2);
    disk.flush();
    disk.write(3 * BLOCK, 1);
  },
  "close after growth": (disk) => disk.write(4 * BLOCK, 2),
  "discard": (disk) => {
    disk.discard(3 * BLOCK, BLOCK);
    disk.discard(BLOCK + 1, 4);
    disk.flush();
    disk.write(3 * BLOCK + 2, 2);
  },
  "zero": (disk) => {
    disk.zero(3 * BLOCK + 2, 4);
    disk.zero(2, 4);
    disk.flush();
  },
  "fill": (disk) => {
    disk.fill(4 * BLOCK, BLOCK);
    disk.fill(2 * BLOCK, 3);
    disk.flush();
  },
};

function isDiscarded(sector: number): boolean {
  return (sector >= 3 * BLOCK && sector < 4 * BLOCK) || (sector > BLOCK && sector < BLOCK + 5);
}

function more(what: string): Partial<Operation> {
  return what === "discard" ? { isDiscarded } : {};
}

function served(place: Place): Operation[] {
  const { base, child } = namesIn(place);
  return Object.entries(WORK).map(([what, work]) => ({
    name: `${what}, ${place}`,
    make: (disk) => makeChain(disk, place),
    run: (disk, stages) => serve(disk, { path: child, stages }, work),
    images: [base, child],
    ...more(what),
  }));
}

const KEY = Uint8Array.from({ length: 64 }, (_, i) => i * 7 + 1);
const NO_STAGES = { ended: (): void => {}, flushed: (): void => {} };

/** The chain of `makeChain`, with a child that is encrypted. */
function makeEncrypted(disk: SimulatedDisk): void {
  makeBases(disk, "files");
  makeEmptyChild(disk, "files");
  const { child } = namesIn("files");
  const nonce = new Uint8Array(32).fill(9);
  storeKeyhash(child, { storage: disk, nonce, hash: hashKey(KEY, nonce) });
  serve(disk, { path: child, key: new DiskKey(KEY), stages: NO_STAGES }, (served) => {
    for (const [sector, count] of CHILD_PARTS) served.write(sector, count);
  });
}

/** The data of an encrypted image is compared as it is on disk. */
function encrypted(): Operation[] {
  const { base, child } = namesIn("files");
  return Object.entries(WORK).map(([what, work]) => ({
    name: `${what}, encrypted`,
    make: makeEncrypted,
    run: (disk, stages) => serve(disk, { path: child, key: new DiskKey(KEY), stages }, work),
    images: [base, child],
    ...more(what),
  }));
}

const QCOW2 = "/c.qcow2";

/** QCOW2 images whose clusters are as large as a block, smaller, and larger with subclusters. */
const QCOW2_KINDS: Readonly<Record<string, Omit<CreateQcow2Options, "sizeBytes">>> = {
  "QCOW2": { clusterBytes: 4096 },
  "QCOW2 with small clusters": { clusterBytes: 512, refcountBits: 64 },
  "QCOW2 with subclusters": { clusterBytes: 16384, extendedL2: true },
  "QCOW2 of version 2": { clusterBytes: 4096, version: 2 },
};

function makeQcow2(disk: SimulatedDisk, options: Omit<CreateQcow2Options, "sizeBytes">): void {
  const { backing } = options;
  if (backing !== undefined) {
    const raw = disk.open("/raw", "create-new");
    raw.writeAt(new Uint8Array(stampedSectors(0, DISK_SECTORS, 0x40)), 0);
    raw.close();
  }
  createQcow2(QCOW2, { storage: disk, sizeBytes: DISK_BYTES, ...options });
  serve(disk, { path: QCOW2, stages: NO_STAGES }, (served) => {
    for (const [sector, count] of CHILD_PARTS) served.write(sector, count);
  });
}

/** The same work on QCOW2 images, alone and on a raw image. */
function qcow2(): Operation[] {
  const backing = { name: "raw", format: "raw" };
  return Object.entries(QCOW2_KINDS).flatMap(([kind, options]) =>
    [options, { ...options, backing }].flatMap((each) =>
      Object.entries(WORK).map(([what, work]) => ({
        name: `${what}, ${kind}${"backing" in each ? " on a raw image" : ""}`,
        make: (disk: SimulatedDisk) => makeQcow2(disk, each),
        run: (disk: SimulatedDisk, stages: Stages) => serve(disk, { path: QCOW2, stages }, work),
        images: "backing" in each ? ["/raw", QCOW2] : [QCOW2],
        ...more(what),
      }))
    )
  );
}

function snapshotOf(rename: boolean): Operation {
  const { base, child, made } = namesIn("files");
  const run = (disk: SimulatedDisk, stages: Stages): void =>
    serve(disk, { path: child, stages }, (served) => {
      served.write(4 * BLOCK, 2);
      served.snapshot(made, rename);
      served.write(4 * BLOCK + 1, 2);
    });
  return {
    name: `snapshot of a served disk${rename ? ", whose image gets another name" : ""}`,
    make: (disk) => makeChain(disk, "files"),
    run,
    // What is left of an interrupted snapshot is removed by hand. The old image with two names is
    // not left over.
    again: rename ? null : (disk, stages) => {
      if (disk.exists(made)) disk.remove(made);
      run(disk, stages);
    },
    images: [base, child],
    made,
  };
}

/** The operations of served disks. */
export const SERVED: readonly Operation[] = [
  ...served("files"),
  ...served("devices"),
  ...(hasLibcrypto() ? encrypted() : []),
  ...qcow2(),
  {
    name: "first write to a block, in front of a raw parent",
    make: makeRawChain,
    run: (disk, stages) =>
      serve(disk, { path: namesIn("files").child, stages }, (served) => {
        served.write(4 * BLOCK + 2, 3);
        served.flush();
      }),
    images: ["/raw", namesIn("files").child],
  },
  snapshotOf(false),
  snapshotOf(true),
];
