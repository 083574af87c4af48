import assert from "node:assert/strict";
import { stateBits, type VbdPhase } from "../../src/vbd/vbd_phase.ts";

/** The values of tapdisk (TD_VBD_* of tapdisk-vbd.h). */
const BITS: readonly [VbdPhase, number][] = [
  ["closed", 0x2],
  ["open", 0],
  ["pausing", 0x14],
  ["paused", 0x2a],
  ["closing", 0x40],
  ["failed", 0x1],
];

Deno.test("each phase of a device has its state bits of the control protocol", () => {
  for (const [phase, bits] of BITS) {
    assert.equal(stateOf(phase), bits, phase);
  }
});

Deno.test("a device that never had an image has no state bit, as in tapdisk", () => {
  assert.equal(stateOf("closed", { wasOpened: false }), 0);
});

type Facts = Partial<Omit<Parameters<typeof stateBits>[0], "phase">>;

function stateOf(phase: VbdPhase, facts: Facts = {}): number {
  return stateBits({ phase, wasOpened: true, failed: false, resumeFailed: false, ...facts });
}

Deno.test("a resume that failed is a bit of its own, also after a fault", () => {
  assert.equal(stateOf("paused", { resumeFailed: true }), 0x22a);
  assert.equal(stateOf("failed", { failed: true, resumeFailed: true }), 0x201);
});

Deno.test("a device that failed and is being closed is dead still", () => {
  assert.equal(stateOf("closing", { failed: true }), 0x41);
  assert.equal(stateOf("open", { failed: true }), 0);
});
