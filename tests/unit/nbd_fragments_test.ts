import assert from "node:assert/strict";
import { Fragments } from "../../src/driver/nbd/fragments.ts";
import { Random } from "../../src/testing/random.ts";

Deno.test("NBD driver: bytes that came before are found, in any order of chunks", () => {
  const random = new Random(1);
  const fragments = new Fragments();
  let refused = 0;
  for (let run = 0; run < 2000; run++) {
    const operation = random.below(128);
    fragments.clear(operation);
    const have = new Uint8Array(40);
    for (let chunk = 0; chunk < 30; chunk++) {
      const start = random.below(have.length);
      const end = start + 1 + random.below(Math.min(6, have.length - start));
      const isNew = !have.subarray(start, end).includes(1);
      assert.equal(fragments.add(operation, start, end), isNew, `${have} and ${start} to ${end}`);
      if (isNew) have.fill(1, start, end);
      else refused++;
    }
  }
  assert.ok(refused > 10_000);
});

Deno.test("NBD driver: parts of an answer that lie apart have a limit, and others their own", () => {
  const fragments = new Fragments();
  for (let i = 0; i < 64; i++) assert.ok(fragments.add(5, i * 10, i * 10 + 5));
  assert.equal(fragments.add(5, 1000, 1001), false);
  assert.ok(fragments.add(5, 5, 10), "what joins two parts makes room");
  assert.ok(fragments.add(5, 1000, 1001));
  assert.ok(fragments.add(4, 0, 1) && fragments.add(6, 0, 1));
});
