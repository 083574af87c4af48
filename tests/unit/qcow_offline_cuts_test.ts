/**
 * Repair, resize and compact of a QCOW2, and a new backing file of a QCOW, with a power cut before each of their
 * operations: the images open, hold the same data, and have at most lost clusters.
 */
import assert from "node:assert/strict";
import { checkQcow } from "../../src/qcow/check.ts";
import { createQcow } from "../../src/qcow/create.ts";
import { openQcow } from "../../src/qcow/image.ts";
import { setBackingName } from "../../src/qcow/rebase.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { compactQcow2 } from "../../src/qcow2/compact.ts";
import { createQcow2, type CreateQcow2Options } from "../../src/qcow2/create.ts";
import { DiskCounts } from "../../src/qcow2/disk_counts.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { repairQcow2 } from "../../src/qcow2/repair.ts";
import { resizeQcow2 } from "../../src/qcow2/resize.ts";
import { Random } from "../../src/testing/random.ts";
import { changesOnly, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { assertBytes } from "../support/nbd_disks.ts";
import { Qcow2Reader } from "../support/qcow2_reader.ts";

const MIB = 1 << 20;
/** Photographs of each moment: what a cut leaves is random. */
const PHOTOS = 2;

/** Calls `judge` for what a power cut before each operation of a change leaves, and for its end. */
function everyCut(
  origin: SimulatedDisk,
  change: (storage: SimulatedDisk) => void,
  judge: (storage: SimulatedDisk, isOver: boolean) => void,
): void {
  using storage = origin.copy();
  const random = new Random(5);
  let moments = 0;
  storage.beforeOperation = changesOnly(() => {
    moments++;
    for (let i = 0; i < PHOTOS; i++) {
      using photo = storage.photograph(random);
      judge(photo, false);
    }
    return 0;
  });
  change(storage);
  storage.beforeOperation = null;
  assert.ok(moments > 2, `${moments} operations`);
  judge(storage, true);
}

/** Sectors of the disk that hold something, and those that have a cluster of zeros. */
const DATA = [0, 65, 701, 2047];
const ZEROS = [1, 66, 700, 1500];

/** Puts data into an image with clusters of a sector, whose counts are then those of an empty one. */
function putData(storage: SimulatedDisk, path: string, lengthBytes: number): void {
  const image = openQcow2(path, { storage, readOnly: false });
  const { file, l1, header, geometry } = image;
  assert.equal(geometry.clusterBytes, 512);
  let next = lengthBytes;
  const take = (bytes: Uint8Array<ArrayBuffer>): number => {
    file.writeAt(bytes, next);
    next += 512;
    return next - 512;
  };
  const tables = new Map<number, DataView<ArrayBuffer>>();
  const perTable = geometry.l2Entries;
  for (const sector of [...ZEROS, ...DATA]) {
    const index = Math.floor(sector / perTable);
    const table = tables.get(index) ?? new DataView(new ArrayBuffer(512));
    tables.set(index, table);
    const byte = DATA.includes(sector) ? 1 + sector % 250 : 0;
    const place = take(new Uint8Array(512).fill(byte));
    table.setBigUint64(8 * (sector % perTable), BigInt(place) | 1n << 63n);
  }
  for (const [index, table] of tables) {
    const place = take(new Uint8Array(table.buffer));
    l1.setBigUint64(8 * index, BigInt(place) | 1n << 63n);
  }
  file.writeAt(
    new Uint8Array(l1.buffer, l1.byteOffset, l1.byteLength),
    Number(header.l1TableOffset),
  );
  file.sync();
  image.close();
}

/** An image with data whose reference counts are wrong, in a file or on a block device. */
function damaged(
  { onDevice, ...options }: Omit<CreateQcow2Options, "sizeBytes"> & { onDevice: boolean },
): SimulatedDisk {
  const storage = new SimulatedDisk({ seed: 2, powerCuts: true });
  if (onDevice) storage.addBlockDevice("/dev/a", { sizeBytes: 4 * MIB });
  createQcow2("/dev/a", { storage, sizeBytes: MIB, clusterBytes: 512, ...options });
  putData(storage, "/dev/a", 64 * 1024);
  return storage;
}

/** The disk is what it was, and nothing else is wrong than what may be. */
function judgeDisk(
  storage: SimulatedDisk,
  { isMendable, sizes }: { isMendable: boolean; sizes: readonly number[] },
): void {
  const image = openQcow2("/dev/a", { storage, mending: true });
  const { errors, isMendable: canBe } = checkQcow2(image);
  assert.ok(sizes.includes(image.sizeBytes), `${image.sizeBytes}`);
  image.close();
  if (isMendable) assert.ok(canBe, errors.join());
  else assert.deepEqual(errors, []);
  const reader = new Qcow2Reader(storage, "/dev/a");
  const disk = new Uint8Array(MIB);
  reader.read(disk, 0);
  reader.close();
  const expected = new Uint8Array(MIB);
  for (const sector of DATA) expected.fill(1 + sector % 250, sector * 512, (sector + 1) * 512);
  assertBytes(disk, expected);
}

for (const onDevice of [false, true]) {
  const where = onDevice ? "on a block device" : "in a file";
  for (const refcountBits of [1, 16]) {
    Deno.test(`a repair of a QCOW2 ${where}, counts of ${refcountBits} bits, may be cut`, () => {
      using origin = damaged({ onDevice, refcountBits });
      everyCut(
        origin,
        (storage) => assert.equal(repairQcow2("/dev/a", { storage }).length, 1),
        (storage, isOver) => {
          judgeDisk(storage, { isMendable: !isOver, sizes: [MIB] });
          repairQcow2("/dev/a", { storage });
          judgeDisk(storage, { isMendable: false, sizes: [MIB] });
        },
      );
    });
  }

  Deno.test(`a QCOW2 ${where} may be cut while it is made larger`, () => {
    using origin = damaged({ onDevice });
    // The counts are now behind all else.
    repairQcow2("/dev/a", { storage: origin });
    everyCut(
      origin,
      (storage) => resizeQcow2("/dev/a", { storage, sizeBytes: 3 * MIB }),
      (storage, isOver) =>
        judgeDisk(storage, { isMendable: false, sizes: isOver ? [3 * MIB] : [MIB, 3 * MIB] }),
    );
  });
}

/** Gives free clusters a reference count as if they were lost. */
function loseClusters(storage: SimulatedDisk, count: number): void {
  const image = openQcow2("/dev/a", { storage, readOnly: false });
  const { references } = checkQcow2(image);
  const counts = new DiskCounts(image);
  const { file, geometry: { refcountBits, refcountsPerBlock } } = image;
  assert.equal(refcountBits, 16);
  for (let cluster = 0; cluster < references.end; cluster++) {
    const block = counts.blockOf(Math.floor(cluster / refcountsPerBlock));
    if (block === 0 || references.of(cluster) > 0) continue;
    file.writeAt(Uint8Array.of(0, count), block * 512 + 2 * (cluster % refcountsPerBlock));
  }
  file.sync();
  image.close();
}

for (const onDevice of [false, true]) {
  const where = onDevice ? "on a block device" : "in a file";
  for (const lost of [0, 3]) {
    Deno.test(`a QCOW2 ${where} may be cut while it is compacted, lost counts of ${lost}`, () => {
      using origin = damaged({ onDevice });
      repairQcow2("/dev/a", { storage: origin });
      loseClusters(origin, lost);
      everyCut(
        origin,
        (storage) => {
          const { freedClusters, movedClusters } = compactQcow2("/dev/a", { storage });
          assert.ok(freedClusters >= ZEROS.length && movedClusters > 0);
        },
        (storage) => judgeDisk(storage, { isMendable: false, sizes: [MIB] }),
      );
    });
  }
}

Deno.test("a QCOW may be cut while it gets another backing file", () => {
  using origin = new SimulatedDisk({ seed: 2, powerCuts: true });
  createQcow(origin, { path: "/a" }, { sizeBytes: MIB, backingName: "/old" });
  everyCut(
    origin,
    (storage) => setBackingName(storage, "/a", "/new".padEnd(700, "x")),
    (storage, isOver) => {
      const image = openQcow("/a", { storage });
      const name = image.backingName ?? "";
      image.close();
      assert.ok(isOver ? /^\/newx{696}$/.test(name) : /^\/(old|newx{696})$/.test(name), name);
      assert.deepEqual(checkQcow("/a", { storage }).findings, []);
    },
  );
});
