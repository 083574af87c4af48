import assert from "node:assert/strict";
import * as fc from "fast-check";
import { Latencies } from "../../src/vbd/latency.ts";

function summaryOf(microseconds: readonly number[]) {
  const latencies = new Latencies();
  for (const time of microseconds) {
    latencies.note(Float64Array.of(7, 1000), 1, Float64Array.of(1000 + time / 1000));
  }
  return latencies.summary();
}

Deno.test("latencies: each is counted where it belongs, and shares are at most a quarter off", () => {
  // Half a microsecond is added so that rounding does not go below the bound.
  const time = fc.oneof(fc.nat(20), fc.nat(5000), fc.nat(2_000_000_000)).map((us) => us + 0.5);
  fc.assert(fc.property(fc.array(time, { minLength: 1, maxLength: 200 }), (times) => {
    const { requests, mean, highest, p50, p99_9, histogram } = summaryOf(times);
    assert.equal(requests, times.length);
    assert.equal(histogram.reduce((sum, [, count]) => sum + count, 0), times.length);
    let from = 0;
    for (const [below, count] of histogram) {
      const within = times.filter((us) => us >= from && us < below).length;
      assert.equal(within, count, `from ${from} to ${below}`);
      from = below;
    }
    const sorted = times.toSorted((a, b) => a - b);
    const half = sorted[Math.ceil(times.length / 2) - 1];
    assert.ok(p50 >= Math.floor(half) && p50 <= Math.max(half + 1, half * 1.25 + 1), `${p50}`);
    assert.ok(Math.abs(highest - sorted[times.length - 1]) <= 1);
    assert.equal(p99_9 <= highest, true);
    const sum = times.reduce((total, us) => total + us, 0);
    assert.ok(Math.abs(mean - sum / times.length) <= 1);
  }));
});

Deno.test("latencies: none, and one of an hour", () => {
  const none = { requests: 0, sum: 0, mean: 0, highest: 0, p50: 0, p90: 0, p99: 0, p99_9: 0 };
  assert.deepEqual(summaryOf([]), { ...none, histogram: [] });
  const hour = summaryOf([3_600_000_000]);
  assert.deepEqual([hour.requests, hour.highest], [1, 3_600_000_000]);
  assert.deepEqual(hour.histogram, [[2 ** 31, 1]]);
});
