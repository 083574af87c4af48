/**
 * What a client has asked for on a connection that it lost, and what it asks for on the next one: the
 * older never ends up over the newer.
 *
 * @module
 */
import assert from "node:assert/strict";
import { duplicate } from "../../ffi/descriptors.ts";
import { EPOLLHUP, EPOLLIN } from "../../ffi/epoll.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { O_RDONLY, openFile } from "../../ffi/files.ts";
import type { SecureStream } from "../../ffi/secure_stream.ts";
import { NbdConnections } from "../../src/frontend/nbd/connections.ts";
import type { FdHandler } from "../../src/scheduler/scheduler.ts";
import { Random } from "../../src/testing/random.ts";
import { Cmd, CmdFlag } from "../support/nbd_client.ts";
import {
  type OrderClient,
  OrderRig,
  type Transport,
  TRANSPORTS,
} from "../support/nbd_order_rig.ts";

const MIB = 1 << 20;
/** A connection with TLS on which nothing comes. */
const SILENT: SecureStream = {
  why: "",
  hasPending: false,
  hasUnsent: false,
  isInKernel: true,
  receive: () => -Errno.EAGAIN,
  send: () => -Errno.EAGAIN,
  flush: () => 0,
  close: () => {},
};
/** The place of the writes of these tests. */
const SECTOR = 4096;
const LATE_MS = 60_000;

function orderTest(name: string, body: (rig: OrderRig, transport: Transport) => void): void {
  for (const transport of TRANSPORTS) {
    Deno.test(`connection lost (${transport}): ${name}`, () => {
      const rig = new OrderRig({ sizeBytes: 64 * MIB });
      body(rig, transport);
      rig.close();
    });
  }
}

/** The client makes its write again on another connection, and a newer one when that has ended. */
function writeAgain(rig: OrderRig, transport: Transport): OrderClient {
  const next = rig.connect(transport);
  next.write(SECTOR, 8, 1);
  rig.until("the answer", () => next.answered.length === 1);
  next.write(SECTOR + 4, 2, 2);
  rig.until("the answer to the newer one", () => next.answered.length === 2);
  return next;
}

function assertNewest(rig: OrderRig): void {
  assert.deepEqual([SECTOR, SECTOR + 4, SECTOR + 5].map((at) => rig.byteAt(at)), [1, 2, 2]);
}

orderTest("a write that the disk still has lands before what overlaps it", (rig, transport) => {
  const lost = rig.connect(transport);
  rig.delaysMs.push(LATE_MS);
  lost.write(SECTOR, 8, 1);
  rig.poll();
  assert.equal(rig.device.vbd.requests.outstanding, 1);
  lost.close();
  rig.poll();
  writeAgain(rig, transport);
  assert.ok(rig.simulation.scheduler.nowMs() >= LATE_MS, "the late write has ended");
  rig.settle();
  assertNewest(rig);
});

orderTest("what overlaps nothing does not wait for it", (rig, transport) => {
  const lost = rig.connect(transport);
  rig.delaysMs.push(LATE_MS);
  lost.write(SECTOR, 8, 1);
  rig.poll();
  lost.close();
  const next = rig.connect(transport);
  next.write(SECTOR - 8, 8, 3);
  next.write(SECTOR + 8, 8, 4);
  next.ask(Cmd.Flush, 0, 0, { cookie: 5 });
  for (let i = 0; i < 10; i++) rig.pass();
  assert.deepEqual(next.answered.toSorted(), [3, 4, 5]);
  assert.ok(rig.simulation.scheduler.nowMs() < LATE_MS);
});

orderTest("zeroing and discards wait for it, too", (rig, transport) => {
  const lost = rig.connect(transport);
  for (const command of [Cmd.WriteZeroes, Cmd.Trim]) {
    const startMs = rig.simulation.scheduler.nowMs();
    const first = command === Cmd.Trim ? rig.connect(transport) : lost;
    rig.delaysMs.push(LATE_MS);
    first.write(SECTOR, 8, 1);
    rig.poll();
    first.close();
    const next = rig.connect(transport);
    next.ask(command, SECTOR, 8, { cookie: 9 });
    rig.poll();
    assert.equal(rig.device.vbd.requests.outstanding, 2);
    rig.until("the answer", () => next.answered.length === 1);
    assert.ok(rig.simulation.scheduler.nowMs() >= startMs + LATE_MS);
    if (command === Cmd.WriteZeroes) assert.equal(rig.byteAt(SECTOR), 0);
  }
});

orderTest("reads wait for it, too, and see it", (rig, transport) => {
  const lost = rig.connect(transport);
  rig.delaysMs.push(LATE_MS);
  lost.write(SECTOR, 8, 1);
  rig.poll();
  lost.close();
  const next = rig.connect(transport);
  next.ask(Cmd.Read, SECTOR + 7, 1, { cookie: 3 });
  rig.until("the answer", () => next.answered.length > 0);
  assert.ok(rig.simulation.scheduler.nowMs() >= LATE_MS);
  assert.equal(next.data?.at(-1), 1);
});

orderTest("what waits for the end of a pause is given up", (rig, transport) => {
  const lost = rig.connect(transport);
  rig.device.pause();
  rig.delaysMs.push(LATE_MS, 0, 0);
  lost.write(SECTOR, 8, 1);
  lost.write(SECTOR + 100, 8, 7);
  rig.poll();
  lost.close();
  const next = rig.connect(transport);
  next.write(SECTOR + 4, 2, 2);
  rig.poll();
  rig.device.resume();
  rig.settle();
  assert.deepEqual(next.answered, [2]);
  assert.deepEqual([SECTOR, SECTOR + 4, SECTOR + 100].map((at) => rig.byteAt(at)), [0, 2, 0]);
});

/** Delivers no events of the connections that there are, as a loop that is busy elsewhere. */
function lookAway(rig: OrderRig, connect: () => OrderClient): [OrderClient, FdHandler] {
  const handlers: FdHandler[] = [];
  const watch = rig.loop.watch.bind(rig.loop);
  rig.loop.watch = (fd, events, handler, owner): void => {
    watch(fd, events, handler, owner);
    rig.loop.unwatch(fd);
    handlers.push(handler);
  };
  const client = connect();
  rig.loop.watch = watch;
  return [client, handlers[0]];
}

orderTest(
  "what was not received is begun before the next connection, or never",
  (rig, transport) => {
    const [lost, handler] = lookAway(rig, () => rig.connect(transport));
    lost.write(SECTOR, 8, 1);
    rig.poll();
    lost.close();
    writeAgain(rig, transport);
    // The event that is late.
    handler.ready(EPOLLIN | EPOLLHUP);
    rig.settle();
    assertNewest(rig);
    assert.equal(rig.connections.size, 1);
  },
);

orderTest("what came ahead of NBD_CMD_DISC is done, before what comes after", (rig, transport) => {
  const lost = rig.connect(transport);
  rig.device.pause();
  rig.delaysMs.push(LATE_MS);
  lost.write(SECTOR, 8, 1);
  lost.sayGoodbye();
  rig.poll();
  lost.close();
  rig.poll();
  const next = rig.connect(transport);
  next.write(SECTOR + 4, 2, 2);
  rig.poll();
  rig.device.resume();
  rig.settle();
  assert.deepEqual(next.answered, [2]);
  assertNewest(rig);
});

orderTest("so is a batch that is more than the work of a turn", (rig, transport) => {
  const lost = rig.connect(transport);
  lost.writeLast(SECTOR, 60);
  lost.close();
  // The server has received nothing of it.
  const next = rig.connect(transport);
  next.write(SECTOR, 1, 99);
  rig.until("the answer", () => next.answered.length === 1);
  rig.settle();
  const bytes = Array.from({ length: 60 }, (_, i) => rig.byteAt(SECTOR + i));
  assert.deepEqual(bytes, [99, ...Array.from({ length: 59 }, (_, i) => 2 + i)]);
});

/** Beside each other, clients have short turns. */
function shortenTurns(rig: OrderRig, first: OrderClient, second: OrderClient): void {
  for (const client of [second, first, second]) {
    client.write(0, 1, 1);
    rig.turn();
  }
}

/** Writes, and waits for the answer a turn of the loop at a time. */
function writeSoon(rig: OrderRig, client: OrderClient, sector: number, byte: number): void {
  client.write(sector, 1, byte);
  for (let i = 0; !client.answered.includes(byte); i++) {
    assert.ok(i < 200, `${byte} is answered`);
    rig.loop.poll();
    client.look();
    rig.simulation.scheduler.addTimer(1, () => {});
    rig.simulation.scheduler.turn();
  }
}

Deno.test("what a client sent before it hung up is begun at once, or never", () => {
  const rig = new OrderRig({ sizeBytes: 64 * MIB });
  const other = rig.connect("UNIX");
  const lost = rig.connect("UNIX");
  shortenTurns(rig, other, lost);
  for (let i = 0; i < 10; i++) lost.write(SECTOR + 64 * i, 64, 1 + i);
  lost.close();
  const place = SECTOR + 64 * 9;
  // No answer tells the server early that the client is gone.
  rig.simulation.connection.delayOf = (_, sector): number =>
    sector >= SECTOR && sector < place ? 100 : 0;
  // The client has two connections, and makes a request again on the one that it has still.
  for (const byte of [10, 99]) writeSoon(rig, other, place, byte);
  rig.settle();
  assert.equal(rig.byteAt(place), 99);
  rig.close();
});

Deno.test("clients with which another process goes on do not end each other", () => {
  const rig = new OrderRig({ sizeBytes: 64 * MIB });
  const [last, other] = [rig.connect("UNIX"), rig.connect("UNIX")];
  rig.poll();
  rig.connections.hold(true);
  last.writeLast(SECTOR, 3);
  last.close();
  const next = new NbdConnections(rig.loop, rig.device.vbd);
  next.hold(true);
  for (const { fd, state, rest } of rig.connections.handOver()) {
    next.resume(duplicate(fd), { state, rest, tls: null, left: () => {} });
  }
  rig.connections.close();
  assert.equal(next.size, 2);
  next.hold(false);
  other.write(SECTOR + 3, 1, 4);
  rig.until("the answer", () => other.answered.length === 1);
  rig.settle();
  assert.deepEqual([0, 1, 2, 3].map((i) => rig.byteAt(SECTOR + i)), [1, 2, 3, 4]);
  next.close();
  rig.close();
});

Deno.test("a client with TLS that cannot be taken over hears nothing: the other process goes on", () => {
  const rig = new OrderRig({ sizeBytes: 64 * MIB });
  rig.connect("UNIX");
  rig.poll();
  rig.connections.hold(true);
  const [{ state, rest }] = rig.connections.handOver();
  const next = new NbdConnections(rig.loop, rig.device.vbd);
  const fails = (): number => {
    let closes = 0;
    const tls = { ...SILENT, close: (): void => void closes++ };
    const fd = openFile("/dev/null", O_RDONLY);
    assert.throws(
      () => next.resume(fd, { state, rest, tls, left: () => {} }),
      { errno: Errno.EIO },
    );
    return closes;
  };
  rig.loop.watch = (): void => {
    throw new SystemError(Errno.ENOSPC, "Cannot watch a descriptor");
  };
  next.hold(true);
  assert.equal(fails(), 0);
  next.hold(false);
  assert.equal(fails(), 1, "a client of this process is told");
  next.close();
  rig.close();
});

Deno.test("a client that comes while all are held gets nothing old over something new", () => {
  const rig = new OrderRig({ sizeBytes: 64 * MIB });
  const watch = rig.loop.watch.bind(rig.loop);
  let moveBehind = (): void => {};
  rig.loop.watch = (fd, events, handler, owner): void => {
    watch(fd, events, handler, owner);
    moveBehind = (): void => {
      rig.loop.unwatch(fd);
      watch(fd, 0, handler, owner);
    };
  };
  const lost = rig.connect("TCP");
  rig.loop.watch = watch;
  shortenTurns(rig, rig.connect("TCP"), lost);
  rig.connections.hold(true);
  lost.writeLast(SECTOR, 40, false);
  lost.close();
  const next = rig.connect("TCP");
  // The events of the newer connection come first.
  moveBehind();
  rig.simulation.connection.delayOf = (_, sector): number =>
    sector >= SECTOR && sector < SECTOR + 32 ? 100 : 0;
  rig.connections.hold(false);
  for (const byte of [40, 99]) writeSoon(rig, next, SECTOR + 39, byte);
  rig.settle();
  assert.equal(rig.byteAt(SECTOR + 39), 99);
  rig.close();
});

orderTest("the rest of a long request is given up", (rig, transport) => {
  const sectors = 60 * MIB / 512;
  const first = rig.connect(transport);
  first.write(sectors - 8, 8, 5);
  rig.until("the answer", () => first.answered.length === 1);
  rig.delaysMs.push(LATE_MS);
  first.ask(Cmd.WriteZeroes, 0, sectors, { cookie: 6, flags: CmdFlag.NoHole });
  rig.poll();
  first.close();
  const next = rig.connect(transport);
  next.write(sectors - 16, 8, 7);
  rig.until("the answer", () => next.answered.length === 1);
  rig.settle();
  assert.deepEqual([rig.byteAt(sectors - 16), rig.byteAt(sectors - 8)], [7, 5]);
});

const LONG_SECTORS = 60 * MIB / 512;

/** A client zeroes much, step by step, of which each takes a second; another one comes meanwhile. */
function besideLong(rig: OrderRig, transport: Transport): [OrderClient, OrderClient] {
  const first = rig.connect(transport);
  rig.delaysMs.push(...new Array(1000).fill(1000));
  first.ask(Cmd.WriteZeroes, 0, LONG_SECTORS, { cookie: 6, flags: CmdFlag.NoHole });
  rig.poll();
  return [first, rig.connect(transport)];
}

orderTest(
  "a long request of a client that is there is waited for a step only",
  (rig, transport) => {
    const [first, next] = besideLong(rig, transport);
    next.write(LONG_SECTORS - 8, 8, 7);
    rig.until("the answer", () => next.answered.length === 1);
    assert.deepEqual(first.answered, []);
    rig.settle();
    assert.deepEqual(first.answered, [6]);
  },
);

orderTest("a long request ahead of NBD_CMD_DISC is waited for to its end", (rig, transport) => {
  const [first, next] = besideLong(rig, transport);
  first.sayGoodbye();
  rig.poll();
  next.write(LONG_SECTORS - 8, 8, 7);
  rig.poll();
  first.close();
  rig.until("the answer", () => next.answered.length === 1);
  rig.settle();
  assert.equal(rig.byteAt(LONG_SECTORS - 8), 7);
  assert.ok(rig.simulation.scheduler.nowMs() >= 10_000, "all steps were done");
});

orderTest("requests that wait for it end when their client goes, too", (rig, transport) => {
  const lost = rig.connect(transport);
  rig.delaysMs.push(LATE_MS);
  lost.write(SECTOR, 8, 1);
  rig.poll();
  lost.close();
  for (let i = 0; i < 40; i++) {
    const next = rig.connect(transport);
    for (let j = 0; j < 8; j++) next.write(SECTOR, 8, 2);
    rig.pass();
    next.close();
    rig.pass();
  }
  assert.equal(rig.device.vbd.requests.outstanding, 1);
  writeAgain(rig, transport);
  assertNewest(rig);
});

/** A guest with one place, over connections that it loses: what it has, and what the disk must hold. */
class Guest {
  #client: OrderClient | null = null;
  #version = 0;
  #seen = 0;
  answers = 0;

  constructor(
    readonly rig: OrderRig,
    readonly random: Random,
    readonly place: { sector: number; count: number },
  ) {}

  get isIdle(): boolean {
    return this.#client !== null && !this.#client.isClosed && this.#seen === this.#version;
  }

  get byte(): number {
    return 1 + this.#version % 250;
  }

  /** Takes an answer in, writes something newer, or loses the connection and makes the write again. */
  step(mayBegin: boolean): void {
    const client = this.#client;
    if (client !== null && !client.isClosed) {
      if (client.answered.at(-1) === this.#version) {
        if (this.#seen < this.#version) this.answers++;
        this.#seen = this.#version;
      }
      if (this.#seen === this.#version && mayBegin && this.random.chance(0.5)) return this.#write();
      if (this.random.chance(0.15) && mayBegin) client.close();
      return;
    }
    this.#client = this.rig.connect(TRANSPORTS[this.random.below(TRANSPORTS.length)]);
    if (this.#seen < this.#version) this.#send();
    else if (mayBegin) this.#write();
  }

  #write(): void {
    this.#version++;
    this.#send();
  }

  #send(): void {
    // Most of the place, or all of it: the sector in its middle always.
    const { sector, count } = this.place;
    const before = this.random.below(count / 2);
    this.#client?.write(sector + before, count - before, this.byte, this.#version);
  }
}

Deno.test("guests that lose their connections at any moment read what they wrote last", () => {
  let answers = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const random = new Random(seed);
    const rig = new OrderRig({ sizeBytes: 4 * MIB, seed, latencyMs: 10 });
    const guests = Array.from({ length: 4 }, (_, i) => {
      return new Guest(rig, random, { sector: 64 * i, count: 16 });
    });
    let isPaused = false;
    for (let turn = 0; turn < 150; turn++) {
      for (const guest of guests) guest.step(true);
      if (random.chance(0.1)) rig.delaysMs.push(random.below(100));
      if (random.chance(isPaused ? 0.5 : 0.02)) {
        if (isPaused) rig.device.resume();
        else rig.device.pause();
        isPaused = !isPaused;
      }
      if (random.chance(0.7)) rig.turn();
    }
    if (isPaused) rig.device.resume();
    for (let turn = 0; !guests.every(({ isIdle }) => isIdle); turn++) {
      assert.ok(turn < 10_000, `seed ${seed}: a write was never answered`);
      for (const guest of guests) guest.step(false);
      rig.turn();
    }
    rig.settle();
    for (const { place, byte, answers: some } of guests) {
      answers += some;
      assert.equal(rig.byteAt(place.sector + 8), byte, `seed ${seed}, sector ${place.sector}`);
    }
    rig.close();
  }
  assert.ok(answers > 1000, `only ${answers} writes were answered`);
});
