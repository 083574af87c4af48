import assert from "node:assert/strict";
import { Logger } from "../../src/log/log.ts";
import { RateLimit } from "../../src/log/rate_limit.ts";

/** A log with its own clock, and the written lines. */
function bench(): { log: Logger; lines: string[]; clock: { ms: number } } {
  const clock = { ms: 0 };
  const lines: string[] = [];
  const sink = { write: (_: string, line: string) => lines.push(line), reopen() {}, close() {} };
  return { log: new Logger([sink], new RateLimit(() => clock.ms)), lines, clock };
}

Deno.test("a warning that comes again and again is limited, and says how often it was left out", () => {
  const { log, lines, clock } = bench();
  for (let i = 0; i < 100_000; i++) {
    log.warn(`nbd:host:${i}: lost the connection`);
    clock.ms += 0.5;
  }
  assert.ok(lines.length >= 6 && lines.length <= 12, `${lines.length} lines in 50 s`);
  const leftOut = lines.map((line) => Number(/\((\d+) more like this/.exec(line)?.[1] ?? 0));
  assert.ok(leftOut.reduce((sum, count) => sum + count, 0) + lines.length > 75_000);
});

Deno.test("other warnings come through, and so does what is no warning", () => {
  const { log, lines } = bench();
  for (let i = 0; i < 1000; i++) log.error("the same error");
  log.error("another error");
  for (let i = 0; i < 1000; i++) log.info(`line ${i} of a report`);
  assert.equal(lines.filter((line) => line === "another error").length, 1);
  assert.equal(lines.filter((line) => line.includes("of a report")).length, 1000);
  assert.equal(lines.filter((line) => line.includes("the same error")).length, 6);
});

Deno.test("warnings without a common shape are limited all together, in little memory", () => {
  const { log, lines, clock } = bench();
  const letters = (i: number): string => i.toString(26).replaceAll(/\d/g, (d) => "qrstuvwxyz"[+d]);
  for (let i = 0; i < 20_000; i++) {
    log.warn(`error of ${letters(i)}`);
    clock.ms += 1;
  }
  assert.ok(lines.length >= 200 && lines.length <= 420, `${lines.length} lines in 20 s`);
  assert.match(lines.at(-1) ?? "", /other entries were left out/);
});

Deno.test("what happens to one disk does not hide the same of another", () => {
  const { log, lines } = bench();
  for (let i = 0; i < 100; i++) {
    for (const minor of [1, 2]) log.warn(`a failure, try ${i}`, { event: "retrying", minor });
  }
  log.warn("another text of the same event", { event: "retrying", minor: 2 });
  log.warn("a failure, try 7", { event: "recovered", minor: 1 });
  assert.equal(lines.length, 13);
});

Deno.test("changes of a disk's state are limited late, and the number of those left out is told", () => {
  const { log, lines, clock } = bench();
  for (let i = 0; i < 1000; i++) log.info(`Paused ${i}`, { event: "paused", minor: 1 });
  assert.equal(lines.length, 60);
  log.info("Paused", { event: "paused", minor: 2 });
  assert.equal(lines.length, 61);
  clock.ms += 1000;
  log.info("Paused again", { event: "paused", minor: 1 });
  assert.equal(lines.at(-1), "Paused again (940 more like this were left out)");
});
