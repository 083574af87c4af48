/** Numbers that are passed to C: a number that does not fit its type throws before the call. */
import assert from "node:assert/strict";
import { blktapIoctl, blktapMinorOf } from "../../ffi/blktap.ts";
import { checkedCall, checkedCalls } from "../../ffi/checked_calls.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { closeFile, O_RDWR, openFile, readAt, seekData, writeAt } from "../../ffi/files.ts";
import { openLibc } from "../../ffi/libc.ts";
import { equalMemory, zeroMemory } from "../../ffi/memory.ts";
import { POLLIN, waitForDescriptor } from "../../ffi/poll.ts";
import { isAlive } from "../../ffi/process.ts";
import { receiveAt, receiveSeldom, sendAt, sendSeldom } from "../../ffi/sockets.ts";
import { ownerOfSocket } from "../../src/control/client/stale_sockets.ts";
import { numberOfNode } from "../../src/frontend/ublk/node.ts";

const TYPES = ["i32", "u32", "i64", "u64", "isize", "usize"] as const;
type Type = typeof TYPES[number];

type Taking = (...args: unknown[]) => unknown;

/** A function with the checks of its parameters' types: as it is on the data path, and as it is elsewhere. */
const KINDS: Record<string, (parameters: string[], raw: Taking) => Taking> = {
  compiled: (parameters, raw) => checkedCalls({ echo: { parameters } }, { echo: raw }).echo,
  "called once": (parameters, raw) => checkedCall("echo", { parameters }, raw) as Taking,
};

const RANGES: Record<Type, readonly [number, number]> = {
  i32: [-(2 ** 31), 2 ** 31 - 1],
  u32: [0, 2 ** 32 - 1],
  i64: [-(2 ** 63), 2 ** 63 - 1024],
  isize: [-(2 ** 63), 2 ** 63 - 1024],
  u64: [0, 2 ** 64 - 2048],
  usize: [0, 2 ** 64 - 2048],
};

for (const [kind, checked] of Object.entries(KINDS)) {
  /** Passes a number through a C function that returns its argument. */
  const passed = (type: Type, value: number) => checked([type], (got) => got)(value);

  for (const type of TYPES) {
    Deno.test(`a number for ${type} arrives as it is, ${kind}`, () => {
      const [least, most] = RANGES[type];
      for (const value of [least, 0, 1, 1000, most]) assert.equal(passed(type, value), value);
      assert.ok(passed(type, -0) === 0);
    });

    Deno.test(`what is no number for ${type} is not passed, ${kind}`, () => {
      const [least, most] = RANGES[type];
      const outside = [least - Math.max(1, -least / 2 ** 50), most + Math.max(1, most / 2 ** 50)];
      for (const value of [0.5, -0.5, 1e-300, NaN, Infinity, -Infinity, ...outside]) {
        const expected = { name: "RangeError", message: new RegExp(`echo.*parameter 1.*${type}`) };
        assert.throws(() => passed(type, value), expected, `${value}`);
      }
    });
  }

  Deno.test(`32 bits arrive without a sign of zero, which the runtime refuses, ${kind}`, () => {
    assert.ok(Object.is(passed("i32", -0), 0));
    assert.ok(Object.is(passed("u32", -0), 0));
  });

  Deno.test(`pointers and buffers go on as they are, and every parameter is looked at, ${kind}`, () => {
    const bytes = new Uint8Array(4);
    const take = checked(["i32", "buffer", "usize", "pointer"], (...args) => args);
    assert.deepEqual(take(-1, bytes, 7, null), [-1, bytes, 7, null]);
    assert.throws(() => take(-1, bytes, 7.5, null), /parameter 3 \(usize\) is 7\.5/);
    assert.throws(() => take(-1, bytes), /parameter 3 \(usize\) is undefined/);
  });

  Deno.test(`a type that nobody can check is refused before a call, ${kind}`, () => {
    assert.throws(() => checked(["f64"], Math.sin as Taking), /f64/);
  });
}

// A library stays open until the process ends.
const sanitizeResources = false;

Deno.test("real calls take -0 for 0 and no other odd number", { sanitizeResources }, () => {
  const libc = openLibc({
    abs: { parameters: ["i32"], result: "i32" },
    labs: { parameters: ["i64"], result: "i32" },
  });
  assert.equal(libc.abs(-0), 0);
  assert.equal(libc.abs(-7), 7);
  for (const value of [NaN, 1.5, 2 ** 31, -(2 ** 31) - 1]) {
    assert.throws(() => libc.abs(value), RangeError);
  }
  assert.equal(libc.labs(-0), 0);
  for (const value of [NaN, 1.5, Infinity]) assert.throws(() => libc.labs(value), RangeError);
});

Deno.test("an ioctl of the blktap2 driver takes every number that a caller may have", () => {
  const nothing = openFile("/dev/null", O_RDWR);
  try {
    for (const number of [0, -0, -2, 16383]) {
      assert.equal(blktapIoctl(nothing, 206, number), -Errno.ENOTTY);
    }
    assert.throws(() => blktapIoctl(nothing, 206, NaN), RangeError);
    assert.throws(() => blktapIoctl(nothing, 206, 2 ** 40), RangeError);
  } finally {
    closeFile(nothing);
  }
});

Deno.test("an address or a length that was computed wrongly reaches no memory", () => {
  for (const wrong of [NaN, -1, 0.5, 2 ** 64]) {
    assert.throws(() => zeroMemory(wrong, 0), RangeError);
    assert.throws(() => equalMemory(0, 0, wrong), RangeError);
    assert.throws(() => sendAt(-1, 0, wrong), RangeError);
    assert.throws(() => receiveAt(-1, wrong, 0), RangeError);
    assert.throws(() => sendSeldom(-1, 0, wrong), RangeError);
    assert.throws(() => receiveSeldom(-1, wrong, 0), RangeError);
  }
});

Deno.test("an offset that no file can have is the file's error", () => {
  const file = openFile("/dev/null", O_RDWR);
  const einval = (error: unknown) => error instanceof SystemError && error.errno === Errno.EINVAL;
  try {
    for (const offset of [-1, 2 ** 63, 2 ** 64, Infinity, NaN]) {
      assert.throws(() => readAt(file, new Uint8Array(1), offset), einval);
      assert.throws(() => writeAt(file, new Uint8Array(1), offset), einval);
      assert.throws(() => seekData(file, offset), einval);
    }
  } finally {
    closeFile(file);
  }
});

Deno.test("numbers in names that no process and no device can have are nobody's", () => {
  assert.equal(isAlive(Deno.pid), true);
  for (const pid of [0, -1, 2 ** 31, 99_999_999_999, NaN]) assert.equal(isAlive(pid), false);
  assert.equal(ownerOfSocket("ctl2147483647"), 2 ** 31 - 1);
  for (const name of ["ctl2147483648", "ctl99999999999", "nbd99999999999.0"]) {
    assert.equal(ownerOfSocket(name), undefined);
  }
  assert.equal(numberOfNode("/dev/ublkb99999999999"), -1);
  assert.equal(blktapMinorOf("/dev/xen/blktap-2/tapdev99999999999"), -1);
});

Deno.test("a descriptor is waited for however long or short the time is", () => {
  const ready = openFile("/dev/zero", O_RDWR);
  try {
    for (const timeoutMs of [0, -0, -5, 0.25, 1e9, 2 ** 31, 1e15, Infinity]) {
      assert.equal(waitForDescriptor(ready, POLLIN, timeoutMs), true);
    }
  } finally {
    closeFile(ready);
  }
});

Deno.test("only one function opens libraries, and it checks their calls", () => {
  const opening = /Deno\.dlopen\(|UnsafeFnPointer/;
  const folder = new URL("../../", import.meta.url);
  const found: string[] = [];
  const look = (path: string): void => {
    for (const { name, isDirectory } of Deno.readDirSync(new URL(path, folder))) {
      if (isDirectory) look(`${path}${name}/`);
      else if (
        name.endsWith(".ts") && opening.test(Deno.readTextFileSync(new URL(path + name, folder)))
      ) {
        found.push(path + name);
      }
    }
  };
  look("ffi/");
  look("src/");
  assert.deepEqual(found, ["ffi/libc.ts"]);
});
