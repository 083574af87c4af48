import assert from "node:assert/strict";
import { runBetween } from "../../src/files/runs.ts";
import { osDiskFiles } from "../../src/queue/disk_files.ts";
import { withTempDir } from "../support/tools.ts";

const KIB = 1024;

/** `runBetween` with these results of lseek(2). */
function run(data: number, hole: number, offsetBytes: number, lengthBytes: number): number {
  return runBetween({ data, hole: () => hole }, offsetBytes, lengthBytes);
}

Deno.test("runs of a file: data, holes, and ends within a sector", () => {
  assert.equal(run(0, 8 * KIB, 0, 64 * KIB), 8 * KIB);
  assert.equal(run(0, -1, 0, 64 * KIB), 64 * KIB);
  assert.equal(run(-1, -1, 0, 64 * KIB), -64 * KIB);
  assert.equal(run(64 * KIB, -1, 0, 64 * KIB), -64 * KIB);
  assert.equal(run(16 * KIB, 32 * KIB, 0, 64 * KIB), -16 * KIB);
  // A sector that is partly data counts as data.
  assert.equal(run(1100, 1200, 1024, 4096), 512);
  assert.equal(run(1100, 1200, 0, 4096), -1024);
});

Deno.test("runs of a file: answers that contradict each other count as data", () => {
  // The data that SEEK_DATA found had become a hole at SEEK_HOLE.
  assert.equal(run(4096, 4096, 4096, 8192), 8192);
  assert.equal(run(4096, 0, 4096, 8192), 8192);
  assert.equal(run(0, 1024, 4096, 8192), 8192);
  for (const data of [0, 512, 4096, 5000, 12288]) {
    for (const hole of [-1, 0, 100, 4096, 4097, 9000]) {
      const found = run(data, hole, 4096, 8192);
      const text = `data ${data}, hole ${hole}: ${found}`;
      assert.ok(found !== 0 && Math.abs(found) <= 8192 && found % 512 === 0, text);
    }
  }
});

Deno.test("runs of a file that cannot be looked for count as data", async () => {
  await withTempDir((folder) => {
    Deno.writeFileSync(`${folder}/a`, new Uint8Array(8192));
    const file = osDiskFiles.open(`${folder}/a`, { readOnly: true, direct: false });
    file.close();
    // The descriptor is closed: every lseek fails with EBADF.
    assert.equal(file.allocatedRun(0, 8192), 8192);
    assert.equal(file.allocatedRun(4096, 4096), 4096);
  });
});
