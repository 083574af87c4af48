import assert from "node:assert/strict";
import { EVERYTHING } from "../../src/scheduler/faults.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";
import { ClientTimes } from "../../src/vbd/client_times.ts";
import { type SlotClaim, type SlotHolder, SlotShares } from "../../src/vbd/slot_shares.ts";
import { SLOTS, SlotTable } from "../../src/vbd/slots.ts";

/** Slot shares on a simulated clock; waiting holders are called as soon as a slot is free. */
class Bench {
  readonly scheduler = new SimulatedScheduler();
  readonly slots = new SlotTable();
  readonly clients = new ClientTimes(this.scheduler.lastMs);
  readonly shares: SlotShares;
  #calls = false;

  constructor() {
    this.shares = new SlotShares(this.slots, {
      scheduler: this.scheduler,
      faults: EVERYTHING,
      clients: this.clients,
      callSoon: () => this.#calls = true,
    });
  }

  /** Calls waiting holders, as the end of a turn does. */
  endTurn(): void {
    while (this.#calls) {
      this.#calls = false;
      this.shares.callWaiters();
    }
  }

  /** Advances the clock. */
  pass(ms: number): void {
    const untilMs = this.scheduler.nowMs() + ms;
    this.scheduler.addTimer(ms, () => {});
    while (this.scheduler.nowMs() < untilMs) {
      this.scheduler.turn();
      this.endTurn();
    }
  }
}

/** Takes as many slots as it is allowed, up to `wanted`. */
class Holder implements SlotHolder {
  readonly claim: SlotClaim;
  readonly slots: number[] = [];
  readonly lost: string[] = [];
  servedMs = -1;

  constructor(readonly bench: Bench, public wanted: number) {
    this.claim = bench.shares.open(this);
    this.takeAll();
  }

  takeAll(): void {
    while (this.slots.length < this.wanted) {
      if (this.claim.mayTake(1) === 0) return this.claim.wait();
      this.slots.push(this.claim.take());
      if (this.servedMs < 0) this.servedMs = this.bench.scheduler.nowMs();
    }
  }

  slotsFree(): void {
    this.takeAll();
  }

  giveUpSlots(why: string): void {
    this.lost.push(why);
    this.wanted = 0;
    for (const slot of this.slots.splice(0)) this.claim.give(slot);
    this.claim.end();
  }

  giveOne(): void {
    const slot = this.slots.shift();
    if (slot !== undefined) this.claim.give(slot);
    this.bench.endTurn();
  }
}

Deno.test("slot shares: nobody takes more than are left for others", () => {
  const bench = new Bench();
  const held = [64, 32, 16, 8, 4, 2, 1].map((most) => {
    const holder = new Holder(bench, SLOTS);
    assert.equal(holder.slots.length, most);
    return holder;
  });
  // While the first holder releases its slots, all shares become about equal.
  for (let i = 0; i < 60; i++) held[0].giveOne();
  assert.ok(held.every(({ slots }) => slots.length <= 32));
});

Deno.test("slot shares: who has none comes first, in the order in which they came", () => {
  const bench = new Bench();
  const greedy = Array.from({ length: 8 }, () => new Holder(bench, SLOTS));
  const late = Array.from({ length: 5 }, () => new Holder(bench, 3));
  assert.ok(late.every(({ slots }) => slots.length === 0));
  for (let i = 0; i < late.length; i++) {
    assert.equal(late[i].slots.length, 0);
    greedy[0].giveOne();
    assert.ok(late[i].slots.length > 0, `number ${i}`);
  }
});

Deno.test("slot shares: a peer that keeps its slots loses them, the largest share first", () => {
  const bench = new Bench();
  const stuck = Array.from({ length: 8 }, () => new Holder(bench, SLOTS));
  for (const { claim } of stuck) claim.waitForPeer();
  bench.pass(3000);
  assert.ok(stuck.every(({ lost }) => lost.length === 0), "nobody else wanted them");
  const startMs = bench.scheduler.nowMs();
  const late = new Holder(bench, 1);
  bench.pass(1000);
  assert.ok(late.servedMs >= startMs && late.servedMs - startMs < 800, `${late.servedMs}`);
  assert.deepEqual(stuck.map(({ lost }) => lost.length), [1, 0, 0, 0, 0, 0, 0, 0]);
});

Deno.test("slot shares: hundreds that keep one slot each keep nobody waiting for a second", () => {
  const bench = new Bench();
  const stuck = Array.from({ length: SLOTS }, () => new Holder(bench, 1));
  for (const { claim } of stuck) claim.waitForPeer();
  const late = Array.from({ length: 100 }, () => new Holder(bench, 1));
  bench.pass(1000);
  assert.ok(late.every(({ servedMs }) => servedMs >= 0 && servedMs < 1000));
});

Deno.test("slot shares: whoever gives slots back now and then, or waits for the disk, keeps them", () => {
  const bench = new Bench();
  const all = Array.from({ length: 8 }, () => new Holder(bench, SLOTS));
  // The first client reads its answers slowly; the others wait for the disk.
  all[0].claim.waitForPeer();
  const late = new Holder(bench, 2);
  for (let i = 0; i < 20; i++) {
    bench.pass(300);
    all[0].wanted = 0;
    all[0].giveOne();
  }
  assert.ok(late.slots.length > 0);
  assert.ok(all.every(({ lost }) => lost.length === 0));
});

Deno.test("slot shares: a peer that does nothing for a minute loses its slots in any case", () => {
  const bench = new Bench();
  const holder = new Holder(bench, 2);
  holder.claim.waitForPeer();
  bench.pass(50_000);
  assert.equal(holder.lost.length, 0);
  bench.pass(15_000);
  assert.equal(holder.lost.length, 1);
  assert.equal(bench.slots.freeCount, SLOTS);
});
