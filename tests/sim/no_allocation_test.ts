import assert from "node:assert/strict";

const REQUESTS = 1_000_000;
/** What the compiler and the loop's own turns may leave behind in all, bytes. */
const MOST_GROWTH_BYTES = 256 * 1024;
const MOST_COLLECTIONS = 2;

interface Run {
  readonly ended: number;
  readonly failed: number;
  readonly grownBytes: number;
  readonly collections: number;
}

/** Warms up, then makes so many requests. */
function run(requests: number): Run {
  const program = new URL("./million_requests.ts", import.meta.url).pathname;
  const { stdout, stderr, success } = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--v8-flags=--expose-gc,--trace-gc", program, String(requests)],
  }).outputSync();
  assert.ok(success, new TextDecoder().decode(stderr));
  const lines = new TextDecoder().decode(stdout).split("\n");
  const { ended, failed, before, after } = JSON.parse(
    lines.find((line) => line.startsWith("{")) ?? "{}",
  );
  const collections = lines.filter((line) => /(Scavenge|Mark-Compact)/.test(line)).length;
  return { ended, failed, grownBytes: after - before, collections };
}

Deno.test("a million requests allocate nothing on the data path", () => {
  const warmUp = run(0);
  const whole = run(REQUESTS);
  assert.ok(whole.ended - warmUp.ended >= REQUESTS);
  assert.equal(whole.failed, 0);
  assert.ok(whole.grownBytes < MOST_GROWTH_BYTES, `the heap grew by ${whole.grownBytes} bytes`);
  assert.ok(warmUp.collections > 0, "the runtime tells of its collections");
  const collections = whole.collections - warmUp.collections;
  assert.ok(collections <= MOST_COLLECTIONS, `${collections} collections`);
});
