/**
 * Timers and end-of-turn work of a loop: their order, and what a fault of one does to the others.
 *
 * @module
 */
import assert from "node:assert/strict";
import { type FaultOwner, THROW_ON } from "../../src/scheduler/faults.ts";
import { contain } from "../../src/scheduler/faults.ts";
import { ownedBy, TimerQueue, TurnWorks } from "../../src/scheduler/scheduler.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";

const container = {
  contain: (error: unknown, owner: FaultOwner | undefined): void => contain(error, owner, THROW_ON),
};

class Owner implements FaultOwner {
  failed = false;
  readonly faults: unknown[] = [];

  fault(error: unknown): void {
    this.failed = true;
    this.faults.push(error);
  }
}

function fail(): never {
  throw new Error("broken");
}

Deno.test("timers fire by their time, and in the order of their making at one time", () => {
  const timers = new TimerQueue();
  const fired: string[] = [];
  const add = (dueMs: number, name: string): number =>
    timers.add(dueMs, () => void fired.push(name));
  add(30, "c");
  add(10, "a");
  const cancelled = add(20, "never");
  add(20, "b");
  add(10, "a2");
  timers.cancel(cancelled);
  assert.equal(timers.nextDueMs(), 10);
  timers.fire(9, container);
  assert.deepEqual(fired, []);
  timers.fire(20, container);
  assert.deepEqual(fired, ["a", "a2", "b"]);
  assert.equal(timers.nextDueMs(), 30);
  timers.fire(30, container);
  assert.deepEqual(fired, ["a", "a2", "b", "c"]);
  assert.equal(timers.nextDueMs(), Infinity);
});

Deno.test("what a timer throws ends its owner, and the timers behind it fire", () => {
  const timers = new TimerQueue();
  const owner = new Owner();
  const fired: string[] = [];
  timers.add(1, fail, owner);
  timers.add(1, () => void fired.push("next"));
  timers.fire(1, container);
  assert.deepEqual([fired, owner.faults.length], [["next"], 1]);
});

Deno.test("work at the end of a turn is done again from the first as long as any has something", () => {
  const works = new TurnWorks();
  const done: string[] = [];
  let left = 2;
  works.add({
    endOfTurn: () => {
      done.push("first");
      return false;
    },
  });
  works.add({
    endOfTurn: () => {
      done.push("second");
      return left-- > 0;
    },
  });
  const owner = new Owner();
  works.add({ endOfTurn: fail }, owner);
  works.finish(container);
  assert.deepEqual(done, ["first", "second", "first", "second", "first", "second"]);
  assert.equal(owner.faults.length, 1);
});

Deno.test("work that never ends does not keep a turn from ending", () => {
  const works = new TurnWorks();
  let first = 0;
  works.add({ endOfTurn: () => ++first > 0 });
  assert.equal(works.finish(container, 5), false);
  assert.equal(first, 5);
  let left = 3;
  const few = new TurnWorks();
  few.add({ endOfTurn: () => left-- > 0 });
  assert.equal(few.finish(container, 5), true);
});

Deno.test("what is added through the view of an owner ends that owner alone", () => {
  const scheduler = new SimulatedScheduler();
  const owner = new Owner();
  const view = ownedBy(owner, scheduler);
  view.addTimer(1, fail);
  let others = 0;
  scheduler.addTimer(1, () => void others++);
  scheduler.turn();
  assert.deepEqual([owner.faults.length, others], [1, 1]);
});
