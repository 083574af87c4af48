import assert from "node:assert/strict";
import { endBySignals, serviceManagerSignals } from "../../src/cli/tapdisk/signals.ts";
import { Succession } from "../../src/cli/tapdisk/succession.ts";

/** A tapdisk that receives a signal, and its resulting state. */
function bench(outlives = false): {
  signal: ReturnType<typeof endBySignals>;
  did: string[];
  refuse: () => void;
} {
  const did: string[] = [];
  let refuse = (): void => {};
  const end = (refused: () => void): void => {
    did.push("close");
    refuse = refused;
  };
  const log = { info(): void {}, error(): void {} };
  const outlivesSigterm = (): boolean => outlives;
  const signal = endBySignals(
    { end, outlivesSigterm, passOn: () => false },
    log,
    (status) => did.push(`exit ${status}`),
  );
  return { signal, did, refuse: () => refuse() };
}

Deno.test("a signal after one that was refused closes all disks in order again", () => {
  const { signal, did, refuse } = bench();
  for (let time = 1; time <= 3; time++) {
    signal(time === 2 ? "SIGINT" : "SIGTERM");
    assert.deepEqual(did, new Array(time).fill("close"));
    refuse();
  }
});

Deno.test("a signal while disks are being closed ends the process at once", () => {
  const { signal, did, refuse } = bench();
  signal("SIGTERM");
  refuse();
  signal("SIGTERM");
  signal("SIGINT");
  assert.deepEqual(did, ["close", "close", "exit 130"]);
  const other = bench();
  other.signal("SIGINT");
  other.signal("SIGTERM");
  assert.deepEqual(other.did, ["close", "exit 143"]);
});

Deno.test("a tapdisk with disks of several callers ends by SIGINT, not by SIGTERM", () => {
  const { signal, did } = bench(true);
  signal("SIGTERM");
  assert.deepEqual(did, []);
  signal("SIGINT");
  signal("SIGTERM");
  assert.deepEqual(did, ["close"]);
});

Deno.test("SIGTERM with SIGCONT, in either order, is a service manager's", () => {
  for (const order of [["SIGTERM", "SIGCONT"], ["SIGCONT", "SIGTERM"]] as const) {
    let ended = 0;
    let nowMs = 0;
    const signal = serviceManagerSignals(() => ended++, () => nowMs);
    for (const each of order) signal(each);
    assert.equal(ended, 1);
    nowMs += 1000;
    signal(order[0]);
    assert.equal(ended, 1, "each pair counts once");
    nowMs += 5000;
    signal(order[1]);
    assert.equal(ended, 1, "they came apart");
  }
});

Deno.test("signals to a process that has handed its disks over go to the next one", async () => {
  const start = (): Deno.ChildProcess => new Deno.Command("sleep", { args: ["600"] }).spawn();
  const later = start();
  const succession = new Succession();
  assert.equal(succession.passOn("SIGTERM"), false);
  succession.begin(later.pid);
  assert.equal(succession.passOn("SIGINT"), true);
  assert.equal((await later.status).signal, "SIGINT");
  assert.equal(succession.passOn("SIGTERM"), true, "the next one has ended, too");
  await succession.lastTurns();
  // What came before is still in effect.
  const earlier = start();
  const noted = new Succession();
  noted.note("SIGTERM", 600_000);
  noted.begin(earlier.pid);
  assert.equal((await earlier.status).signal, "SIGTERM");
});

Deno.test("a tapdisk that has handed its disks over does nothing for a signal itself", () => {
  const did: string[] = [];
  const signal = endBySignals(
    {
      end: () => did.push("close"),
      outlivesSigterm: () => false,
      passOn: (signal) => did.push(`on ${signal}`) > 0,
    },
    { info(): void {}, error(): void {} },
    (status) => did.push(`exit ${status}`),
  );
  signal("SIGTERM");
  signal("SIGTERM");
  assert.deepEqual(did, ["on SIGTERM", "on SIGTERM"]);
});
