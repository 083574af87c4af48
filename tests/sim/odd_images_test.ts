/**
 * Unusual images that must be served: small blocks, deep chains of such images, files that end
 * within a block, wrong batmaps.
 *
 * @module
 */
import assert from "node:assert/strict";
import { RequestKind } from "../../src/vbd/slots.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { PLAT_CODE_W2RU } from "../../src/vhd/format/locator.ts";
import { writeBatmap } from "../../src/vhd/image/batmap_writer.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { putForeignImage } from "../support/foreign_vhd.ts";
import { Simulation } from "../support/sim.ts";

const MIB = 1 << 20;
const SECTOR = 512;

Deno.test("requests of any length and kind end on an image of 4 KiB blocks", () => {
  const simulation = new Simulation({ seed: 3 });
  const storage = simulation.disk;
  const sizeBytes = 64 * MIB;
  putForeignImage(storage, "/small.vhd", {
    sizeBytes,
    blockSizeBytes: 4096,
    blocks: Object.fromEntries(Array.from({ length: 4000 }, (_, i) => [i * 4, "x"])),
  });
  const device = simulation.open("vhd:/small.vhd");
  const sectors = sizeBytes / SECTOR;
  const before = device.read(8 * 4, 8);
  device.settle();
  const zeroed = [device.zero(0, sectors), device.discard(0, sectors), device.read(0, 512)];
  device.settle();
  assert.deepEqual(before.data, new Uint8Array(4096).fill(120));
  assert.deepEqual(zeroed.map(({ errno }) => errno), [0, 0, 0]);
  const written = device.write(3, new Uint8Array(512 * SECTOR).map((_, i) => i >> 9));
  device.settle();
  const read = device.read(3, 512);
  device.settle();
  assert.equal(written.errno, 0);
  assert.deepEqual(read.data, new Uint8Array(512 * SECTOR).map((_, i) => i >> 9));
  device.close();
  assert.equal(checkImage("/small.vhd", { storage }).valid, true);
  simulation.close();
});

Deno.test("a read of all lengths ends on a chain of 12 images of 4 KiB blocks, each with a part of it", () => {
  const simulation = new Simulation({ seed: 4 });
  const storage = simulation.disk;
  const depth = 12;
  let uuid: Uint8Array | null = null;
  const letters = "abcdefghijklmnopqrstuvwxyz";
  for (let i = 0; i < depth; i++) {
    uuid = putForeignImage(storage, `/${i}`, {
      sizeBytes: 1 * MIB,
      blockSizeBytes: 4096,
      blocks: { [i]: letters[i % 26], [i + 1]: letters[i % 26] },
      ...(uuid === null ? {} : {
        parent: { uuid, name: `${i - 1}` },
        locators: [{ code: PLAT_CODE_W2RU, path: `./${i - 1}` }],
      }),
    });
  }
  const device = simulation.open(`vhd:/${depth - 1}`);
  const chain = openChain(`/${depth - 1}`, { storage });
  for (const count of [1, 8, 65, 256, 511, 512]) {
    const outcomes = Array.from({ length: 8 }, (_, i) => device.read(i * 3, count));
    device.settle();
    for (const [i, { errno, data }] of outcomes.entries()) {
      const wanted = new Uint8Array(count * SECTOR);
      readRange(chain, wanted, i * 3 * SECTOR);
      assert.equal(errno, 0);
      assert.deepEqual(data, wanted, `${count} sectors at ${i * 3}`);
    }
  }
  chain.close();
  device.close();
  simulation.close();
});

Deno.test("no step of a request takes more of the disk queue than its share", () => {
  const simulation = new Simulation({ seed: 5 });
  const storage = simulation.disk;
  putForeignImage(storage, "/small.vhd", { sizeBytes: 8 * MIB, blockSizeBytes: 4096 });
  const device = simulation.open("vhd:/small.vhd");
  const { queue } = simulation.context;
  let most = 0;
  const reserve = queue.reserve.bind(queue);
  queue.reserve = (operations: number, held?: number): boolean => {
    most = Math.max(most, operations);
    return reserve(operations, held);
  };
  const kinds = [device.zero(0, 16384), device.discard(0, 16384), device.read(0, 512)];
  device.settle();
  assert.deepEqual(kinds.map(({ errno }) => errno), [0, 0, 0]);
  assert.ok(most > 0 && most <= queue.capacity / 16, `${most} operations`);
  assert.equal(RequestKind.Read, 0);
  device.close();
  simulation.close();
});

/** Removes `cutBytes` bytes from the end of an image's data, and its footer. */
function cut(simulation: Simulation, path: string, cutBytes: number): void {
  const file = simulation.disk.open(path, "write");
  file.truncate(file.sizeBytes() - SECTOR - cutBytes);
  file.close();
}

Deno.test("a file that ends within its last block reads as zeros from there on, served and offline", () => {
  for (const cutBytes of [512, 65536, 1000, 2 * MIB - 4096, 2 * MIB]) {
    for (const readOnly of [true, false]) {
      const simulation = new Simulation({ seed: cutBytes });
      const storage = simulation.disk;
      createDynamic("/a.vhd", { storage, sizeBytes: 4 * MIB });
      const image = openVhd("/a.vhd", { storage, readOnly: false });
      writeRange(image, new Uint8Array(2 * MIB).fill(0x44), 0);
      finishWriting(image);
      image.close();
      cut(simulation, "/a.vhd", cutBytes);
      const wanted = new Uint8Array(2 * MIB).fill(0x44, 0, 2 * MIB - cutBytes);
      const { valid, findings } = checkImage("/a.vhd", { storage, ignoreFooter: true });
      assert.equal(valid, true);
      assert.match(findings[0].message, new RegExp(`ends ${cutBytes} bytes before the end of its`));
      const offline = new Uint8Array(2 * MIB);
      readRange(openChain("/a.vhd", { storage }), offline, 0);
      assert.deepEqual(offline, wanted);
      const device = simulation.open("vhd:/a.vhd", { readOnly });
      for (const sector of [0, 1500, 3600, 3840, 3968, 4095 - 129, 4096 - 512]) {
        const count = Math.min(512, 4096 - sector);
        const outcome = device.read(sector, count);
        device.settle();
        assert.equal(outcome.errno, 0);
        assert.deepEqual(outcome.data, wanted.slice(sector * SECTOR, (sector + count) * SECTOR));
      }
      device.close();
      if (!readOnly) assert.deepEqual(checkImage("/a.vhd", { storage }).findings, []);
      simulation.close();
    }
  }
});

Deno.test("a parent that ends within its last block shows through as it is", () => {
  const simulation = new Simulation({ seed: 8 });
  const storage = simulation.disk;
  createDynamic("/a.vhd", { storage, sizeBytes: 4 * MIB });
  const image = openVhd("/a.vhd", { storage, readOnly: false });
  writeRange(image, new Uint8Array(2 * MIB).fill(0x44), 0);
  finishWriting(image);
  image.close();
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  cut(simulation, "/a.vhd", 1000);
  const device = simulation.open("vhd:/b.vhd");
  const outcome = device.read(4000, 200);
  device.settle();
  const wanted = new Uint8Array(200 * SECTOR).fill(0x44, 0, 96 * SECTOR - 1000);
  assert.deepEqual(outcome.data, wanted);
  device.close();
  simulation.close();
});

Deno.test("a batmap that lies hides nothing of a parent, whatever is written", () => {
  const simulation = new Simulation({ seed: 9 });
  const storage = simulation.disk;
  createDynamic("/a.vhd", { storage, sizeBytes: 8 * MIB });
  const image = openVhd("/a.vhd", { storage, readOnly: false });
  writeRange(image, new Uint8Array(8 * MIB).fill(0x50), 0);
  finishWriting(image);
  image.close();
  snapshot("/b.vhd", { storage, parent: "/a.vhd" });
  const child = openVhd("/b.vhd", { storage, readOnly: false });
  writeRange(child, new Uint8Array(4096).fill(0x43), 2 * MIB);
  finishWriting(child);
  child.batmap?.bits.fill(0xf0, 0, 1);
  writeBatmap(child);
  child.close();
  const device = simulation.open("vhd:/b.vhd");
  // A write to an unallocated block and to a block that is partly in the file.
  const write = device.write(0, new Uint8Array(4096).fill(0x43));
  device.settle();
  const reads = [device.read(0, 16), device.read(4096, 16), device.read(8192, 16)];
  device.settle();
  const half = new Uint8Array(8192).fill(0x43, 0, 4096).fill(0x50, 4096);
  assert.equal(write.errno, 0);
  assert.deepEqual(reads[0].data, half);
  assert.deepEqual(reads[1].data, half);
  assert.deepEqual(reads[2].data, new Uint8Array(8192).fill(0x50));
  device.close();
  assert.equal(checkImage("/b.vhd", { storage, checkData: true }).valid, true);
  assert.equal(openVhd("/b.vhd", { storage }).batmap?.bits[0], 0);
  simulation.close();
});

Deno.test("the place that is kept free for a batmap costs an image no footer", () => {
  // Seed 38 of `deno task images`.
  const simulation = new Simulation({ seed: 10 });
  const storage = simulation.disk;
  putForeignImage(storage, "/a.vhd", {
    footer: (footer) =>
      Object.assign(footer, { creatorApplication: "tap\0", creatorVersion: 0x0001_0003 }),
  });
  const findings = (): string[] =>
    checkImage("/a.vhd", { storage }).findings.map(({ message }) => message);
  const before = findings();
  simulation.open("vhd:/a.vhd").close();
  assert.deepEqual(findings(), before);
  assert.deepEqual(before, ["there is no batmap; repair makes one"]);
  simulation.close();
});
