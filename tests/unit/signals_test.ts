import assert from "node:assert/strict";
import { endBySignals } from "../../src/cli/tapdisk/signals.ts";

/** A tapdisk that receives a signal, and its resulting state. */
function bench(): {
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
  const signal = endBySignals({ end }, log, (status) => did.push(`exit ${status}`));
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
