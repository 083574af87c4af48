/**
 * Frames of a process that hands its disks over, cut and changed at random: the process that takes over gives up with
 * an error, once, and no descriptor of the other stays open.
 *
 * @module
 */
import assert from "node:assert/strict";
import { sendDescriptors } from "../../ffi/descriptors.ts";
import { SystemError } from "../../ffi/errno.ts";
import { closeFile, O_RDONLY, openFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import { sendAt, socketPair } from "../../ffi/sockets.ts";
import { HandoverChannel } from "../../src/control/handover/channel.ts";
import { type Arrived, arrivedFrame, newFrame } from "../../src/control/handover/frames.ts";
import { OPEN_DEFAULTS } from "../../src/control/protocol/open_request.ts";
import { Random } from "../../src/testing/random.ts";
import { openDescriptors } from "../support/served.ts";

const SEEDS = 3000;
const soon = (): number => performance.now() + 20_000;

const request = { ...OPEN_DEFAULTS, image: "vhd:/a.vhd" };
const counts = { options: 1, skip: 0 };
const handshake = {
  ...{ stage: "transmission", structuredReplies: true, contexts: [], noZeroes: true },
  ...counts,
};
const state = { style: "newstyle", handedOver: false, handshake };
const guest = {
  ...{ domain: 3, device: 51712, references: [8, 9], port: 5, protocol: 3 },
  ...{ pollDurationUs: 0, pollIdleThreshold: 50, isReadOnly: false },
};
/** A frame of each kind, with the number of its descriptors. */
const GOOD: [object, number][] = [
  [{ kind: "needs", kinds: ["paused", "key", "tls", "ublk", "ring"] }, 0],
  [{ kind: "paused", minor: 3 }, 0],
  [{ kind: "key", minor: 3 }, 1],
  [{ kind: "rehearse", images: ["vhd:/a.vhd"] }, 0],
  [{ kind: "locks" }, 2],
  [{ kind: "sockets", at: ["/a", "/b"] }, 2],
  [{ kind: "handed", names: ["x"] }, 1],
  [{ kind: "disk", minor: 3, request, sectors: 8, counts: { readSectors: 1 } }, 0],
  [{ kind: "client", minor: 3, frontend: 0, state, rest: "AAAA" }, 1],
  [{ kind: "tls", minor: 3, frontend: 0, state, rest: "AAAA" }, 1],
  [{ kind: "ring", minor: 3, guest, port: 31, taken: -7, isBroken: false }, 1],
  [{ kind: "command", begun: "" }, 1],
  [{ kind: "open" }, 0],
  [{ kind: "serve" }, 0],
];
const VALUES = [null, true, -1, 0.5, 1e300, "", "x", "%%", [], [null], [1, "a"], {}, { at: 3 }];

/** Another value at one place of a value. */
function changed(value: unknown, random: Random): unknown {
  const isLeaf = typeof value !== "object" || value === null || random.below(4) === 0;
  if (isLeaf) return VALUES[random.below(VALUES.length)];
  const keys = Object.keys(value);
  if (keys.length === 0) return VALUES[random.below(VALUES.length)];
  const key = keys[random.below(keys.length)];
  const of = value as Record<string, unknown>;
  const other = random.below(8) === 0 ? undefined : changed(of[key], random);
  return Array.isArray(value)
    ? value.map((each, i) => `${i}` === key ? other : each)
    : { ...of, [key]: other };
}

/** Checks one frame, as its receiver does. */
function take(channel: HandoverChannel): Arrived | null {
  const frame = channel.take();
  return frame === null ? null : arrivedFrame(frame);
}

Deno.test("fuzz: frames as they are sent make sense, with just their descriptors", () => {
  const file = openFile("/dev/null", O_RDONLY);
  const before = openDescriptors(Deno.pid);
  for (const [value, count] of GOOD) {
    for (const given of [0, 1, 2, 3]) {
      const [one, other] = socketPair().map((fd) => new HandoverChannel(fd));
      one.send(value, new Array(given).fill(file), soon());
      if (given === count || ("kind" in value && value.kind === "locks")) {
        for (const fd of take(other)?.descriptors ?? assert.fail()) closeFile(fd);
      } else assert.throws(() => take(other), /makes no sense/, JSON.stringify([value, given]));
      one.close();
      other.close();
    }
  }
  assert.equal(openDescriptors(Deno.pid), before);
  closeFile(file);
});

Deno.test("fuzz: frames that were changed are taken whole, or refused", () => {
  const file = openFile("/dev/null", O_RDONLY);
  const before = openDescriptors(Deno.pid);
  let refused = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const random = new Random(seed);
    const [one, other] = socketPair().map((fd) => new HandoverChannel(fd));
    const [value, count] = GOOD[random.below(GOOD.length)];
    const given = random.below(5) === 0 ? random.below(4) : count;
    one.send(changed(value, random), new Array(given).fill(file), soon());
    try {
      for (const fd of take(other)?.descriptors ?? []) closeFile(fd);
    } catch (error) {
      assert.ok(error instanceof SystemError, `${seed}: ${error}`);
      refused++;
    }
    one.close();
    other.close();
    assert.equal(openDescriptors(Deno.pid), before, `seed ${seed}`);
  }
  assert.ok(refused > SEEDS / 4, `${refused}`);
  closeFile(file);
});

Deno.test("fuzz: bytes that were cut or changed do not get through", () => {
  const before = openDescriptors(Deno.pid);
  for (let seed = 1; seed <= 1000; seed++) {
    const random = new Random(seed);
    const fds = socketPair();
    const channel = new HandoverChannel(fds[1]);
    const text = new TextEncoder().encode(JSON.stringify(GOOD[random.below(GOOD.length)][0]));
    const bytes = new Uint8Array(8 + text.length);
    new DataView(bytes.buffer).setUint32(0, text.length, true);
    bytes.set(text, 8);
    for (let left = random.below(4); left > 0; left--) {
      bytes[random.below(bytes.length)] ^= 1 << random.below(8);
    }
    const length = random.below(3) === 0 ? random.below(bytes.length) : bytes.length;
    if (length > 0) sendAt(fds[0], addressOf(bytes), length);
    closeFile(fds[0]);
    assert.throws(() => {
      for (;;) {
        const taken = take(channel);
        if (taken !== null) newFrame(taken.frame, "ready");
      }
    }, SystemError);
    channel.close();
  }
  assert.equal(openDescriptors(Deno.pid), before);
});

Deno.test("fuzz: a peer that sends descriptors without end is cut off", () => {
  const before = openDescriptors(Deno.pid);
  const file = openFile("/dev/null", O_RDONLY);
  const many = new Array(200).fill(file);
  for (const most of [0, 253]) {
    const fds = socketPair();
    const channel = new HandoverChannel(fds[1], most);
    // The beginning of a long frame, and then a byte at a time.
    const head = Uint8Array.from([0, 4, 0, 0, 0, 0, 0, 0]);
    sendAt(fds[0], addressOf(head), head.length);
    let sent = 0;
    assert.throws(() => {
      for (; sent < 20; sent++) {
        assert.equal(sendDescriptors(fds[0], Uint8Array.of(32), many), 1);
        channel.take();
      }
    }, SystemError);
    assert.ok(sent < 4, `${sent}`);
    channel.close();
    closeFile(fds[0]);
    assert.equal(openDescriptors(Deno.pid), before + 1);
  }
  closeFile(file);
});
