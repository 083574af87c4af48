/**
 * Hostile images of QCOW, QCOW2 and VHDX: fields and table entries with numbers at which sizes and
 * offsets go wrong, with the right checksums or not, files that are cut, bytes of any value. Each is
 * checked, read and written through a disk. A call ends with a `SystemError` that says what failed, no
 * request hangs, and what is opened for reading is not changed.
 *
 * @module
 */
import assert from "node:assert/strict";
import { SystemError } from "../../../../ffi/errno.ts";
import { checkQcow } from "../../../../src/qcow/check.ts";
import { encodeHeader, l1Entries, type QcowHeader } from "../../../../src/qcow/format.ts";
import { checkQcow2 } from "../../../../src/qcow2/check.ts";
import { createQcow2 } from "../../../../src/qcow2/create.ts";
import { openQcow2 } from "../../../../src/qcow2/image/image.ts";
import { openVhdx } from "../../../../src/vhdx/image.ts";
import type { Random } from "../../../../src/testing/random.ts";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { Simulation, stampedSectors } from "../../../support/sim.ts";
import { getFile, putFile } from "../../../support/vhd.ts";
import { MadeVhdx } from "../../../support/vhdx.ts";
import type { SearchContext } from "../../search.ts";
import type { Target } from "../target.ts";
import { anyBytes, hostileLong, hostileWord, pick } from "../wire/choose.ts";

const CASES_OF_BATCH = 24;
const DISK_SECTORS = 2048;
const DISK_BYTES = DISK_SECTORS * 512;
const PATH = "/hostile";
const MOST_L1_BYTES = 65536;

/** A range of a file in which numbers are. */
interface Range {
  readonly at: number;
  readonly length: number;
  /** Bytes of a number, and whether the lower byte comes first. */
  readonly width: 4 | 8;
  readonly isLittle: boolean;
}

/** A good image, and what is hostile in it. */
interface World {
  readonly name: string;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly ranges: readonly Range[];
  readonly canWrite: boolean;
  /** Writes checksums anew. */
  seal(bytes: Uint8Array<ArrayBuffer>): void;
  /** Looks for faults. */
  check(storage: SimulatedDisk): void;
}

/** What a disk of a driver has written, as the bytes of its file. */
function written(name: string, make: (storage: SimulatedDisk) => void): Uint8Array<ArrayBuffer> {
  const simulation = new Simulation({ seed: 1 });
  make(simulation.disk);
  const device = simulation.open(name);
  for (const [sector, count] of [[0, 40], [100, 1], [900, 300], [DISK_SECTORS - 3, 3]]) {
    device.write(sector, stampedSectors(sector, count, 5));
    device.settle();
  }
  device.close();
  const bytes = getFile(simulation.disk, PATH);
  simulation.close();
  return bytes;
}

function qcowWorld(clusterBits: number, l2Bits: number): World {
  const header: QcowHeader = {
    backingOffsetBytes: 0,
    backingLengthBytes: 0,
    mtime: 0,
    sizeBytes: DISK_BYTES,
    clusterBits,
    l2Bits,
    cryptMethod: 0,
    l1OffsetBytes: 48,
  };
  const tables = 8 * l1Entries(header);
  const bytes = written(`qcow:${PATH}`, (storage) => {
    const front = new Uint8Array(48 + tables);
    front.set(encodeHeader(header));
    putFile(storage, PATH, front);
  });
  const view = new DataView(bytes.buffer);
  const l2 = Array.from({ length: tables / 8 }, (_, i) => Number(view.getBigUint64(48 + 8 * i)))
    .filter((at) => at > 0).map((at) => numbers(at, 8 * 2 ** l2Bits, 8));
  return {
    name: `qcow:${PATH}`,
    bytes,
    ranges: [numbers(0, 48, 4), numbers(24, 8, 8), numbers(40, 8 + tables, 8), ...l2],
    canWrite: true,
    seal: () => {},
    check: (storage) => void checkQcow(PATH, { storage }),
  };
}

function numbers(at: number, length: number, width: 4 | 8, isLittle = false): Range {
  return { at, length, width, isLittle };
}

function qcow2World(clusterBytes: number): World {
  const bytes = written(
    `qcow2:${PATH}`,
    (storage) => createQcow2(PATH, { storage, sizeBytes: DISK_BYTES, clusterBytes }),
  );
  const front = numbers(0, 104, 4);
  // Tables lie at the start and, those of data, between clusters of data.
  const tables = numbers(clusterBytes, Math.min(bytes.length, 6 * clusterBytes) - clusterBytes, 8);
  return {
    name: `qcow2:${PATH}`,
    bytes,
    ranges: [front, numbers(24, 40, 8), tables],
    canWrite: true,
    seal: () => {},
    check(storage): void {
      const image = openQcow2(PATH, { storage });
      try {
        // A table of a million entries takes seconds, and is no other case.
        if (image.l1.byteLength <= MOST_L1_BYTES) checkQcow2(image);
      } finally {
        image.close();
      }
    },
  };
}

function vhdxWorld(hasParent: boolean): World {
  const guids = [1, 2].map((n) => `aaaaaaaa-0000-4000-8000-00000000000${n}`);
  const sectors = new Map([3, 700, 1999].map((sector) => [sector, stampedSectors(sector, 1, 5)]));
  const image = new MadeVhdx({
    sizeBytes: DISK_BYTES,
    blockBytes: 1 << 20,
    dataGuid: guids[1],
    sectors,
    parent: hasParent ? { path: "base.vhdx", dataGuid: guids[0] } : undefined,
  });
  const page = image.bytes.slice(image.batAt, image.batAt + 4096);
  image.leaveInLog([{ at: image.batAt, page }]);
  const { batAt, metadataAt, logAt } = image;
  const little = (at: number, length: number, width: 4 | 8): Range =>
    numbers(at, length, width, true);
  return {
    name: `vhdx:${PATH}`,
    bytes: image.bytes,
    ranges: [
      little(131072, 80, 4),
      little(196608, 80, 4),
      little(metadataAt, 256, 4),
      little(metadataAt + 65536, 300, 4),
      little(batAt, 32, 8),
      little(logAt, 128, 4),
    ],
    canWrite: false,
    seal(bytes): void {
      image.bytes = bytes;
      for (const [at, length] of [[131072, 4096], [196608, 65536], [logAt, 8192]]) {
        image.seal(at, length);
      }
    },
    check: (storage) => openVhdx(PATH, { storage }).close(),
  };
}

/** Sets numbers, puts any bytes, or cuts the file. */
function mutate(random: Random, { bytes, ranges, seal }: World): Uint8Array<ArrayBuffer> {
  const copy = bytes.slice();
  const view = new DataView(copy.buffer);
  const limits = [0, 512, 4096, 65536, 1 << 20, bytes.length, DISK_BYTES];
  for (let left = 1 + random.below(3); left > 0; left--) {
    const { at, length, width, isLittle } = pick(random, ranges);
    const where = at + random.below(Math.floor(length / width)) * width;
    if (where + width > copy.length) continue;
    if (random.chance(0.15)) copy.set(anyBytes(random, width), where);
    else if (width === 4) view.setUint32(where, hostileWord(random, limits), isLittle);
    else {
      const flags = random.chance(0.3) ? 1n << 63n : 0n;
      view.setBigUint64(where, hostileLong(random, limits) | flags, isLittle);
    }
  }
  if (random.chance(0.8)) seal(copy);
  return random.chance(0.1) ? copy.slice(0, random.below(copy.length)) : copy;
}

/** Runs a call that may refuse; any other error is a finding. */
function mayRefuse(call: () => void): boolean {
  try {
    call();
    return true;
  } catch (error) {
    if (!(error instanceof SystemError) || error.errno <= 0) throw error;
    assert.match(error.message, /^Cannot /);
    return false;
  }
}

/** Reads parts of a disk, and asks for its extents. */
function readSome(simulation: Simulation, world: World): void {
  const before = getFile(simulation.disk, PATH);
  mayRefuse(() => {
    const device = simulation.open(world.name, { readOnly: true });
    const { sectors } = device.vbd;
    for (const at of [0, 90, 900, 2000, sectors - 8]) {
      if (at < 0 || at + 8 > sectors) continue;
      device.read(at, 8);
      device.status(at, Math.min(sectors - at, 4096));
    }
    device.settle();
    device.close();
  });
  assert.deepEqual(getFile(simulation.disk, PATH), before, "an image that was read has changed");
}

/** Writes to a disk, and reads that back. Returns whether all of it went well. */
function writeSome(simulation: Simulation, { name }: World, random: Random): void {
  mayRefuse(() => {
    const device = simulation.open(name);
    const { sectors } = device.vbd;
    for (let i = 0; i < 4 && sectors > 0; i++) {
      const count = 1 + random.below(40);
      const sector = random.below(Math.min(sectors, DISK_SECTORS));
      if (sector + count > sectors) continue;
      device.write(sector, stampedSectors(sector, count, 9));
      device.settle();
      device.read(sector, count);
    }
    device.flush();
    device.settle();
    device.close();
  });
}

let worlds: World[] | null = null;

export const target: Target = {
  run(random: Random, context: SearchContext): number {
    worlds ??= [
      ...[[12, 9], [9, 6], [16, 6]].map(([clusterBits, l2Bits]) => qcowWorld(clusterBits, l2Bits)),
      ...[512, 4096, 65536].map(qcow2World),
      ...[false, true].map(vhdxWorld),
    ];
    for (let i = 0; i < CASES_OF_BATCH; i++) {
      const world = pick(random, worlds);
      const simulation = new Simulation({ seed: random.bits() });
      const bytes = mutate(random, world);
      context.trace(`${world.name}, ${bytes.length} bytes`);
      putFile(simulation.disk, PATH, bytes);
      mayRefuse(() => world.check(simulation.disk));
      readSome(simulation, world);
      if (world.canWrite) writeSome(simulation, world, random);
      simulation.close();
    }
    return CASES_OF_BATCH;
  },
};
