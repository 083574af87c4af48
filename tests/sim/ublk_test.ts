import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { UBLK_F_USER_RECOVERY } from "../../ffi/ublk.ts";
import { Random } from "../../src/testing/random.ts";
import { type ControlRing, UblkControl } from "../../src/frontend/ublk/control.ts";
import type { UblkHost } from "../../src/frontend/ublk/host.ts";
import { UblkDevice } from "../../src/frontend/ublk/ublk_device.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { SLOT_BYTES, SLOTS } from "../../src/vbd/slots.ts";
import { burst, DISK_MIB, Model, readAll } from "../support/disk_model.ts";
import { SeenPages } from "../support/metrics.ts";
import { DEPTH, PlayedUblk, QUEUES } from "../support/played_ublk.ts";
import {
  assertHolds,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
  stampOf,
} from "../support/sim.ts";

const TAGS = QUEUES * DEPTH;

function open(seed: number, latencyMs: number, metrics?: SeenPages): SimulatedDevice {
  const simulation = new Simulation({ seed, latencyMs, metrics });
  const storage = simulation.disk;
  createDynamic("/disk.vhd", { storage, sizeBytes: DISK_MIB * 1024 * 1024 });
  return simulation.open("vhd:/disk.vhd");
}

function end(device: SimulatedDevice, kernel: PlayedUblk): void {
  kernel.stop();
  assert.equal(kernel.gone, QUEUES);
  assert.equal(device.vbd.requests.freeSlots, SLOTS);
  kernel.close();
  device.close();
}

for (let seed = 1; seed <= 6; seed++) {
  Deno.test(`requests of a ublk device read back as a model says, seed ${seed}`, () => {
    const random = new Random(seed);
    const metrics = new SeenPages();
    const device = open(seed, seed % 3 === 0 ? 0 : 5, metrics);
    const kernel = new PlayedUblk(device);
    const model = new Model();
    for (let round = 1; round <= 12; round++) {
      burst(kernel, model, random, round);
      if (!random.chance(0.3)) continue;
      device.pause();
      device.resume();
    }
    readAll(kernel, model);
    assert.equal(kernel.failed, 0);
    // Each request of the kernel is one of the disk: none is in parts.
    const seen = metrics.read("blktap-0");
    assert.deepEqual(seen, metrics.read("vdi-0"));
    assert.ok(seen.read_sectors > 0 && seen.write_sectors > 0 && seen.oo_reqs === 0);
    end(device, kernel);
  });
}

Deno.test("every tag has memory of its own, and other clients have slots left", () => {
  const device = open(1, 5);
  const kernel = new PlayedUblk(device);
  const places = [...kernel.addresses].sort((a, b) => a - b);
  assert.equal(new Set(places).size, TAGS);
  for (let i = 1; i < TAGS; i++) assert.ok(places[i] - places[i - 1] >= SLOT_BYTES);
  assert.equal(device.vbd.requests.freeSlots, SLOTS - TAGS);
  end(device, kernel);
});

Deno.test("requests to a paused disk wait, and are answered when it goes on", () => {
  const device = open(1, 5);
  const kernel = new PlayedUblk(device);
  device.pause();
  const write = kernel.write(0, stampedSectors(0, 8, 1));
  for (let i = 0; i < 10; i++) device.simulation.scheduler.turn();
  kernel.take();
  assert.equal(write.errno, null);
  device.resume();
  kernel.settle();
  assert.equal(write.errno, 0);
  end(device, kernel);
});

/** Delivers a write to each tag of a queue. */
function fill(kernel: PlayedUblk, queue: number): void {
  for (let tag = queue * DEPTH; tag < (queue + 1) * DEPTH; tag++) {
    kernel.describe(tag, 1, 8 * tag, 8);
    kernel.deliver(tag);
  }
}

function hold(kernel: PlayedUblk, isHeld: boolean): void {
  for (const queue of kernel.queues) queue.hold(isHeld);
  kernel.take();
}

function turns({ simulation: { scheduler } }: SimulatedDevice, kernel: PlayedUblk): void {
  for (let i = 0; i < 20; i++) {
    scheduler.turn();
    kernel.take();
  }
}

Deno.test("a queue that is held gives no answers, and begins again when it goes on", () => {
  const device = open(1, 5);
  const kernel = new PlayedUblk(device);
  fill(kernel, 0);
  hold(kernel, true);
  assert.equal(kernel.queues[0].isQuiet, false, "requests are under way");
  turns(device, kernel);
  assert.deepEqual(kernel.queues.map(({ isQuiet }) => isQuiet), [true, true]);
  assert.equal(kernel.answered, 0);
  const write = kernel.write(0, stampedSectors(0, 8, 1));
  turns(device, kernel);
  assert.equal(device.vbd.requests.outstanding, 0);
  hold(kernel, false);
  assert.equal(kernel.answered, DEPTH + 1);
  assert.equal(write.errno, 0);
  assert.equal(kernel.failed, 0);
  assertHolds(device, 0, 8, 1);
  end(device, kernel);
});

Deno.test("of the requests to a queue that is held, the first is begun while the disk runs", () => {
  const device = open(1, 5);
  const kernel = new PlayedUblk(device);
  hold(kernel, true);
  fill(kernel, 0);
  assert.equal(device.vbd.requests.outstanding, 1);
  turns(device, kernel);
  assert.deepEqual(kernel.queues.map(({ canLetGo }) => canLetGo), [true, true]);
  assert.equal(kernel.answered, 0);
  for (const queue of kernel.queues) queue.letGo();
  kernel.take();
  assert.equal(kernel.answered, 1, "the kernel has a command of the queue");
  assert.equal(kernel.holds(0), true);
  hold(kernel, false);
  kernel.settle();
  turns(device, kernel);
  assert.equal(kernel.answered, DEPTH);
  end(device, kernel);
});

Deno.test("a queue that is full with requests to a paused disk cannot be let go", () => {
  const device = open(1, 5);
  const kernel = new PlayedUblk(device);
  device.pause();
  hold(kernel, true);
  fill(kernel, 1);
  assert.deepEqual(kernel.queues.map(({ isQuiet }) => isQuiet), [true, true]);
  assert.deepEqual(kernel.queues.map(({ canLetGo }) => canLetGo), [true, false]);
  assert.equal(device.vbd.requests.outstanding, 0, "they wait at the queue");
  device.resume();
  hold(kernel, false);
  turns(device, kernel);
  assert.equal(kernel.answered, DEPTH);
  end(device, kernel);
});

Deno.test("a queue that is held fails all requests when its device is given up", () => {
  const device = open(1, 5);
  const kernel = new PlayedUblk(device);
  hold(kernel, true);
  fill(kernel, 0);
  turns(device, kernel);
  for (const queue of kernel.queues) queue.abandon();
  kernel.take();
  assert.equal(kernel.failed, DEPTH);
  end(device, kernel);
});

Deno.test("what was never offered, is too long or beyond the end gets an error", () => {
  const device = open(1, 5);
  const kernel = new PlayedUblk(device);
  const pastEnd = DISK_MIB * 2048;
  const answers: [operation: number, sector: number, count: number][] = [
    [4, 0, 8],
    [0, 0, 513],
    [1, 0, 1024],
    [0, pastEnd, 1],
    [1, pastEnd - 1, 2],
    [5, pastEnd, 8],
    [0, 2 ** 50, 8],
  ];
  answers.forEach(([operation, sector, count], tag) => {
    kernel.describe(tag, operation, sector, count);
    kernel.deliver(tag);
  });
  kernel.take();
  assert.equal(kernel.answered, answers.length);
  assert.equal(kernel.failed, answers.length);
  end(device, kernel);
});

Deno.test("a device that is let go of answers at once, and gives slots back when they are done", () => {
  const device = open(1, 50);
  const kernel = new PlayedUblk(device);
  const writes = Array.from(
    { length: 20 },
    (_, i) => kernel.write(i * 8, stampedSectors(i * 8, 8, 1)),
  );
  const before = kernel.addresses.slice();
  for (const queue of kernel.queues) queue.abandon();
  kernel.take();
  for (const { errno } of writes) assert.equal(errno, Errno.EIO);
  // New requests must not use the memory of requests that are still in flight at the disk.
  const moved = kernel.addresses.filter((address, tag) => address !== before[tag]);
  assert.equal(moved.length, writes.length);
  const late = kernel.write(4096, stampedSectors(4096, 8, 2));
  kernel.take();
  assert.equal(late.errno, Errno.EIO);
  kernel.stop();
  assert.equal(kernel.gone, QUEUES);
  assert.equal(device.vbd.requests.freeSlots, SLOTS - writes.length);
  device.simulation.runUntil(() => device.vbd.requests.freeSlots === SLOTS, "A request");
  kernel.close();
  device.close();
});

Deno.test("a disk can end before the kernel has let go of the memory of its slots", () => {
  const device = open(1, 5);
  const kernel = new PlayedUblk(device);
  for (const queue of kernel.queues) queue.abandon();
  device.close();
  const { memory } = device.vbd.requests;
  memory.bytes[0] = 1;
  assert.equal(memory.bytes[0], 1);
  kernel.stop();
  assert.equal(kernel.gone, QUEUES);
  // The release of the last slot freed the pages.
  assert.equal(memory.bytes[0], 0);
  kernel.close();
});

Deno.test("a ublk write with FUA is synced before its answer, another is not", () => {
  const device = open(1, 0);
  const kernel = new PlayedUblk(device);
  let syncs = 0;
  for (let sector = 0; sector < 4096; sector += 512) {
    kernel.write(sector, stampedSectors(sector, 512, 1));
  }
  kernel.settle();
  device.simulation.fault = (kind): number => {
    if (kind === "sync") syncs++;
    return 0;
  };
  for (const fua of [false, true]) {
    const write = kernel.write(8, stampedSectors(8, 8, 2), fua);
    kernel.settle();
    assert.deepEqual([write.errno, syncs], [0, fua ? 1 : 0]);
  }
  device.simulation.fault = null;
  end(device, kernel);
});

Deno.test("a disk that failed: the kernel puts no data where the disk may still read that of a request", () => {
  for (let seed = 1; seed <= 10; seed++) {
    const device = open(seed, 50);
    const { simulation, vbd } = device;
    simulation.expectsFaults = true;
    const kernel = new PlayedUblk(device);
    const first = kernel.write(0, stampedSectors(0, 64, 1));
    kernel.settle();
    assert.equal(first.errno, 0);
    const second = kernel.write(0, stampedSectors(0, 64, 2));
    for (let turns = seed % 3; turns > 0; turns--) simulation.scheduler.turn();
    kernel.take();
    vbd.fault(new Error("a fault of the test"));
    for (let turns = 0; second.errno === null && turns < 100; turns++) {
      simulation.scheduler.turn();
      kernel.take();
    }
    // All tags have a request that is refused.
    for (let tag = 0; tag < TAGS; tag++) {
      const other = kernel.write(1024 + tag, stampedSectors(0, 64, 3));
      kernel.take();
      assert.equal(other.errno, Errno.EIO);
    }
    while (simulation.scheduler.turn()) kernel.take();
    let error: unknown = "never called";
    vbd.resume(null, (resumed) => error = resumed);
    simulation.runUntil(() => error === null, "The unpause");
    const read = device.read(0, 64);
    device.settle();
    const { data } = read;
    assert.ok(data !== null);
    for (let i = 0; i < 64; i++) assert.ok([1, 2].includes(stampOf(data, i, i)), `seed ${seed}`);
    // At most one more request of a tag is refused. Then its data is that of the kernel.
    const again = kernel.write(0, stampedSectors(0, 64, 4));
    kernel.settle();
    const last = again.errno === 0 ? again : kernel.write(0, stampedSectors(0, 64, 4));
    kernel.settle();
    assert.equal(last.errno, 0);
    assertHolds(device, 0, 64, 4);
    end(device, kernel);
  }
});

Deno.test("a disk that fails leaves its device to the process that serves it as yet", () => {
  const device = open(1, 5);
  let stops = 0;
  const host = { vbd: device.vbd, control: { stop: () => stops++ } } as unknown as UblkHost;
  const info = { device: 0, flags: UBLK_F_USER_RECOVERY, queues: QUEUES, depth: DEPTH, state: 1 };
  const awaited = new UblkDevice(host, info);
  awaited.await({ ...info, mostBytes: SLOT_BYTES, pid: 1, makerPid: 1 });
  assert.equal(device.vbd.requests.freeSlots, SLOTS - TAGS, "its requests find room later");
  awaited.abandon();
  assert.equal(stops, 0);
  assert.match(awaited.handover?.whyStaying ?? "", /the end of the process that served/);
  new UblkDevice(host, info).abandon();
  assert.equal(stops, 1, "one of this process is stopped");
  device.close();
});

Deno.test("a device that could not be taken over is gone, and its disk can be closed", () => {
  const device = open(1, 5);
  const errors: string[] = [];
  const log = { info() {}, warn() {}, error: (text: string) => void errors.push(text) };
  const ended = (_number: number, answer: (result: number) => void): void => answer(0);
  const control = {
    startRecovery: (_number: number, answer: (result: number) => void) => answer(-Errno.ENODEV),
    ...{ stop: ended, remove: ended, close() {} },
    setParameters: (_number: number, _disk: unknown, answer: (result: number) => void) => answer(0),
  };
  const { scheduler } = device.simulation;
  const host = { vbd: device.vbd, control, scheduler, log } as unknown as UblkHost;
  const info = { device: 0, flags: UBLK_F_USER_RECOVERY, queues: QUEUES, depth: DEPTH, state: 1 };
  const awaited = new UblkDevice(host, info);
  awaited.await({ ...info, mostBytes: SLOT_BYTES, pid: 1, makerPid: 1 });
  assert.equal(awaited.gone, false);
  awaited.takeOver();
  assert.match(errors.join(), /users get errors/);
  assert.equal(awaited.gone, true);
  let discarded = 0;
  awaited.discard(() => discarded++);
  let detached: unknown = "waits";
  awaited.detach((error) => detached = error);
  assert.deepEqual([discarded, detached], [1, null]);
  assert.equal(device.vbd.requests.freeSlots, SLOTS);
  device.close();
});

Deno.test("commands to the ublk driver end once, however often that is asked for", () => {
  let removed = 0;
  const ring = { add: () => 0, remove: () => void removed++ } as unknown as ControlRing;
  const control = new UblkControl(ring, "/dev/null");
  control.close();
  control.close();
  assert.equal(removed, 1, "the ring has other users");
});
