import assert from "node:assert/strict";
import { flatness, quantile } from "../search/soak/flat.ts";
import { DiskModel } from "../search/soak/model.ts";
import { SECTOR_BYTES, stamp } from "../search/soak/stamps.ts";

const DISK = 7;

function model(isEncrypted = false): DiskModel {
  return new DiskModel(DISK, { firstSector: 16, sectors: 64, isEncrypted });
}

/** Sectors that carry a generation. */
function written(sector: number, count: number, generation: number): Uint8Array<ArrayBuffer> {
  const data = new Uint8Array(count * SECTOR_BYTES);
  stamp(data, { disk: DISK, sector, generation });
  return data;
}

Deno.test("soak: a write that ended is expected, and nothing else", () => {
  const disk = model();
  const generation = disk.newGeneration();
  disk.end(disk.begin(20, 4, generation));
  disk.check(written(20, 4, generation), 20, "read");
  const wrong = (data: Uint8Array, sector: number, found: RegExp): void =>
    assert.throws(() => disk.check(data, sector, "read"), found);
  wrong(
    new Uint8Array(SECTOR_BYTES),
    20,
    /sector 20 of disk 7: expected generation 1, found zeros/,
  );
  wrong(written(20, 1, generation + 1), 20, /found generation 2 of sector 20 of disk 7/);
  wrong(written(21, 1, generation), 20, /found generation 1 of sector 21 of disk 7/);
  wrong(written(20, 1, generation), 30, /sector 30 of disk 7: expected zeros/);
  const torn = written(20, 1, generation);
  torn[SECTOR_BYTES - 1] ^= 1;
  wrong(torn, 20, /then/);
  const half = written(20, 1, generation).fill(0, 256);
  wrong(half, 20, /generation 1 of sector 20 of disk 7, then zeros/);
  // Sectors of other programs are not looked at.
  disk.check(written(3, 1, 99), 2, "read");
});

Deno.test("soak: a lost write is there or not, and a read decides it once it has settled", () => {
  const disk = model();
  const [first, second] = [disk.newGeneration(), disk.newGeneration()];
  disk.end(disk.begin(20, 1, first));
  disk.lose(disk.begin(20, 1, second));
  assert.ok(disk.isInDoubt(18, 4));
  for (const generation of [first, second, first]) {
    disk.check(written(20, 1, generation), 20, "read");
  }
  assert.throws(() => disk.check(new Uint8Array(SECTOR_BYTES), 20, "read"), /found zeros/);
  assert.equal(disk.firstSettled, null);
  disk.settle();
  assert.equal(disk.firstSettled, 20);
  disk.check(written(20, 1, second), 20, "read");
  assert.ok(!disk.isInDoubt(20, 1));
  assert.throws(() => disk.check(written(20, 1, first), 20, "read"), /expected generation 2/);
});

Deno.test("soak: what a snapshot may hold lies between two moments", () => {
  const disk = model();
  disk.end(disk.begin(20, 1, disk.newGeneration()));
  const flight = disk.begin(21, 1, disk.newGeneration());
  const before = disk.moment();
  disk.end(flight);
  for (let i = 0; i < 3; i++) disk.end(disk.begin(20, 1, disk.newGeneration()));
  const after = disk.moment();
  const check = (sector: number, generation: number): void =>
    disk.checkBetween(written(sector, 1, generation), sector, { before, after, how: "copied" });
  for (const generation of [1, 3, 4, 5]) check(20, generation);
  check(21, 2);
  disk.checkBetween(new Uint8Array(SECTOR_BYTES), 21, { before, after, how: "copied" });
  assert.throws(() => check(20, 6), /WRONG BYTES, copied: sector 20/);
  assert.throws(() => check(21, 5), /WRONG BYTES/);
  assert.throws(() => check(30, 3), /expected zeros/);
});

Deno.test("soak: the last quarter is compared with the second", () => {
  const rising = Array.from({ length: 100 }, (_, i) => ({ atMs: 1000 + i, value: i }));
  assert.deepEqual(flatness(rising), { early: 37, late: 87, highest: 99 });
  const warm = rising.map(({ atMs }, i) => ({ atMs, value: i < 20 ? i : 20 }));
  assert.deepEqual(flatness(warm), { early: 20, late: 20, highest: 20 });
  assert.equal(quantile([5, 1, 4, 2, 3], 0.99), 5);
  assert.ok(Number.isNaN(flatness([]).early));
});
