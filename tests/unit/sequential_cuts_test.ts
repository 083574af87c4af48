/**
 * QCOW2s and VHDs that are written from start to end: they are whole after a power cut that follows the end,
 * and a disk that is full from any step on is reported, with nothing left open.
 */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import type { SequentialImage } from "../../src/images/kind.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { SequentialQcow2 } from "../../src/qcow2/sequential.ts";
import { Random } from "../../src/testing/random.ts";
import { changesOnly, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { SequentialVhd } from "../../src/vhd/sequential.ts";
import { Qcow2Reader } from "../support/qcow2_reader.ts";

const SECTOR_BYTES = 512;
const DISK_BYTES = 5 << 20;
/** Sectors that are written: of one block or cluster, and of others. */
const SECTORS = [0, 1, 7, 130, 4096, 4097, 8191, 10_239];

interface Case {
  readonly name: string;
  make(storage: SimulatedDisk): SequentialImage;
  /** The first byte of each sector; refuses an image that is not whole. */
  read(storage: SimulatedDisk): number[];
}

const CASES: readonly Case[] = [
  {
    name: "qcow2",
    make: (storage) =>
      new SequentialQcow2("/a", { storage, sizeBytes: DISK_BYTES, clusterBytes: 4096 }),
    read(storage): number[] {
      const image = openQcow2("/a", { storage });
      const { errors, leakedClusters } = checkQcow2(image);
      image.close();
      assert.deepEqual([errors, leakedClusters], [[], 0]);
      const reader = new Qcow2Reader(storage, "/a");
      const byte = new Uint8Array(1);
      const bytes = SECTORS.map((sector) => {
        reader.image.file.readAt(byte, reader.placeOf(sector));
        return byte[0];
      });
      reader.image.close();
      return bytes;
    },
  },
  {
    name: "vhd",
    make: (storage) => new SequentialVhd("/a", { storage, sizeBytes: DISK_BYTES }),
    read(storage): number[] {
      const { valid, findings } = checkImage("/a", { storage, checkData: true });
      assert.deepEqual([valid, findings], [true, []]);
      const chain = openChain("/a", { storage, readOnly: true });
      const sector = new Uint8Array(SECTOR_BYTES);
      const bytes = SECTORS.map((at) => {
        readRange(chain, sector, at * SECTOR_BYTES);
        return sector[0];
      });
      chain.close();
      return bytes;
    },
  },
];

function writeAll(image: SequentialImage): void {
  try {
    for (const [i, sector] of SECTORS.entries()) {
      image.write(new Uint8Array(SECTOR_BYTES).fill(i + 1), sector * SECTOR_BYTES);
    }
  } catch (error) {
    image.abandon();
    throw error;
  }
  image.finish();
}

for (const { name, make, read } of CASES) {
  Deno.test(`${name}: an image that was written from start to end outlasts a power cut`, () => {
    using storage = new SimulatedDisk({ seed: 3, powerCuts: true });
    writeAll(make(storage));
    const random = new Random(4);
    for (let i = 0; i < 20; i++) {
      using photo = storage.photograph(random, { powerCuts: true });
      assert.deepEqual(read(photo), SECTORS.map((_, n) => n + 1));
    }
  });

  Deno.test(`${name}: a disk that is full from any step on is reported`, () => {
    let steps = 0;
    for (let failAt = 0; failAt <= steps; failAt++) {
      using storage = new SimulatedDisk({ seed: 5, powerCuts: true });
      let step = 0;
      storage.beforeOperation = changesOnly(() => step++ >= failAt ? Errno.ENOSPC : 0);
      try {
        writeAll(make(storage));
        assert.ok(step <= failAt, `the error of step ${failAt} of ${step} was not told`);
      } catch (error) {
        if (!(error instanceof SystemError)) throw error;
        assert.equal(error.errno, Errno.ENOSPC);
      }
      storage.beforeOperation = null;
      steps = Math.max(steps, step);
    }
    assert.ok(steps > 10, `${steps} steps`);
  });
}
