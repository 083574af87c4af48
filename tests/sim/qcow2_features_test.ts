/** Features of QCOW2 images that other programs made: data files, bitmaps, marks, wrong tables. */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { qcow2Kind } from "../../src/images/qcow2_kind.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { resizeQcow2 } from "../../src/qcow2/resize.ts";
import { openQcow2, type Qcow2Image } from "../../src/qcow2/image/image.ts";
import type { Storage } from "../../src/files/storage.ts";
import { assertQemuClean, putFile, takeFile } from "../support/qcow2.ts";
import { assertHolds, Simulation, stampedSectors } from "../support/sim.ts";
import { needs, runOk, withTempDir } from "../support/tools.ts";

const { ignore, suffix } = needs("qemu-img", "qemu-io");
const MIB = 1 << 20;

for (const raw of [false, true]) {
  Deno.test({
    name: `data goes to ${raw ? "a raw data file" : "a data file"}${suffix}`,
    ignore,
    fn: () =>
      withTempDir(async (folder) => {
        const path = `${folder}/a.qcow2`;
        const options = `data_file=data.raw${raw ? ",data_file_raw=on" : ""}`;
        const create = ["create", "-q", "-f", "qcow2", "-o", options, path, "8M"];
        await runOk("qemu-img", create, { cwd: folder });
        await runOk("qemu-io", ["-c", "write -q -P 1 0 1M", path], { cwd: folder });
        const simulation = new Simulation({ seed: 1, latencyMs: 3 });
        const storage = simulation.disk;
        for (const name of ["a.qcow2", "data.raw"]) {
          putFile(storage, `/${name}`, `${folder}/${name}`);
        }
        const device = simulation.open("qcow2:/a.qcow2");
        device.write(10, stampedSectors(10, 300, 7));
        device.write(8000, stampedSectors(8000, 5, 8));
        device.zero(512, 1024);
        device.settle();
        device.write(600, stampedSectors(600, 5, 9));
        device.discard(0, 128);
        device.settle();
        device.flush();
        device.settle();
        assertHolds(device, 128, 182, 7);
        assertHolds(device, 512, 88, 0);
        assertHolds(device, 600, 5, 9);
        assertHolds(device, 605, 100, 0);
        assertHolds(device, 7990, 10, 0);
        assertHolds(device, 8000, 5, 8);
        device.close();
        for (const name of ["a.qcow2", "data.raw"]) {
          takeFile(storage, `/${name}`, `${folder}/${name}`);
        }
        await assertQemuClean(path);
        const convert = ["convert", "-O", "raw", path, `${folder}/out.raw`];
        await runOk("qemu-img", convert, { cwd: folder });
        const out = Deno.readFileSync(`${folder}/out.raw`);
        const expected = stampedSectors(8000, 5, 8);
        assert.deepEqual(out.subarray(8000 * 512, 8005 * 512), expected);
        if (raw) {
          const data = Deno.readFileSync(`${folder}/data.raw`);
          assert.ok(
            out.every((byte, i) => byte === (data[i] ?? 0)),
            "the raw file has the disk",
          );
        }
        simulation.close();
      }),
  });
}

/** Sets a field of 64 bits in a file. */
function setField(storage: Storage, path: string, offset: number, value: bigint): void {
  const file = storage.open(path, "write");
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value);
  file.writeAt(bytes, offset);
  file.close();
}

function field(storage: Storage, path: string, offset: number): bigint {
  const file = storage.open(path, "read");
  const bytes = new Uint8Array(8);
  file.readAt(bytes, offset);
  file.close();
  return new DataView(bytes.buffer).getBigUint64(0);
}

Deno.test("autoclear features are cleared by the first write, and not before", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 2 });
  const storage = simulation.disk;
  createQcow2("/a", { storage, sizeBytes: MIB });
  setField(storage, "/a", 88, 0x8000_0000_0000_0005n);
  const reading = simulation.open("qcow2:/a");
  assertHolds(reading, 0, 8, 0);
  reading.close();
  assert.equal(field(storage, "/a", 88), 0x8000_0000_0000_0005n);
  const writing = simulation.open("qcow2:/a");
  const outcomes = [writing.write(0, stampedSectors(0, 1, 1)), writing.zero(100, 50)];
  writing.settle();
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 0]);
  assert.equal(field(storage, "/a", 88), 0n);
  writing.close();
  simulation.close();
});

Deno.test({
  name: `bitmaps of QEMU count as inconsistent after a write${suffix}`,
  ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const path = `${folder}/a.qcow2`;
      await runOk("qemu-img", ["create", "-q", "-f", "qcow2", path, "8M"]);
      await runOk("qemu-img", ["bitmap", "--add", path, "b0"]);
      const simulation = new Simulation({ seed: 1 });
      putFile(simulation.disk, "/a.qcow2", path);
      const device = simulation.open("qcow2:/a.qcow2");
      device.write(0, stampedSectors(0, 1, 1));
      device.settle();
      device.close();
      takeFile(simulation.disk, "/a.qcow2", path);
      await assertQemuClean(path);
      const flags = async (): Promise<string[]> => {
        const info = JSON.parse(await runOk("qemu-img", ["info", "--output=json", path]));
        return info["format-specific"].data.bitmaps[0].flags;
      };
      assert.deepEqual(await flags(), ["in-use", "auto"]);
      // A bitmap is shorter than the disk then.
      resizeQcow2("/a.qcow2", { storage: simulation.disk, sizeBytes: 4096 * MIB });
      takeFile(simulation.disk, "/a.qcow2", path);
      await assertQemuClean(path);
      assert.deepEqual(await flags(), ["in-use", "auto"]);
      await runOk("qemu-img", ["bitmap", "--remove", path, "b0"]);
      await assertQemuClean(path);
      simulation.close();
    }),
});

Deno.test("XCP-ng's mark of hidden images stays, and td-util info shows it", () => {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  createQcow2("/a", { storage, sizeBytes: MIB, clusterBytes: 512 });
  const image = openQcow2("/a", { storage });
  const at = image.header.headerLength;
  image.close();
  const mark = [0x76617465_00000008n, 1n << 56n, 0n];
  for (const [i, value] of mark.entries()) setField(storage, "/a", at + 8 * i, value);
  // Behind the mark another one, which nothing here knows.
  setField(storage, "/a", at + 16, 0x12345678_00000003n);
  setField(storage, "/a", at + 24, 0x616263_0000000000n);
  setField(storage, "/a", at + 32, 0n);
  const bytes = (): bigint[] => [0, 8, 16, 24, 32].map((i) => field(storage, "/a", at + i));
  const before = bytes();
  resizeQcow2("/a", { storage, sizeBytes: 64 * MIB });
  const device = simulation.open("qcow2:/a");
  // The refcount table moves.
  for (let i = 0; i < 64; i++) device.write(2048 * i, stampedSectors(2048 * i, 512, 1));
  device.settle();
  device.close();
  assert.deepEqual(bytes(), before);
  assert.equal(qcow2Kind.facts?.(storage, "/a").hidden, true);
  setField(storage, "/a", at + 8, 0n);
  assert.equal(qcow2Kind.facts?.(storage, "/a").hidden, false);
  simulation.close();
});

/** Puts an extension with bitmaps into an image, of which nothing says that it is not true. */
function addBitmaps(storage: Storage, path: string, directory: bigint, lengthBytes: bigint): void {
  const image = openQcow2(path, { storage });
  const at = image.header.headerLength;
  image.close();
  setField(storage, path, at, 0x23852875_00000018n);
  setField(storage, path, at + 8, 1n << 32n);
  setField(storage, path, at + 16, lengthBytes);
  setField(storage, path, at + 24, directory);
  setField(storage, path, at + 32, 0n);
  setField(storage, path, 88, 1n);
}

for (
  const [where, directory, lengthBytes] of [
    ["on the L1 table", 0x30000n, 24n],
    ["behind the end of the file", 1n << 40n, 32n],
    ["that is longer than its entry", 0x50000n, 64n],
    ["of 1 GiB", 0x50000n, 1n << 30n],
  ] as const
) {
  Deno.test(`a directory of bitmaps ${where} is not written, and their feature is cleared`, () => {
    const simulation = new Simulation({ seed: 1 });
    const storage = simulation.disk;
    createQcow2("/a", { storage, sizeBytes: MIB });
    addBitmaps(storage, "/a", directory, lengthBytes);
    const device = simulation.open("qcow2:/a");
    const outcome = device.write(0, stampedSectors(0, 1, 1));
    device.settle();
    assert.equal(outcome.errno, 0);
    assert.equal(field(storage, "/a", 88), 0n);
    assert.equal(field(storage, "/a", 0x30000 + 8), 0n);
    device.close();
    simulation.close();
  });
}

Deno.test("bitmaps whose feature is cleared protect nothing, and count for nothing", () => {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  createQcow2("/a", { storage, sizeBytes: MIB });
  // A program without bitmaps has given their directory's cluster to the disk.
  addBitmaps(storage, "/a", 0x50000n, 32n);
  setField(storage, "/a", 88, 0n);
  const device = simulation.open("qcow2:/a");
  const outcomes = [
    device.write(0, stampedSectors(0, 1, 1)),
    device.write(512, stampedSectors(512, 1, 1)),
  ];
  device.settle();
  assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 0]);
  device.close();
  const image = openQcow2("/a", { storage });
  assert.deepEqual(checkQcow2(image).errors, []);
  image.close();
  simulation.close();
});

Deno.test("an entry that leads into a table marks the image as corrupt, and nothing is written", () => {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  createQcow2("/a", { storage, sizeBytes: 64 * MIB });
  const first = simulation.open("qcow2:/a");
  first.write(0, stampedSectors(0, 8, 1));
  first.settle();
  first.close();
  const image = openQcow2("/a", { storage });
  const table = image.l1.getUint32(4, false);
  const refcounts = image.header.refcountTableOffset;
  image.close();
  // The first cluster of the disk lies on the refcount table.
  setField(storage, "/a", table, refcounts | 1n << 63n);
  const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
  const outcome = device.write(0, stampedSectors(0, 8, 2));
  device.settle();
  assert.equal(outcome.errno, Errno.EIO);
  assert.match(simulation.log.join("\n"), /is marked as corrupt.* into the refcount table/);
  assert.equal(field(storage, "/a", 72), 2n);
  device.close();
  assert.throws(() => simulation.open("qcow2:/a"), /marked as corrupt/);
  const reading = simulation.open("qcow2:/a", { readOnly: true });
  assertHolds(reading, 200, 8, 0);
  reading.close();
  const again = openQcow2("/a", { storage });
  assert.ok(checkQcow2(again).errorCount > 0);
  again.close();
  simulation.close();
});

/** How opening an image fails. */
function refusal(change: (storage: Storage) => void): string {
  const simulation = new Simulation({ seed: 1 });
  try {
    createQcow2("/d/a", {
      storage: simulation.disk,
      sizeBytes: MIB,
      backing: { name: "base", format: "raw" },
    });
    change(simulation.disk);
    simulation.open("qcow2:/d/a").close();
    return "";
  } catch (error) {
    assert.ok(error instanceof SystemError, String(error));
    return error.message;
  } finally {
    simulation.close();
  }
}

const set = (offset: number, value: bigint) => (storage: Storage): void =>
  setField(storage, "/d/a", offset, value);

const REFUSED: readonly [string, (storage: Storage) => void, RegExp][] = [
  ["another magic number", set(0, 3n), /is not the magic number/],
  ["the first version", set(0, 0x514649fb00000001n), /name it qcow:FILE/],
  ["version 4", set(0, 0x514649fb00000004n), /header.version .* 4, which is not known/],
  ["clusters of 256 bytes", set(16, 8n), /cluster_bits .* is not between 9 and 21/],
  ["AES", set(32, 1n << 32n | 1n), /is encrypted by AES.*qemu-img convert/],
  ["LUKS", set(32, 2n << 32n | 1n), /is encrypted by LUKS/],
  ["no L1 table", set(32, 0n), /l1_size .* is less than the 1 needed/],
  ["an unknown feature", set(72, 1n << 40n), /incompatible features .*\(bit 40\)/],
  ["zstd without its bit", set(104, 1n << 56n), /contradicts the feature bit/],
  ["refcounts of 128 bits", set(96, 7n << 32n | 112n), /refcount_order .* is more than 6/],
  ["a table off a cluster", set(48, 65536n + 512n), /is not the offset of a cluster/],
  ["a table past the end", set(40, 1n << 40n), /lies past the end of the file/],
  ["a short header", set(96, 4n << 32n | 96n), /header_length/],
  ["a missing backing file", () => {}, /Cannot open \/d\/base, the backing file of \/d\/a/],
  ["a backing file without format", set(112, 0x12345678_00000003n), /backing file without format/],
];

for (const [name, change, pattern] of REFUSED) {
  Deno.test(`${name} is refused`, () => assert.match(refusal(change), pattern));
}

Deno.test("an unknown feature is named as the image names it", () => {
  const text = refusal((storage) => {
    // The table of names follows the format of the backing file.
    const file = storage.open("/d/a", "write");
    const bytes = new Uint8Array(512);
    file.readAt(bytes, 0);
    const at = new TextDecoder("latin1").decode(bytes).indexOf("dirty bit") - 1;
    file.writeAt(Uint8Array.of(9), at);
    file.close();
    setField(storage, "/d/a", 72, 1n << 9n);
  });
  assert.match(text, /\("dirty bit"\)/);
});

Deno.test("a write that gives subclusters data leaves those beside it to the writes under way", () => {
  for (let seed = 1; seed <= 20; seed++) {
    const simulation = new Simulation({ seed, latencyMs: 5 });
    createQcow2("/a", {
      storage: simulation.disk,
      sizeBytes: 4 * MIB,
      clusterBytes: 65536,
      extendedL2: true,
    });
    const device = simulation.open("qcow2:/a");
    device.write(0, stampedSectors(0, 4, 1));
    device.settle();
    // Subclusters have four sectors: the second write ends in one that has no data yet.
    device.write(0, stampedSectors(0, 1, 2));
    device.write(2, stampedSectors(2, 4, 3));
    device.settle();
    assertHolds(device, 0, 1, 2);
    assertHolds(device, 1, 1, 1);
    assertHolds(device, 2, 4, 3);
    assertHolds(device, 6, 100, 0);
    device.close();
    simulation.close();
  }
});

const MISLED: readonly [string, RegExp, (image: Qcow2Image) => [number, bigint]][] = [
  [
    "an L2 table on the refcount table",
    /lead into the refcount table/,
    ({ header }) => [Number(header.l1TableOffset), header.refcountTableOffset | 1n << 63n],
  ],
  [
    "a refcount block on the L1 table",
    /lead into the L1 table/,
    ({ header }) => [Number(header.refcountTableOffset), header.l1TableOffset],
  ],
  [
    "a refcount block that begins within a cluster",
    /lead into a place that is no cluster/,
    ({ header }) => [Number(header.refcountTableOffset), 0x20200n],
  ],
];

for (const [name, pattern, misled] of MISLED) {
  Deno.test(`${name} is not written, and the image is marked as corrupt`, () => {
    const simulation = new Simulation({ seed: 1, latencyMs: 1 });
    const storage = simulation.disk;
    createQcow2("/a", { storage, sizeBytes: 64 * MIB });
    const image = openQcow2("/a", { storage });
    image.close();
    setField(storage, "/a", ...misled(image));
    const device = simulation.open("qcow2:/a", { retry: { timeoutMs: 0 } });
    const outcomes = [device.write(8, stampedSectors(8, 8, 2)), device.zero(900, 200)];
    device.settle();
    const late = device.write(5000, stampedSectors(5000, 8, 2));
    device.settle();
    assert.deepEqual([outcomes[0].errno, late.errno], [Errno.EIO, Errno.EIO]);
    assert.match(simulation.log.join("\n"), pattern);
    device.close();
    assert.equal(field(storage, "/a", 72), 2n);
    simulation.close();
  });
}

Deno.test("the memory for tables can be chosen, within limits", () => {
  const variable = "BLKTAP_QCOW2_CACHE_MIB";
  const simulation = new Simulation({ seed: 1 });
  createQcow2("/a", { storage: simulation.disk, sizeBytes: MIB });
  try {
    for (const wish of ["0", "129", "1.5", "much"]) {
      Deno.env.set(variable, wish);
      const why = new RegExp(`${variable} for a size: "${wish}".* 1 to 128`);
      assert.throws(() => simulation.open("qcow2:/a"), why);
    }
    Deno.env.set(variable, "1");
    const device = simulation.open("qcow2:/a");
    device.write(0, stampedSectors(0, 8, 1));
    device.settle();
    assertHolds(device, 0, 8, 1);
    device.close();
  } finally {
    Deno.env.delete(variable);
    simulation.close();
  }
});

Deno.test("an image that gets little room of the disk queue is written; without room it is not opened", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 3 });
  const { disk: storage, context: { queue } } = simulation;
  createQcow2("/a", { storage, sizeBytes: 4 * MIB, clusterBytes: 1024, refcountBits: 64 });
  let taken = 0;
  while (queue.reserve(1)) taken++;
  assert.throws(
    () => simulation.open("qcow2:/a"),
    (error) =>
      error instanceof SystemError && error.errno === Errno.EBUSY &&
      /serves too many images \(start another\)/.test(error.message),
  );
  queue.release(taken);
  const device = simulation.open("qcow2:/a");
  // Commits write single sectors; all else is whole clusters.
  let [underWay, most] = [0, 0];
  const write = queue.write.bind(queue);
  const reserve = queue.reserve.bind(queue);
  queue.write = (file, sector, count, memory, owner, token): void => {
    if (count > 1) return write(file, sector, count, memory, owner, token);
    most = Math.max(most, ++underWay);
    const ioDone = (...ended: [number, number, number]): void => {
      underWay--;
      owner.ioDone(...ended);
    };
    write(file, sector, count, memory, { ioDone }, token);
  };
  for (let round = 0; round < 3; round++) {
    const outcomes = Array.from({ length: 100 }, (_, i) => {
      const sector = i * 80 + round * 2;
      return device.write(sector, stampedSectors(sector, 2, round));
    });
    // Other disks have all that these requests do not.
    queue.reserve = (): boolean => false;
    device.settle();
    queue.reserve = reserve;
    assert.ok(outcomes.every(({ errno }) => errno === 0));
  }
  for (let i = 0; i < 100; i++) assertHolds(device, i * 80 + 4, 2, 2);
  // A new refcount block is one more, and so is the header.
  assert.ok(most > 1 && most <= 6, `${most} writes of a commit at once`);
  device.close();
  const image = openQcow2("/a", { storage });
  assert.deepEqual(checkQcow2(image).errors, []);
  image.close();
  // Nothing of the room is lost.
  assert.ok(queue.reserve(queue.capacity));
  queue.release(queue.capacity);
  simulation.close();
});

Deno.test({
  name: `copies of tables that wait for memory lose no room${suffix}`,
  ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const path = `${folder}/a.qcow2`;
      await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "cluster_size=1k", path, "8M"]);
      await runOk("qemu-io", ["-c", "write -q -P 5 0 8M", path]);
      await runOk("qemu-img", ["snapshot", "-c", "first", path]);
      const simulation = new Simulation({ seed: 1, latencyMs: 5 });
      putFile(simulation.disk, "/a.qcow2", path);
      const device = simulation.open("qcow2:/a.qcow2");
      const tableSectors = 256;
      device.write(0, stampedSectors(0, 1, 1));
      device.settle();
      // These copy the other half of their clusters, and take all the memory for copies.
      for (let i = 1; i < 60; i++) device.write(2 * i, stampedSectors(2 * i, 1, 2));
      for (let i = 1; i < 30; i++) {
        device.write(i * tableSectors, stampedSectors(i * tableSectors, 1, 3));
      }
      device.settle();
      for (let i = 1; i < 60; i++) assertHolds(device, 2 * i, 1, 2);
      for (let i = 1; i < 30; i++) assertHolds(device, i * tableSectors, 1, 3);
      device.close();
      takeFile(simulation.disk, "/a.qcow2", path);
      await assertQemuClean(path);
      simulation.close();
    }),
});

Deno.test("a file that cannot be made shorter is closed as it is", () => {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  createQcow2("/a", { storage, sizeBytes: 64 * MIB });
  const device = simulation.open("qcow2:/a");
  device.write(0, stampedSectors(0, 8, 1));
  device.settle();
  simulation.lengthFault = Errno.ENOSPC;
  device.close();
  simulation.lengthFault = 0;
  assert.match(simulation.log.join("\n"), /\/a cannot be made shorter: .*ENOSPC/);
  const image = openQcow2("/a", { storage });
  const { errors, leakedClusters } = checkQcow2(image);
  image.close();
  assert.deepEqual([errors, leakedClusters], [[], 0]);
  const again = simulation.open("qcow2:/a");
  assertHolds(again, 0, 8, 1);
  again.close();
  simulation.close();
});
