/** Holes of a file within the blocks of an image: copies do not read them, and they hide what is below. */
import assert from "node:assert/strict";
import { closeFile, O_RDWR, openFile, punchHole } from "../../ffi/files.ts";
import { FileRuns } from "../../src/driver/file_runs.ts";
import { snapshotImage } from "../../src/images/change.ts";
import { convertImage, copyInto } from "../../src/images/convert.ts";
import { createEngine } from "../../src/images/engine.ts";
import { mapImage } from "../../src/images/map.ts";
import { OpenImage } from "../../src/images/open_image.ts";
import { walkImage } from "../../src/images/walk.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { SequentialVhd } from "../../src/vhd/sequential.ts";
import { assertBytes } from "../support/nbd_disks.ts";
import { withTempDir } from "../support/tools.ts";
import { MadeVhdx } from "../support/vhdx.ts";

const SECTOR_BYTES = 512;
const MIB = 1 << 20;
const DISK_BYTES = 8 * MIB;
const PAGE_BYTES = 4096;

/** Frees part of a file, in whole pages from one place on; returns the first byte. */
function punch(path: string, offsetBytes: number, lengthBytes: number): number {
  const start = Math.ceil(offsetBytes / PAGE_BYTES) * PAGE_BYTES;
  const fd = openFile(path, O_RDWR);
  assert.ok(punchHole(fd, start, lengthBytes));
  closeFile(fd);
  return start;
}

/** Where the data of a block of a VHD lies in its file. */
function dataOfBlock(path: string, block: number): number {
  const image = openVhd(path);
  try {
    return (image.bat[block] + image.bitmapSectors) * SECTOR_BYTES;
  } finally {
    image.close();
  }
}

/** The extents of a disk: first sector, sectors, and whether they are data. */
async function extentsOf(
  name: string,
  options: { findsHoles: boolean },
): Promise<[number, number, boolean][]> {
  const engine = createEngine(() => {});
  const source = await OpenImage.open(engine, name, { readOnly: true, ...options });
  const found: [number, number, boolean][] = [];
  try {
    await walkImage(engine, {
      source,
      stretch({ sector, count }, isData): void {
        const last = found.at(-1);
        if (last?.[2] === isData) last[1] += count;
        else found.push([sector, count, isData]);
      },
    });
  } finally {
    await source.close(engine);
    engine.close();
  }
  return found;
}

/** Makes an image whose first 4 MiB are data but for a hole of the file; returns what its disk holds. */
const MAKERS: Record<string, (path: string) => Uint8Array<ArrayBuffer>> = {
  vhd(path) {
    const content = new Uint8Array(DISK_BYTES).fill(1, 0, 4 * MIB);
    const image = new SequentialVhd(path, { sizeBytes: DISK_BYTES });
    image.write(content.subarray(0, 4 * MIB), 0);
    image.finish();
    const dataAt = dataOfBlock(path, 0);
    const start = punch(path, dataAt + MIB, MIB / 2) - dataAt;
    return content.fill(0, start, start + MIB / 2);
  },
  vhdx(path) {
    const content = new Uint8Array(DISK_BYTES).fill(1, 0, 4 * MIB);
    const sectors = new Map<number, Uint8Array>();
    for (let at = 0; at < 4 * MIB; at += SECTOR_BYTES) {
      sectors.set(at / SECTOR_BYTES, content.subarray(at, at + SECTOR_BYTES));
    }
    const made = new MadeVhdx({
      sizeBytes: DISK_BYTES,
      dataGuid: "11111111-2222-3333-4444-555555555555",
      sectors,
    });
    Deno.writeFileSync(path, made.bytes);
    // The blocks follow the regions, which end at 4 MiB.
    punch(path, 5 * MIB, MIB / 2);
    return content.fill(0, MIB, MIB + MIB / 2);
  },
};

for (const [type, make] of Object.entries(MAKERS)) {
  Deno.test(`${type}: a copy does not read holes of the file within blocks`, () =>
    withTempDir(async (folder) => {
      const [path, name] = [`${folder}/image`, `${type}:${folder}/image`];
      const content = make(path);
      const hole = content.indexOf(0) / SECTOR_BYTES;
      const end = content.indexOf(1, hole * SECTOR_BYTES) / SECTOR_BYTES;
      const all = 4 * MIB / SECTOR_BYTES;
      const rest: [number, number, boolean] = [all, (DISK_BYTES - 4 * MIB) / SECTOR_BYTES, false];
      assert.deepEqual(await extentsOf(name, { findsHoles: false }), [[0, all, true], rest]);
      assert.deepEqual(await extentsOf(name, { findsHoles: true }), [
        [0, hole, true],
        [hole, end - hole, false],
        [end, all - end, true],
        rest,
      ]);
      const { writtenSectors } = await convertImage(name, `aio:${folder}/raw`, {
        detectZeros: false,
      });
      assert.equal(writtenSectors, all - (end - hole));
      assertBytes(Deno.readFileSync(`${folder}/raw`), content);
    }));
}

Deno.test("vhd: a hole of the file within a block hides what is below", () =>
  withTempDir(async (folder) => {
    const [base, child] = [`vhd:${folder}/base`, `vhd:${folder}/child`];
    for (const [name, byte] of [["low", 5], ["high", 1]] as const) {
      Deno.writeFileSync(`${folder}/${name}`, new Uint8Array(4 * MIB).fill(byte));
    }
    await convertImage(`aio:${folder}/low`, base);
    snapshotImage(base, child);
    const engine = createEngine(() => {});
    const source = await OpenImage.open(engine, `aio:${folder}/high`, { readOnly: true });
    await copyInto(engine, { source, target: child, isNew: false, options: {} });
    await source.close(engine);
    engine.close();
    const dataAt = dataOfBlock(`${folder}/child`, 1);
    const start = 2 * MIB + punch(`${folder}/child`, dataAt + MIB, MIB / 2) - dataAt;
    const content = new Uint8Array(4 * MIB).fill(1).fill(0, start, start + MIB / 2);
    await convertImage(child, `aio:${folder}/raw`);
    assertBytes(Deno.readFileSync(`${folder}/raw`), content);
    // The child has these zeros, although its file does not.
    const { extents } = await mapImage(child);
    assert.deepEqual(extents.map(({ layer }) => layer), [0]);
  }));

Deno.test("runs of a file are remembered, and short holes are data", () => {
  /** Ends of runs, in sectors; data and holes take turns. */
  const ends = [1000, 1100, 3000, 3128, 5000];
  let calls = 0;
  const runs = new FileRuns({
    allocatedRun(offsetBytes, lengthBytes): number {
      calls++;
      const sector = offsetBytes / SECTOR_BYTES;
      const run = ends.findIndex((end) => end > sector);
      if (run < 0) return -lengthBytes;
      return (ends[run] - sector) * SECTOR_BYTES * (run % 2 === 0 ? 1 : -1);
    },
  });
  assert.equal(runs.at(0, 100), 100);
  assert.equal(runs.at(100, 100), 100);
  assert.equal(runs.at(900, 500), 100);
  assert.equal(calls, 1);
  assert.equal(runs.at(1000, 500), 100, "a hole of 100 sectors");
  assert.equal(runs.at(1050, 10), 10);
  assert.equal(calls, 2);
  assert.equal(runs.at(3000, 500), -128);
  assert.equal(runs.at(3100, 8), -8);
  assert.equal(calls, 3);
  assert.equal(runs.at(2000, 8), 8, "a place before");
  assert.equal(runs.at(9000, 1 << 20), -(1 << 20), "behind the end");
});
