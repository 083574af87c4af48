/** Which memory holds zeros. */
import assert from "node:assert/strict";
import { Arena, SECTOR_BYTES } from "../../ffi/memory.ts";
import { eachData } from "../../src/images/zeros.ts";
import { Random } from "../../src/testing/random.ts";

const UNIT_SECTORS = 8;

/** The runs of units that hold data, found byte by byte. */
function runsOf(bytes: Uint8Array): number[][] {
  const runs: number[][] = [];
  const sectors = bytes.length / SECTOR_BYTES;
  for (let at = 0; at < sectors; at += UNIT_SECTORS) {
    const end = Math.min(sectors, at + UNIT_SECTORS);
    if (bytes.subarray(at * SECTOR_BYTES, end * SECTOR_BYTES).every((byte) => byte === 0)) continue;
    const last = runs.at(-1);
    if (last !== undefined && last[0] + last[1] === at) last[1] += end - at;
    else runs.push([at, end - at]);
  }
  return runs;
}

Deno.test("zeros: each byte of each unit counts, and the runs are whole units", () => {
  const arena = new Arena(256 * 1024);
  try {
    const random = new Random(7);
    for (let round = 0; round < 400; round++) {
      const sectors = 1 + random.below(arena.sizeBytes / SECTOR_BYTES);
      const bytes = arena.bytes.subarray(0, sectors * SECTOR_BYTES);
      arena.bytes.fill(0);
      // What lies behind is not looked at.
      if (sectors * SECTOR_BYTES < arena.sizeBytes) arena.bytes[sectors * SECTOR_BYTES] = 1;
      for (let i = random.below(6); i > 0; i--) bytes[random.below(bytes.length)] = 1;
      if (random.below(3) === 0) {
        const from = random.below(bytes.length);
        bytes.fill(255, from, from + random.below(65_536));
      }
      const found: number[][] = [];
      const options = { unitSectors: UNIT_SECTORS, memorySector: arena.sector };
      eachData(bytes, options, (from, count) => found.push([from, count]));
      assert.deepEqual(found, runsOf(bytes), `round ${round}`);
    }
  } finally {
    arena.release();
  }
});

Deno.test("zeros: memory that repeats a word is not zero, whichever bit the word has", () => {
  const arena = new Arena(16 * 1024);
  try {
    const { buffer, byteOffset, length } = arena.bytes;
    const words = new BigUint64Array(buffer, byteOffset, length / 8);
    for (let bit = 0n; bit < 64n; bit++) {
      words.fill(1n << bit);
      const found: number[][] = [];
      const options = { unitSectors: UNIT_SECTORS, memorySector: arena.sector };
      eachData(arena.bytes, options, (from, count) => found.push([from, count]));
      assert.deepEqual(found, [[0, arena.sizeBytes / SECTOR_BYTES]], `bit ${bit}`);
    }
  } finally {
    arena.release();
  }
});
