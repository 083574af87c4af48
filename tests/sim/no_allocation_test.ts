import assert from "node:assert/strict";
import { hasLibcrypto } from "../support/libcrypto.ts";

const REQUESTS = 1_000_000;
const ENCRYPTED_REQUESTS = 200_000;
/** Permitted growth of the heap from the compiler and the turns of the loop, bytes in total. */
const MOST_GROWTH_BYTES = 256 * 1024;
const MOST_COLLECTIONS = 2;

interface Run {
  readonly ended: number;
  readonly failed: number;
  readonly grownBytes: number;
  readonly collections: number;
}

const { ignore, suffix } = hasLibcrypto()
  ? { ignore: false, suffix: "" }
  : { ignore: true, suffix: " (skipped: needs libcrypto.so.3)" };

/** Warms up, then sends `requests` requests. */
function run(program: string, requests: number, ...options: string[]): Run {
  const { stdout, stderr, success } = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      "--v8-flags=--expose-gc,--trace-gc",
      new URL(program, import.meta.url).pathname,
      String(requests),
      ...options,
    ],
  }).outputSync();
  assert.ok(success, new TextDecoder().decode(stderr));
  const lines = new TextDecoder().decode(stdout).split("\n");
  const { ended, failed, before, after } = JSON.parse(
    lines.find((line) => line.startsWith("{")) ?? "{}",
  );
  const collections = lines.filter((line) => /(Scavenge|Mark-Compact)/.test(line)).length;
  return { ended, failed, grownBytes: after - before, collections };
}

function assertNothingAllocated(program: string, requests: number, ...options: string[]): void {
  const warmUp = run(program, 0, ...options);
  const whole = run(program, requests, ...options);
  assert.ok(whole.ended - warmUp.ended >= requests);
  assert.equal(whole.failed, 0);
  assert.ok(whole.grownBytes < MOST_GROWTH_BYTES, `the heap grew by ${whole.grownBytes} bytes`);
  assert.ok(warmUp.collections > 0, "the runtime tells of its collections");
  const collections = whole.collections - warmUp.collections;
  assert.ok(collections <= MOST_COLLECTIONS, `${collections} collections`);
}

Deno.test("a million requests allocate nothing on the data path", () => {
  assertNothingAllocated("./million_requests.ts", REQUESTS);
});

Deno.test(`nor do requests of an encrypted disk${suffix}`, { ignore }, () => {
  assertNothingAllocated("./million_requests.ts", ENCRYPTED_REQUESTS, "encrypted");
});

Deno.test("nor do requests of a disk with a log of changed blocks", () => {
  assertNothingAllocated("./million_requests.ts", REQUESTS, "logged");
});

Deno.test("nor do requests that are traced", () => {
  assertNothingAllocated("./million_requests.ts", REQUESTS, "traced");
});

Deno.test("nor do requests that come through ublk", () => {
  assertNothingAllocated("./million_ublk_requests.ts", REQUESTS);
});

Deno.test("nor do requests in the ring of a guest", () => {
  assertNothingAllocated("./million_xenblkif_requests.ts", REQUESTS);
});
