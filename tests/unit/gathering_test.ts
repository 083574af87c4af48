import assert from "node:assert/strict";
import { Gathering } from "../../src/scheduler/gathering.ts";

/** The cost of a turn itself, and the minimum time of a sleep of the loop. */
const TURN_US = 8;
const SLEEP_US = 25;

interface Outcome {
  readonly rate: number;
  /** Share of the turns after which the loop slept. */
  readonly slept: number;
}

/**
 * A loop and a client with `depth` requests in flight, for `forMs`. The client needs `clientUs` for
 * each request and has all answers of the loop at once; the loop needs `serverUs` for each.
 */
function run(
  gathering: Gathering,
  { depth, clientUs, serverUs, forMs }: {
    depth: number;
    clientUs: number;
    serverUs: number;
    forMs: number;
  },
): Outcome {
  let nowUs = 0;
  /** The time at which the client submits the next request. */
  let clientAtUs = 0;
  let atClient = depth;
  let atLoop = 0;
  let served = 0;
  let turns = 0;
  let sleeps = 0;
  let endedUs = 0;
  const catchUp = (untilUs: number): void => {
    while (atClient > 0 && clientAtUs + clientUs <= untilUs) {
      clientAtUs += clientUs;
      atClient--;
      atLoop++;
    }
    if (atClient === 0) clientAtUs = Math.max(clientAtUs, untilUs);
  };
  while (nowUs < forMs * 1000) {
    catchUp(nowUs);
    if (atLoop === 0) catchUp(nowUs = Math.max(nowUs, clientAtUs + clientUs));
    const taken = atLoop;
    const doneUs = nowUs + TURN_US + taken * serverUs;
    catchUp(doneUs);
    atLoop -= taken;
    atClient += taken;
    served += taken;
    turns++;
    nowUs = doneUs;
    const sleepUs = gathering.after(taken, nowUs - endedUs);
    endedUs = nowUs;
    if (sleepUs > 0) {
      sleeps++;
      nowUs += sleepUs + SLEEP_US;
    }
  }
  return { rate: served / forMs, slept: sleeps / turns };
}

/** Never sleeps, for comparison. */
class Never extends Gathering {
  override after(): number {
    return 0;
  }
}

Deno.test("gathering: a client with many requests under way loses nothing, and is served in larger turns", () => {
  for (const clientUs of [6, 7, 8]) {
    const load = { depth: 64, clientUs, serverUs: 4, forMs: 2000 };
    const { rate, slept } = run(new Gathering(), load);
    assert.ok(rate >= 0.97 * run(new Never(), load).rate, `${rate} requests/ms`);
    assert.ok(slept > 0.2, `${slept} of the turns`);
  }
});

Deno.test("gathering: a client with few requests under way is hardly kept waiting", () => {
  for (const depth of [1, 2, 3, 4, 6, 8]) {
    const load = { depth, clientUs: 7, serverUs: 4, forMs: 4000 };
    const { rate } = run(new Gathering(), load);
    const plain = run(new Never(), load).rate;
    assert.ok(rate >= 0.97 * plain, `depth ${depth}: ${rate} of ${plain} requests/ms`);
  }
});

Deno.test("gathering: a client that is slow is not waited for", () => {
  const load = { depth: 32, clientUs: 60, serverUs: 4, forMs: 2000 };
  assert.equal(run(new Gathering(), load).slept, 0);
});

Deno.test("gathering: full turns follow each other at once", () => {
  const gathering = new Gathering();
  for (let turn = 0; turn < 10_000; turn++) assert.equal(gathering.after(32, 150), 0);
});

Deno.test("gathering: it stops with the load it did well with", () => {
  const gathering = new Gathering();
  run(gathering, { depth: 64, clientUs: 7, serverUs: 4, forMs: 500 });
  const { rate } = run(gathering, { depth: 1, clientUs: 7, serverUs: 4, forMs: 2000 });
  const plain = run(new Never(), { depth: 1, clientUs: 7, serverUs: 4, forMs: 2000 }).rate;
  assert.ok(rate >= 0.96 * plain, `${rate} of ${plain} requests/ms`);
});
