import assert from "node:assert/strict";
import { JobQueue } from "../../src/control/daemon/job_queue.ts";

/** A queue whose jobs end when the test says so. */
class Bench {
  readonly queue = new JobQueue();
  readonly begun: string[] = [];
  readonly #ends = new Map<string, () => void>();

  add(name: string, minor: number): void {
    const run = (finished: () => void): void => this.#begin(name, finished);
    this.queue.add({ minor, preempts: false, run });
  }

  whole(name: string): () => boolean {
    return this.queue.whole((finished) => this.#begin(name, finished));
  }

  #begin(name: string, finished: () => void): void {
    this.begun.push(name);
    this.#ends.set(name, finished);
  }

  end(name: string): void {
    this.#ends.get(name)?.();
  }
}

Deno.test("a job of all minors begins when no other runs, and no other begins until it has ended", () => {
  const bench = new Bench();
  bench.add("a", 1);
  bench.add("b", 2);
  bench.whole("whole");
  bench.add("c", 1);
  bench.add("d", 3);
  bench.end("a");
  assert.deepEqual(bench.begun, ["a", "b"]);
  bench.end("b");
  assert.deepEqual(bench.begun, ["a", "b", "whole"]);
  bench.add("e", 4);
  assert.deepEqual(bench.begun, ["a", "b", "whole"]);
  bench.end("whole");
  assert.deepEqual(bench.begun, ["a", "b", "whole", "c", "d", "e"]);
  bench.whole("again");
  for (const name of ["c", "d", "e"]) bench.end(name);
  assert.equal(bench.begun.at(-1), "again");
});

Deno.test("a job of all minors can be given up while it waits, and not later", () => {
  const bench = new Bench();
  bench.add("a", 1);
  const giveUp = bench.whole("whole");
  bench.add("b", 2);
  assert.equal(giveUp(), true);
  assert.deepEqual(bench.begun, ["a", "b"]);
  assert.equal(giveUp(), false);
  bench.end("a");
  bench.end("b");
  const late = bench.whole("late");
  assert.deepEqual(bench.begun, ["a", "b", "late"]);
  assert.equal(late(), false);
  bench.end("late");
  bench.add("c", 1);
  assert.equal(bench.begun.at(-1), "c");
});
