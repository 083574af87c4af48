/** td-rated: its limiters on a clock of the test, its manual page and its completion. */
import assert from "node:assert/strict";
import { ratedCompletion, ratedPage } from "../../src/cli/td_rated/documents.ts";
import { helpText } from "../../src/cli/td_rated/texts.ts";
import { parseRated } from "../../src/cli/td_rated/arguments.ts";
import { parseAmount } from "../../src/cli/sizes.ts";
import { MemoryLimiter, TokenBucket } from "../../src/rated/limiter.ts";
import { findTool, run, runOk } from "../support/tools.ts";

const NEED = 8 << 20;

/** Bytes that pass at a time. */
function all(bucket: TokenBucket, nowMs: number): number {
  let bytes = 0;
  for (let part = 1; part > 0; bytes += part) part = bucket.take(NEED, nowMs);
  return bytes;
}

Deno.test("td-rated: a bucket grants its rate, and its cap after a pause", () => {
  const bucket = new TokenBucket(1_000_000, 50_000);
  bucket.begin(0);
  // The cap, and the part that it ends within.
  assert.equal(all(bucket, 0), 60_000);
  let bytes = 0;
  // The timer comes late, now and then very late: nothing is lost while somebody waits.
  for (let nowMs = 0; nowMs <= 10_000; nowMs += nowMs % 7 === 0 ? 61 : 3) {
    bytes += all(bucket, nowMs);
  }
  assert.ok(Math.abs(bytes / 10_000_000 - 1) < 0.01, `${bytes}`);
  bucket.begin(60_000);
  assert.equal(all(bucket, 60_000), 60_000);
  assert.equal(bucket.nextMs(), 60_010);
  bucket.begin(60_010);
  assert.equal(bucket.take(1000, 60_010), 1000);
  assert.equal(bucket.take(1000, 60_010), 0);
});

Deno.test("td-rated: by memory, all passes until the high mark, then a rate until the low one", () => {
  const state = { total: 1_000_000, dirty: 0 };
  const limits = { highPercent: 60, lowPercent: 40, periodMs: 100 };
  const limiter = new MemoryLimiter(limits, new TokenBucket(1_000_000, 0), () => ({ ...state }));
  limiter.begin(0);
  assert.equal(limiter.take(NEED, 0, 0), NEED);
  // What was granted and has not ended counts as dirty.
  assert.equal(limiter.take(NEED, 1, 599_999 * 1024), 1024);
  state.dirty = 610_000;
  assert.equal(limiter.take(NEED, 50, 0), NEED, "the period is not over");
  assert.equal(limiter.take(NEED, 101, 0), 10_000);
  assert.equal(limiter.take(NEED, 101, 0), 0);
  assert.equal(limiter.nextMs(101), 111);
  state.dirty = 500_000;
  assert.equal(limiter.take(NEED, 205, 0), 10_000);
  state.dirty = 400_000;
  assert.equal(limiter.take(NEED, 306, 0), NEED);
  assert.match(limiter.describe(306)[0], /400000 kB of 1000000 .* all passes/);
});

Deno.test("td-rated: when the memory cannot be read, what was seen before counts", () => {
  let dirty = 700_000;
  let fails = false;
  const look = (): { total: number; dirty: number } => {
    if (fails) throw new Error("Cannot read /proc/meminfo (EMFILE)");
    return { total: 1_000_000, dirty };
  };
  const limits = { highPercent: 60, lowPercent: 40, periodMs: 100 };
  const limiter = new MemoryLimiter(limits, new TokenBucket(1_000_000, 0), look);
  limiter.begin(0);
  assert.equal(limiter.take(NEED, 0, 0), 10_000);
  fails = true;
  dirty = 0;
  assert.equal(limiter.take(NEED, 200, 0), 10_000);
  assert.match(limiter.describe(200)[0], /the rate is limited \(as it was: Cannot read .*\)$/);
  fails = false;
  // It looks again in the next period, and not before.
  assert.equal(limiter.take(NEED, 299, 0), 10_000);
  assert.equal(limiter.take(NEED, 300, 0), NEED);
  assert.match(limiter.describe(300)[0], /all passes$/);
});

Deno.test("td-rated: amounts in the original's notation", () => {
  const amounts: [string, number | null][] = [
    ["7", 7],
    ["0x10", 16],
    ["10k", 10_000],
    ["60M", 60_000_000],
    ["1G", 1_000_000_000],
    ["2Ki", 2048],
    ["128mi", 128 << 20],
    ["1Gi", 1 << 30],
    ["2T", 2e12],
    ["16Ti", 2 ** 44],
    ["", null],
    ["M", null],
    ["1.5M", null],
    ["-1", null],
    ["1MB", null],
    ["99999999999999999999", null],
    ["99999999999G", null],
  ];
  for (const [text, amount] of amounts) assert.equal(parseAmount(text), amount, text);
  const parsed = parseRated(["/x", "-t", "token", "--", "-r60M", "--cap", "1Mi"]);
  assert.deepEqual(parsed?.limiter, { type: "token", rate: 60_000_000, capBytes: 1 << 20 });
});

Deno.test("td-rated: its manual page is roff and has every option; bash completes them", async () => {
  const page = ratedPage();
  const options = [...new Set(helpText().match(/--[a-z]+/g))].filter((word) => word !== "--stdin");
  for (const option of options) {
    assert.ok(page.includes(option.replaceAll("-", "\\-")), option);
    if (option !== "--rate=") assert.ok(ratedCompletion().includes(option), option);
  }
  if (findTool("bash") !== undefined) await runOk("bash", ["-n", "-c", ratedCompletion()]);
  if (findTool("groff") === undefined) return;
  const folder = Deno.makeTempDirSync();
  Deno.writeTextFileSync(`${folder}/page`, page);
  const { code, stderr } = await run("groff", ["-man", "-Tutf8", "-ww", `${folder}/page`]);
  assert.deepEqual([code, stderr], [0, ""]);
  Deno.removeSync(folder, { recursive: true });
});
