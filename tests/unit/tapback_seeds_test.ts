/**
 * tapback on a played Xen host, with all moves of guests and toolstacks in any order, by a seed: see
 * `played_host.ts` for what holds at every step. At the end everything comes to rest, and each device
 * is where it belongs.
 */
import assert from "node:assert/strict";
import { Random } from "../../src/testing/random.ts";
import { XsType } from "../../src/xenstore/wire.ts";
import { type PlayedDevice, PlayedHost } from "../support/xen/played_host.ts";

const SEEDS = Number(Deno.env.get("TAPBACK_SEEDS") ?? 20);
const FIRST_SEED = Number(Deno.env.get("TAPBACK_SEED") ?? 1);
const MOVES = 120;
/**
 * Seeds that found faults: a ring at a tapdisk that was replaced, a connect and a disconnect without an
 * answer.
 */
const KEPT = [2, 100, 1034, 9352];

/** A text that a guest may write. */
function nonsense(random: Random): string {
  const texts = [
    "",
    "0",
    "3",
    "4",
    "-1",
    "1e9",
    "4294967296",
    "x".repeat(3000),
    "\u0000",
    "é",
    "6 ",
  ];
  return texts[random.below(texts.length)];
}

/** One move of a device; what it was, for a failure. */
function move(host: PlayedHost, device: PlayedDevice, random: Random): string {
  const moves: [string, () => void][] = device.exists
    ? [
      ["attach", () => device.pid === 0 && device.attach(1000 + random.below(5000))],
      ["attach", () => device.pid === 0 && device.attach(1000 + random.below(5000))],
      ["unplug", () => device.requestUnplug()],
      ["remove", () => device.backState === 6 && device.remove()],
      ["remove at once", () => random.chance(0.2) && device.remove()],
      ["destroy", () => host.store.remove(`/local/domain/${device.guest.domain}`)],
      ["resize", () => device.resize(1000 + random.below(5000))],
      ["recover", () => device.pid !== 0 && device.recover()],
      ["hang", () => device.pid !== 0 && host.tapdisks.silent.add(device.pid)],
      ["wake", () => host.tapdisks.wake(device.pid)],
      ["kill", () => host.tapdisks.kill(device.pid)],
      ["medium", () => device.pid !== 0 && (host.tapdisks.kill(0), device.attach(2000))],
      ["eject", () => device.put({ "physical-device-path": "" })],
      ["point", () => device.pid !== 0 && device.point()],
      ["use", () => device.isInUse = !device.isInUse],
      ["sleep", () => device.isAwake = !device.isAwake],
      ["begin", () => device.frontState = 1],
      ["close", () => device.frontState = 6],
      ["closing", () => device.frontState = 5],
      ["ring", () => device.frontState > 0 && device.makeRing()],
      ["state", () => device.putFront({ state: nonsense(random) })],
      ["order", () => device.putFront({ "ring-page-order": nonsense(random) })],
      ["reference", () => device.putFront({ "ring-ref": nonsense(random) })],
      ["channel", () => host.store.remove(`${device.front}/event-channel`)],
    ]
    : [["plug", () => (host.store.remove(device.front), device.plug())]];
  const [name, act] = moves[random.below(moves.length)];
  act();
  return `${name} ${device.guest.domain}/${device.guest.device}`;
}

/** A move of the host. */
function hostMove(host: PlayedHost, random: Random): string {
  switch (random.below(3)) {
    case 0:
      host.dropConnections();
      return "drop connections";
    case 1:
      // A tapdisk that hangs may connect a ring for a tapback that has ended, and for a device whose
      // nodes, with the record of that ring, are gone: nobody can know of it. So it is killed.
      for (const pid of host.tapdisks.silent) host.tapdisks.kill(pid);
      host.stop();
      host.run(random.below(100));
      host.start();
      return "restart";
    default:
      host.tapdisks.faults = random.chance(0.5) ? 0 : 0.3;
      return `faults ${host.tapdisks.faults}`;
  }
}

/** Ends a device as a toolstack that has patience does, whatever state it is in. */
function settle(host: PlayedHost, device: PlayedDevice): void {
  device.isAwake = true;
  device.isInUse = false;
  if (!device.exists) return;
  host.store.remove(device.front);
  host.run(40_000);
  assert.equal(device.backState, 6, `${device.back} does not close`);
  device.remove();
}

function runSeed(seed: number): void {
  const random = new Random(seed);
  const host = new PlayedHost(seed);
  const bystander = host.addConnected(9, 51712);
  for (const domain of [3, 4]) for (const number of [51712, 51728]) host.add(domain, number);
  const moved = host.devices.slice(1);
  const done: string[] = [];
  // Others act between what tapback reads and what it writes.
  host.store.beforeRequest = ({ transaction, type }) => {
    const isStart = type === XsType.TRANSACTION_START;
    if (!host.isMoving || (transaction === 0 && !isStart)) return;
    if (!random.chance(isStart ? 0.2 : 0.02)) return;
    done.push(`(${move(host, moved[random.below(moved.length)], random)})`);
  };
  host.isMoving = true;
  try {
    for (let i = 0; i < MOVES; i++) {
      const device = moved[random.below(moved.length)];
      done.push(random.chance(0.05) ? hostMove(host, random) : move(host, device, random));
      if (random.chance(0.6)) host.run(random.below(200));
      assert.deepEqual([bystander.frontState, bystander.backState], [4, 4], "the bystander");
    }
    host.tapdisks.faults = 0;
    host.isMoving = false;
    host.tapdisks.wakeAll();
    host.run(40_000);
    for (const device of moved) settle(host, device);
    host.rest();
    for (const device of moved) {
      device.plug();
      device.attach();
    }
    host.rest();
    for (const device of host.devices) {
      assert.deepEqual([device.frontState, device.backState], [4, 4], device.back);
    }
  } catch (error) {
    const where = `seed ${seed}, after: ${done.slice(-25).join(", ")}`;
    throw new Error(`${where}\n${host.lines.slice(-25).join("\n")}`, { cause: error });
  }
}

Deno.test("tapback: lives of devices that found faults", () => KEPT.forEach(runSeed));

Deno.test(`tapback: ${SEEDS} lives of devices in any order`, () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) runSeed(seed);
});
