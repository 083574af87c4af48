import assert from "node:assert/strict";
import { MOST_SPIN_US, Spin } from "../../src/scheduler/spin.ts";

/** A loop whose turns take `turnUs`. The next event comes `gapUs` after a turn. */
function run(
  spin: Spin,
  turns: number,
  { turnUs, gapUs }: { turnUs: (turn: number) => number; gapUs: number },
): { looked: number; slept: number } {
  const wakeUpUs = 30;
  let looked = 0;
  let slept = 0;
  for (let turn = 0; turn < turns; turn++) {
    const lookUs = spin.after(turnUs(turn));
    const found = gapUs <= lookUs;
    looked += Math.min(lookUs, gapUs);
    if (!found) slept++;
    if (lookUs > 0) spin.note(found, lookUs, found ? gapUs : gapUs + wakeUpUs);
  }
  return { looked, slept };
}

Deno.test("spin: a client with one request at a time is found before the loop sleeps", () => {
  const { slept } = run(new Spin(), 1000, { turnUs: () => 10, gapUs: 20 });
  assert.ok(slept < 20, `${slept} sleeps`);
});

Deno.test("spin: a disk slower than is worth looking for costs next to nothing", () => {
  for (const gapUs of [60, 69, 80, 200, 10_000]) {
    const { looked, slept } = run(new Spin(), 20_000, { turnUs: () => 10, gapUs });
    assert.equal(slept, 20_000);
    assert.ok(looked < 20_000 * 2.5, `${gapUs}: ${looked / 20_000} µs a turn`);
  }
});

Deno.test("spin: many requests at once are left to share a wake-up, in short turns too", () => {
  const { looked } = run(new Spin(), 1000, {
    turnUs: (turn) => (turn % 3 === 0 ? 5 : 80),
    gapUs: 20,
  });
  assert.ok(looked < 1000, `${looked} µs in all`);
});

Deno.test("spin: after a rest, and after an idle hour, soon events are found again", () => {
  const spin = new Spin();
  run(spin, 5000, { turnUs: () => 10, gapUs: 80 });
  run(spin, 100, { turnUs: () => 10, gapUs: 3_600_000_000 });
  const { slept } = run(spin, 5000, { turnUs: () => 10, gapUs: 20 });
  assert.ok(slept < 1100, `${slept} sleeps`);
});

Deno.test("spin: a hiccup now and then changes nothing", () => {
  const spin = new Spin();
  let slept = 0;
  for (let round = 0; round < 100; round++) {
    slept += run(spin, 50, { turnUs: () => 10, gapUs: 20 }).slept;
    slept += run(spin, 1, { turnUs: () => 10, gapUs: 500 }).slept;
  }
  assert.ok(slept < 120, `${slept} sleeps`);
  assert.equal(spin.after(10), MOST_SPIN_US);
});
