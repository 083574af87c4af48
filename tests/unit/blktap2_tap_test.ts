/** The end of a tap of the blktap2 driver when the driver fails. */
import assert from "node:assert/strict";
import {
  BLKTAP_IOCTL_ALLOC_TAP,
  type BlktapDriver,
  type BlktapRingDevice,
} from "../../ffi/blktap.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { Tap } from "../../src/frontend/blktap2/tap.ts";

/** The result of freeing a tap, and the effect of removing its nodes. */
interface Ending {
  readonly free: () => number;
  readonly removeNodes: () => void;
  readonly close?: () => Promise<void>;
}

function driverWith({ free, removeNodes, close = () => Promise.resolve() }: Ending): BlktapDriver {
  const ring: BlktapRingDevice = {
    fd: -1,
    map() {},
    call: () => 0,
    respond() {},
    woken() {},
    close,
  };
  return {
    missing: () => null,
    control(request, argument): number {
      if (request !== BLKTAP_IOCTL_ALLOC_TAP || typeof argument === "number") return free();
      new Uint32Array(argument.buffer).set([240, 253, 7]);
      return 0;
    },
    openRing: () => ring,
    makeNode: () => "/dev/xen/blktap-2/tapdev7",
    removeNodes,
    clearUp() {},
  };
}

function fail(): never {
  throw new SystemError(Errno.ENOENT, "Cannot open /dev/xen/blktap-2/control");
}

const cases: readonly (readonly [string, Ending, RegExp])[] = [
  ["the driver has gone", { free: fail, removeNodes() {} }, /tap 7: Cannot open.*ENOENT/],
  ["the tap is busy", { free: () => -Errno.EBUSY, removeNodes() {} }, /Cannot free tap 7.*EBUSY/],
  ["the ring does not close", {
    free: () => 0,
    removeNodes() {},
    close: () => Promise.reject(new SystemError(Errno.EIO, "Cannot close descriptor 9")),
  }, /tap 7: Cannot close.*EIO/],
  ["its nodes stay", { free: () => 0, removeNodes: fail }, /tap 7: Cannot open.*ENOENT/],
];

for (const [what, ending, expected] of cases) {
  for (const inUse of [false, true]) {
    const when = inUse ? "once its users have left" : "at once";
    Deno.test(`a tap that ends ${when} is told of in the log when ${what}`, async () => {
      const warnings: string[] = [];
      const log = { info() {}, warn: (text: string) => void warnings.push(text), error() {} };
      const tap = new Tap(driverWith(ending), log);
      tap.release({ inUse, freed: false });
      // An unhandled rejection ends a process.
      await new Promise((resolve) => setTimeout(resolve, 0));
      assert.equal(warnings.length, 1);
      assert.match(warnings[0], expected);
    });
  }
}
