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
    assert.equal(stateBits({ phase, failed: false, resumeFailed: false }), bits, phase);
  }
});

Deno.test("a resume that failed is a bit of its own, also after a fault", () => {
  assert.equal(stateBits({ phase: "paused", failed: false, resumeFailed: true }), 0x22a);
  assert.equal(stateBits({ phase: "failed", failed: true, resumeFailed: true }), 0x201);
});

Deno.test("a device that failed and is being closed is dead still", () => {
  assert.equal(stateBits({ phase: "closing", failed: true, resumeFailed: false }), 0x41);
  assert.equal(stateBits({ phase: "open", failed: true, resumeFailed: false }), 0);
});
