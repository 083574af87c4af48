import assert from "node:assert/strict";
import fc from "fast-check";
import { Errno, SystemError } from "../../ffi/errno.ts";
import {
  closeFile,
  O_CREAT,
  O_DIRECT,
  O_RDWR,
  openFile,
  truncateFile,
  writeAt,
} from "../../ffi/files.ts";
import { readDirect, writeDirect } from "../../src/files/direct_io.ts";

const LENGTH = 3 << 20;

/**
 * Opens a new file with O_DIRECT; null when the filesystem of the temporary folder does not support
 * it.
 */
function openDirect(path: string): number | null {
  try {
    return openFile(path, O_RDWR | O_CREAT | O_DIRECT);
  } catch (error) {
    if (error instanceof SystemError && error.errno === Errno.EINVAL) return null;
    throw error;
  }
}

function canDirect(): boolean {
  const folder = Deno.makeTempDirSync();
  const fd = openDirect(`${folder}/file`);
  if (fd !== null) closeFile(fd);
  Deno.removeSync(folder, { recursive: true });
  return fd !== null;
}

const ignore = !canDirect();

for (const sectorBytes of [512, 4096]) {
  Deno.test({
    name: `transfers past the page cache begin and end anywhere, sectors of ${sectorBytes}` +
      (ignore ? " (skipped: the temporary folder knows no O_DIRECT)" : ""),
    ignore,
    fn() {
      const folder = Deno.makeTempDirSync();
      const fd = openDirect(`${folder}/file`);
      assert.ok(fd !== null);
      try {
        truncateFile(fd, LENGTH);
        const file = { fd, sectorBytes };
        const model = new Uint8Array(LENGTH);
        const offset = fc.integer({ min: 0, max: LENGTH - 1 });
        const length = fc.oneof(
          fc.integer({ min: 1, max: 9000 }),
          fc.integer({ max: LENGTH, min: 1 }),
        );
        fc.assert(
          fc.property(offset, length, fc.nat(255), (at, count, value) => {
            const bytes = new Uint8Array(Math.min(count, LENGTH - at)).fill(value);
            writeDirect(file, bytes, at);
            model.set(bytes, at);
            const around = Math.max(0, at - 700);
            const read = new Uint8Array(bytes.length + 1500);
            const got = readDirect(file, read, around);
            assert.equal(got, Math.min(read.length, LENGTH - around));
            assert.deepEqual(read.subarray(0, got), model.subarray(around, around + got));
          }),
          { numRuns: 60 },
        );
        assert.deepEqual(Deno.readFileSync(`${folder}/file`), model);
        assert.equal(readDirect(file, new Uint8Array(10), LENGTH), 0);
        assert.equal(readDirect(file, new Uint8Array(10), LENGTH + 5000), 0);
      } finally {
        closeFile(fd);
        Deno.removeSync(folder, { recursive: true });
      }
    },
  });
}

Deno.test("a transfer of parts of sectors keeps the rest of them, at each edge", () => {
  const folder = Deno.makeTempDirSync();
  const fd = openFile(`${folder}/file`, O_RDWR | O_CREAT);
  const ranges = [[0, 100], [412, 100], [100, 200], [0, 512], [500, 24], [511, 514], [512, 100]];
  ranges.push([0, 1], [511, 1], [512, 513], [1, 1535], [0, 1536], [1000, 536]);
  for (const sectorBytes of [512, 4096]) {
    const model = new Uint8Array(3 * sectorBytes).fill(0xaa);
    writeAt(fd, model, 0);
    for (const [at, count] of ranges) {
      const value = at + count & 0xff;
      writeDirect({ fd, sectorBytes }, new Uint8Array(count).fill(value), at);
      model.fill(value, at, at + count);
      assert.deepEqual(Deno.readFileSync(`${folder}/file`).subarray(0, model.length), model);
      const read = new Uint8Array(count);
      assert.equal(readDirect({ fd, sectorBytes }, read, at), count);
      assert.deepEqual(read, new Uint8Array(count).fill(value));
    }
  }
  closeFile(fd);
  Deno.removeSync(folder, { recursive: true });
});
