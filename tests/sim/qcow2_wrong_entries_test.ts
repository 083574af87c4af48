/**
 * Entries of L2 tables that contradict the rest of a QCOW2 image: they fail the requests that need
 * them, and nothing that belongs to others is freed, overwritten or cut off.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { createQcow2, type CreateQcow2Options } from "../../src/qcow2/create.ts";
import { openQcow2, type Qcow2Image } from "../../src/qcow2/image/image.ts";
import type { Storage } from "../../src/files/storage.ts";
import { assertHolds, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1 << 20;
const CLUSTER = 65536;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

function writeWords(storage: Storage, path: string, offset: number, ...words: bigint[]): void {
  const file = storage.open(path, "write");
  const bytes = new Uint8Array(8 * words.length);
  for (const [i, word] of words.entries()) new DataView(bytes.buffer).setBigUint64(8 * i, word);
  file.writeAt(bytes, offset);
  file.sync();
  file.close();
}

function readWord(storage: Storage, path: string, offset: number): bigint {
  const file = storage.open(path, "read");
  const bytes = new Uint8Array(8);
  file.readAt(bytes, offset);
  file.close();
  return new DataView(bytes.buffer).getBigUint64(0);
}

/** Where structures of an image are. */
interface Places {
  readonly image: Qcow2Image;
  /** Byte at which the first L2 table begins. */
  readonly l2: number;
}

/** An image with data in its first cluster and in its cluster 8, and where its tables are. */
function makeImage(
  simulation: Simulation,
  options: Omit<CreateQcow2Options, "sizeBytes"> = {},
): Places {
  const { disk: storage } = simulation;
  createQcow2("/a", { storage, sizeBytes: 64 * MIB, ...options });
  const device = simulation.open("qcow2:/a");
  device.write(0, stampedSectors(0, 128, 1));
  device.write(1024, stampedSectors(1024, 128, 2));
  device.settle();
  device.close();
  const image = openQcow2("/a", { storage });
  image.close();
  return { image, l2: image.l1.getUint32(4, false) };
}

Deno.test("an entry with a flag and no place is no cluster of the header", () => {
  const simulation = new Simulation({ seed: 1 });
  const { l2 } = makeImage(simulation);
  writeWords(simulation.disk, "/a", l2 + 8, COPIED);
  const device = simulation.open("qcow2:/a");
  assertHolds(device, 128, 128, 0);
  const outcome = device.write(130, stampedSectors(130, 4, 3));
  device.settle();
  assert.equal(outcome.errno, 0);
  assertHolds(device, 128, 2, 0);
  assertHolds(device, 130, 4, 3);
  device.close();
  simulation.close();
});

Deno.test("subclusters with data in a cluster without place cannot be read or written", () => {
  for (const flag of [0n, COPIED]) {
    const simulation = new Simulation({ seed: 1 });
    const { l2 } = makeImage(simulation, { extendedL2: true });
    writeWords(simulation.disk, "/a", l2 + 16, flag, 0xffn);
    const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
    const reading = device.read(128, 8);
    device.settle();
    assert.equal(reading.errno, Errno.EIO);
    assertHolds(device, 0, 128, 1);
    const writing = device.write(200, stampedSectors(200, 4, 3));
    device.settle();
    assert.equal(writing.errno, Errno.EIO);
    assert.equal(readWord(simulation.disk, "/a", l2 + 16), flag);
    device.close();
    simulation.close();
  }
});

const DANGEROUS: readonly [string, (places: Places) => bigint][] = [
  ["a shared cluster on the L1 table", ({ image }) => image.header.l1TableOffset],
  ["zeros whose place is the refcount table", ({ image }) => image.header.refcountTableOffset | 1n],
  ["a compressed cluster on the L1 table", ({ image }) => image.header.l1TableOffset | COMPRESSED],
  ["a shared cluster that begins in another", ({ l2 }) => BigInt(l2) + 0x10200n],
];

for (const [name, entryOf] of DANGEROUS) {
  for (const change of ["write", "overwrite", "discard", "zero"] as const) {
    Deno.test(`${name}: a ${change} frees nothing that is in use`, () => {
      const simulation = new Simulation({ seed: 1, latencyMs: 2 });
      const { disk: storage } = simulation;
      const places = makeImage(simulation);
      writeWords(storage, "/a", places.l2 + 8, entryOf(places));
      const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
      if (change === "write") device.write(130, stampedSectors(130, 4, 3));
      else if (change === "overwrite") device.write(128, stampedSectors(128, 128, 3));
      else device[change](128, 128);
      device.settle();
      // The references of what was replaced are taken away after the next commit.
      for (let i = 0; i < 4; i++) {
        device.write(2048 + 256 * i, stampedSectors(2048 + 256 * i, 8, 9));
        device.settle();
      }
      assertHolds(device, 0, 128, 1);
      assertHolds(device, 1024, 128, 2);
      try {
        device.close();
      } catch (error) {
        assert.match(String(error), /Closing ended with error/);
      }
      const { image } = places;
      const l1 = readWord(storage, "/a", Number(image.header.l1TableOffset));
      assert.equal(l1, BigInt(places.l2) | COPIED);
      const table = readWord(storage, "/a", Number(image.header.refcountTableOffset));
      assert.notEqual(table, 0n);
      const again = simulation.open("qcow2:/a", { readOnly: true });
      assertHolds(again, 0, 128, 1);
      assertHolds(again, 1024, 128, 2);
      again.close();
      simulation.close();
    });
  }
}

Deno.test("a compressed cluster beyond all files is not that of the lower bits of its offset", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 2 });
  const { disk: storage } = simulation;
  const { l2 } = makeImage(simulation, { clusterBytes: 512 });
  const cluster = readWord(storage, "/a", l2 + 8) & ~COPIED;
  writeWords(storage, "/a", l2 + 24, COMPRESSED | 1n << 60n | cluster);
  const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
  const reading = device.read(3, 1);
  device.settle();
  assert.equal(reading.errno, Errno.EIO);
  const writing = device.write(3, stampedSectors(3, 1, 3));
  device.settle();
  assert.equal(writing.errno, 0);
  // Were the cluster of the lower bits free, one of these would get it.
  for (let i = 0; i < 40; i++) device.write(20_000 + i, stampedSectors(20_000 + i, 1, 9));
  device.settle();
  for (let i = 0; i < 40; i++) device.write(30_000 + i, stampedSectors(30_000 + i, 1, 9));
  device.settle();
  assertHolds(device, 0, 3, 1);
  assertHolds(device, 3, 1, 3);
  assertHolds(device, 4, 124, 1);
  device.close();
  simulation.close();
});

Deno.test("what is written behind the end of the file stays when the file grows, and at a close", () => {
  const simulation = new Simulation({ seed: 1 });
  const { l2 } = makeImage(simulation);
  // As in a file whose end is missing: the cluster is counted, and lies past the end.
  const far = 900;
  const { disk: storage } = simulation;
  writeWords(storage, "/a", l2 + 8, BigInt(far * CLUSTER) | COPIED);
  writeWords(storage, "/a", 2 * CLUSTER + 2 * (far - far % 4), 1n << BigInt(16 * (3 - far % 4)));
  for (const readOnly of [true, false]) {
    const reading = simulation.open("qcow2:/a", { readOnly });
    assertHolds(reading, 128, 128, 0);
    reading.close();
  }
  const device = simulation.open("qcow2:/a");
  device.write(130, stampedSectors(130, 4, 3));
  device.settle();
  for (let i = 0; i < 100; i++) {
    device.write(2048 + 128 * i, stampedSectors(2048 + 128 * i, 8, 9));
    device.settle();
  }
  assertHolds(device, 130, 4, 3);
  device.close();
  const again = simulation.open("qcow2:/a");
  assertHolds(again, 130, 4, 3);
  assertHolds(again, 2048 + 128 * 99, 8, 9);
  again.close();
  simulation.close();
});

Deno.test("what is written behind the end that the file had stays when new clusters lie in front", () => {
  const simulation = new Simulation({ seed: 1 });
  const { l2 } = makeImage(simulation);
  // The file is made longer than its new clusters take: this one is in that room.
  const near = 30;
  const { disk: storage } = simulation;
  writeWords(storage, "/a", l2 + 8, BigInt(near * CLUSTER) | COPIED);
  writeWords(storage, "/a", 2 * CLUSTER + 2 * (near - near % 4), 1n << BigInt(16 * (3 - near % 4)));
  const device = simulation.open("qcow2:/a");
  device.write(2048, stampedSectors(2048, 8, 9));
  device.settle();
  device.write(130, stampedSectors(130, 4, 3));
  device.settle();
  assertHolds(device, 130, 4, 3);
  device.close();
  const again = simulation.open("qcow2:/a");
  assertHolds(again, 130, 4, 3);
  assertHolds(again, 2048, 8, 9);
  again.close();
  simulation.close();
});

Deno.test("an L2 table behind the end of the file stays unreadable when the file grows", () => {
  const simulation = new Simulation({ seed: 1 });
  const { disk: storage } = simulation;
  createQcow2("/a", { storage, sizeBytes: 2048 * MIB });
  const image = openQcow2("/a", { storage });
  image.close();
  // The file is made longer than its new clusters take: the table is in that room.
  const near = 30;
  const offset = Number(image.header.l1TableOffset) + 8;
  const retry = { timeoutMs: 0 };
  const sector = 1024 * 1024 + 4096;
  for (const flag of [COPIED, 0n]) {
    writeWords(storage, "/a", offset, BigInt(near * CLUSTER) | flag);
    const device = simulation.open("qcow2:/a", { retry });
    const grown = device.write(0, stampedSectors(0, 8, 9));
    device.settle();
    const outcomes = [
      device.read(sector, 8),
      device.write(sector, stampedSectors(sector, 8, 5)),
      device.discard(sector, 128),
      device.status(sector, 8),
    ];
    device.settle();
    assert.deepEqual([grown, ...outcomes].map(({ errno }) => errno), [
      0,
      ...Array(4).fill(Errno.EIO),
    ]);
    assertHolds(device, 0, 8, 9);
    device.close();
    assert.equal(readWord(storage, "/a", offset), BigInt(near * CLUSTER) | flag);
  }
  simulation.close();
});

Deno.test("an image with a refcount block behind the end of the file gets no new clusters", () => {
  const simulation = new Simulation({ seed: 1 });
  const { disk: storage } = simulation;
  const clusterBytes = 512;
  createQcow2("/a", { storage, sizeBytes: MIB, clusterBytes });
  const device = simulation.open("qcow2:/a");
  device.write(0, stampedSectors(0, 300, 1));
  device.settle();
  device.close();
  const image = openQcow2("/a", { storage });
  const end = image.file.sizeBytes() / clusterBytes;
  image.close();
  const offset = Number(image.header.refcountTableOffset);
  const secondBlock = Number(readWord(storage, "/a", offset + 8));
  const near = end + 40 - end % 4;
  assert.ok(secondBlock > 0 && near < 512);
  writeWords(storage, "/a", secondBlock + 2 * (near - 256), 1n << 48n);
  writeWords(storage, "/a", offset, BigInt(near * clusterBytes));
  const again = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
  const inPlace = again.write(0, stampedSectors(0, 8, 2));
  again.settle();
  assert.equal(inPlace.errno, 0);
  for (let sector = 400; sector < 700; sector++) {
    const outcome = again.write(sector, stampedSectors(sector, 1, 3));
    again.settle();
    assert.equal(outcome.errno, Errno.EIO);
  }
  assertHolds(again, 0, 8, 2);
  assertHolds(again, 8, 292, 1);
  again.close();
  // It is so whenever it is opened: the file has not become longer.
  const after = openQcow2("/a", { storage });
  assert.equal(after.file.sizeBytes(), end * clusterBytes);
  after.close();
  assert.match(simulation.log.join("\n"), /lacks reference counts behind its end/);
  simulation.close();
});

Deno.test("clusters of a data file are at the place that they have in the disk", () => {
  const simulation = new Simulation({ seed: 1 });
  const { disk: storage } = simulation;
  storage.open("/data", "create-new").close();
  const { l2 } = makeImage(simulation, { dataFile: { name: "data", raw: false } });
  writeWords(storage, "/a", l2 + 8, BigInt(8 * CLUSTER) | COPIED);
  const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
  const reading = device.read(128, 8);
  const writing = device.write(128, stampedSectors(128, 8, 7));
  device.settle();
  assert.deepEqual([reading.errno, writing.errno], [Errno.EIO, Errno.EIO]);
  assertHolds(device, 1024, 128, 2);
  device.close();
  simulation.close();
});

Deno.test("an L2 table that begins within a cluster is not read", () => {
  const simulation = new Simulation({ seed: 1 });
  const { image, l2 } = makeImage(simulation);
  writeWords(simulation.disk, "/a", Number(image.header.l1TableOffset), BigInt(l2 + 4096) | COPIED);
  const device = simulation.open("qcow2:/a", { readOnly: true, retry: { timeoutMs: 0 } });
  const outcome = device.read(0, 8);
  const status = device.status(0, 8);
  device.settle();
  assert.deepEqual([outcome.errno, status.errno], [Errno.EIO, Errno.EIO]);
  device.close();
  simulation.close();
});

for (const kind of ["file", "device"] as const) {
  Deno.test(`a data file on a ${kind} as long as the disk, which ends within a cluster`, () => {
    const simulation = new Simulation({ seed: 1 });
    const { disk: storage } = simulation;
    const sectors = 1000;
    if (kind === "device") storage.addBlockDevice("/data", { sizeBytes: sectors * 512 });
    else storage.open("/data", "create-new").close();
    const dataFile = { name: "data", raw: false };
    createQcow2("/a", { storage, sizeBytes: sectors * 512, dataFile });
    const device = simulation.open("qcow2:/a");
    const outcome = device.write(900, stampedSectors(900, 10, 3));
    device.settle();
    assert.equal(outcome.errno, 0);
    assertHolds(device, 896, 4, 0);
    assertHolds(device, 900, 10, 3);
    assertHolds(device, 910, 90, 0);
    device.close();
    const file = storage.open("/data", "read");
    assert.equal(file.sizeBytes(), sectors * 512);
    file.close();
    simulation.close();
  });
}

Deno.test("a data file that is shorter than the disk reads as zeros behind its end", () => {
  const simulation = new Simulation({ seed: 1 });
  const { disk: storage } = simulation;
  storage.open("/data", "create-new").close();
  const { image } = makeImage(simulation, { dataFile: { name: "data", raw: false } });
  assert.ok(image.dataFile);
  const file = storage.open("/data", "write");
  file.truncate(10 * 512 + 100);
  file.close();
  for (const readOnly of [true, false]) {
    const device = simulation.open("qcow2:/a", { readOnly });
    assertHolds(device, 0, 10, 1);
    assertHolds(device, 12, 100, 0);
    assertHolds(device, 1024, 128, 0);
    device.close();
  }
  simulation.close();
});
