/**
 * The messages between valves and bridges, byte by byte: a bridge with a client of the original's kind,
 * and a valve with a bridge that is played.
 */
import assert from "node:assert/strict";
import { EPOLLIN } from "../../ffi/epoll.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import {
  acceptConnection,
  receiveAt,
  sendAt,
  unixConnectAtOnce,
  unixListen,
} from "../../ffi/sockets.ts";
import { Bridge } from "../../src/rated/bridge.ts";
import { TokenBucket } from "../../src/rated/limiter.ts";
import { EpollScheduler } from "../../src/scheduler/epoll_scheduler.ts";
import { RequestKind } from "../../src/vbd/slots.ts";
import { RealDevice } from "../support/real_device.ts";
import { withTempDir } from "../support/tools.ts";

const MIB = 1 << 20;

/** Runs turns until `holds`, for two seconds at most. */
async function until(scheduler: EpollScheduler, what: string, holds: () => boolean): Promise<void> {
  const untilMs = performance.now() + 2_000;
  const look = (): void => {
    if (holds() || performance.now() > untilMs) scheduler.stop();
    else scheduler.addTimer(2, look);
  };
  scheduler.addTimer(0, look);
  await scheduler.run();
  assert.ok(holds(), what);
}

/** One end of a connection that a test plays. */
class Peer {
  readonly #received: number[] = [];
  hungUp = false;

  constructor(readonly fd: number) {}

  send(...numbers: (number | bigint)[]): void {
    this.sendBytes(new Uint8Array(BigUint64Array.from(numbers, BigInt).buffer));
  }

  sendBytes(bytes: Uint8Array<ArrayBuffer>): void {
    assert.equal(sendAt(this.fd, addressOf(bytes), bytes.length), bytes.length);
  }

  /** All numbers that have come. */
  get numbers(): number[] {
    const buffer = new BigUint64Array(64);
    const got = receiveAt(this.fd, addressOf(new Uint8Array(buffer.buffer)), 512);
    if (got === 0 || got === -104) this.hungUp = true;
    for (let i = 0; i < Math.floor(Math.max(0, got) / 8); i++) {
      this.#received.push(Number(buffer[i]));
    }
    return this.#received;
  }

  get sum(): number {
    return this.numbers.reduce((sum, number) => sum + number, 0);
  }

  close(): void {
    closeFile(this.fd);
  }
}

Deno.test("bridge: it grants what is needed, in parts, and no more", () =>
  withTempDir(async (folder) => {
    const scheduler = new EpollScheduler();
    const lines: string[] = [];
    const write = (line: string): void => void lines.push(line);
    const log = { info: write, warn: write, error: write };
    const limiter = new TokenBucket(100 * MIB, 0);
    const bridge = new Bridge(scheduler, `${folder}/b`, { limiter, log });
    const connect = (): Peer => new Peer(unixConnectAtOnce(`${folder}/b`));
    const peer = connect();
    peer.send(4096, 0);
    await until(scheduler, "4096 bytes are granted", () => peer.sum === 4096);
    // A message in two pieces, and two at once.
    const message = new Uint8Array(BigUint64Array.of(8192n, 4096n).buffer);
    peer.sendBytes(message.slice(0, 5));
    await until(scheduler, "a turn", () => true);
    peer.sendBytes(message.slice(5));
    peer.send(3 * MIB, 0, MIB, 0);
    const wanted = 4096 + 8192 + 4 * MIB;
    await until(scheduler, "all is granted", () => peer.sum === wanted);
    assert.ok(peer.numbers.every((credit) => credit > 0 && credit <= 100 * MIB / 100 + 1));
    const wrong: [numbers: (number | bigint)[], why: RegExp][] = [
      [[0, 1], /it has done more than it was granted/],
      [[8 * MIB + 1, 0], /it needs too much at once/],
      [[8 * MIB, 0, 2n ** 64n - 1n, 0], /it needs too much at once/],
      [[0, 2n ** 64n - 1n], /it has done more/],
    ];
    for (const [numbers, why] of wrong) {
      const bad = connect();
      bad.send(...numbers);
      await until(scheduler, "it is hung up", () => bad.numbers.length >= 0 && bad.hungUp);
      assert.match(lines.at(-1) ?? "", why);
      bad.close();
    }
    assert.match(bridge.describe()[1], /^valve 0: needs 0 bytes .* \d+ are under way/);
    peer.close();
    await until(scheduler, "it has left", () => bridge.describe().length === 1);
    bridge.close();
    assert.throws(() => Deno.lstatSync(`${folder}/b`), Deno.errors.NotFound);
    scheduler.close();
  }));

/** A loop that cannot watch connections now and then: the kernel has no memory, or no watches left. */
class PoorScheduler extends EpollScheduler {
  poor = false;

  override watch(...[fd, events, handler, owner]: Parameters<EpollScheduler["watch"]>): void {
    if (this.poor) throw new SystemError(Errno.ENOSPC, "Cannot watch a descriptor");
    super.watch(fd, events, handler, owner);
  }
}

Deno.test("bridge: a valve that cannot be watched is hung up on; a socket that is gone is no error", () =>
  withTempDir(async (folder) => {
    const scheduler = new PoorScheduler();
    const lines: string[] = [];
    const write = (line: string): void => void lines.push(line);
    const log = { info: write, warn: write, error: write };
    const limiter = new TokenBucket(100 * MIB, 0);
    const bridge = new Bridge(scheduler, `${folder}/b`, { limiter, log });
    const good = new Peer(unixConnectAtOnce(`${folder}/b`));
    await until(scheduler, "it is connected", () => bridge.describe().length === 2);
    scheduler.poor = true;
    const bad = new Peer(unixConnectAtOnce(`${folder}/b`));
    await until(scheduler, "it is hung up on", () => bad.numbers.length === 0 && bad.hungUp);
    assert.equal(bridge.describe().length, 2);
    assert.ok(lines.some((line) => line.includes("Cannot watch a descriptor")));
    good.send(4096, 0);
    await until(scheduler, "the other one gets on", () => good.sum === 4096);
    Deno.removeSync(`${folder}/b`);
    bridge.close();
    assert.equal(good.numbers.length, 1);
    assert.ok(good.hungUp);
    for (const peer of [good, bad]) peer.close();
    scheduler.close();
  }));

/** A device behind a valve, whose bridge is played. */
class Bench {
  readonly device: RealDevice;
  readonly #listener: number;
  readonly bridges: Peer[] = [];
  ended = 0;

  constructor(folder: string, image = "ram:64") {
    this.#listener = unixListen(`${folder}/b`);
    this.device = new RealDevice(`valve:${folder}/b:${image}`);
    this.scheduler.watch(this.#listener, EPOLLIN, {
      ready: () => void this.bridges.push(new Peer(acceptConnection(this.#listener))),
    });
  }

  get scheduler(): EpollScheduler {
    return this.device.scheduler;
  }

  start(kind: RequestKind, sectors: number): void {
    const { requests } = this.device.vbd;
    const slot = requests.takeSlot();
    requests.start(slot, kind, 0, sectors, false, {
      requestDone: (slot, errno): void => {
        assert.equal(errno, 0);
        this.ended++;
        requests.releaseSlot(slot);
      },
    });
  }

  async connected(count: number): Promise<Peer> {
    await this.until("the valve connects", () => this.bridges.length === count);
    return this.bridges[count - 1];
  }

  until(what: string, holds: () => boolean): Promise<void> {
    return until(this.scheduler, what, holds);
  }

  async close(): Promise<void> {
    this.scheduler.unwatch(this.#listener);
    closeFile(this.#listener);
    for (const bridge of this.bridges) bridge.close();
    await this.device.close();
  }
}

Deno.test("valve: it asks for 4 MiB ahead at most, and tells what has ended", () =>
  withTempDir(async (folder) => {
    const bench = new Bench(folder);
    const bridge = await bench.connected(1);
    for (let i = 0; i < 20; i++) bench.start(RequestKind.Write, 512);
    bench.start(RequestKind.Read, 512);
    await bench.until("the read passes", () => bench.ended === 1);
    assert.deepEqual(bridge.numbers, [4 * MIB, 0]);
    // Less than a write needs: nothing passes, and as much is asked for again.
    bridge.send(1000);
    await bench.until("it asks again", () => bridge.numbers.length === 4);
    assert.deepEqual(bridge.numbers.slice(2), [1000, 0]);
    assert.equal(bench.ended, 1);
    bridge.send(256 * 1024 - 1000, 256 * 1024);
    await bench.until("two pass", () => bench.ended === 3);
    await bench.until("it tells", () => {
      const done = bridge.numbers.filter((_number, i) => i % 2 === 1);
      return done.reduce((sum, bytes) => sum + bytes, 0) === 512 * 1024;
    });
    // A long zeroing goes in steps that a bridge can grant.
    bench.start(RequestKind.Zero, 16384);
    bridge.send(2 * MIB);
    await bench.until("eight more pass", () => bench.ended === 11);
    bridge.close();
    await bench.until("the rest passes", () => bench.ended === 22);
    bench.bridges.pop();
    await bench.close();
  }));

Deno.test("valve: a bridge that grants what nobody asked for is left", () =>
  withTempDir(async (folder) => {
    const bench = new Bench(folder);
    const bridge = await bench.connected(1);
    bench.start(RequestKind.Write, 8);
    await bench.until("it asks", () => bridge.numbers.length === 2);
    bridge.send(2n ** 63n);
    await bench.until("the write passes", () => bench.ended === 1);
    await bench.until("it hangs up", () => bridge.numbers.length >= 0 && bridge.hungUp);
    assert.ok(
      bench.device.log.some((line) => line.includes("it granted more than it was asked for")),
    );
    await bench.close();
  }));

Deno.test("valve: a bridge that cannot be watched is as good as none", () =>
  withTempDir(async (folder) => {
    const { watch } = EpollScheduler.prototype;
    EpollScheduler.prototype.watch = function (...[fd, events, handler, owner]): void {
      if (handler.constructor.name === "ValveImage") {
        throw new SystemError(Errno.ENOSPC, "Cannot watch a descriptor");
      }
      watch.call(this, fd, events, handler, owner);
    };
    try {
      const bench = new Bench(folder);
      bench.start(RequestKind.Write, 8);
      await bench.until("the write passes", () => bench.ended === 1);
      const bridge = await bench.connected(1);
      await bench.until("it is hung up on", () => bridge.numbers.length === 0 && bridge.hungUp);
      assert.ok(bench.device.log.some((line) => line.includes("writes pass until the bridge is")));
      await bench.close();
    } finally {
      EpollScheduler.prototype.watch = watch;
    }
  }));

for (const event of ["grants", "hangs up"]) {
  Deno.test(`valve: a write that waits does not reach a disk that has failed when the bridge ${event}`, () =>
    withTempDir(async (folder) => {
      const image = `${folder}/image`;
      Deno.writeFileSync(image, new Uint8Array(MIB));
      const bench = new Bench(folder, `aio:${image}`);
      const { device } = bench;
      const bridge = await bench.connected(1);
      const { requests } = device.vbd;
      const slot = requests.takeSlot();
      requests.memory.bytes.fill(1, requests.slotOffset(slot), requests.slotOffset(slot) + 4096);
      let errno = -1;
      requests.start(slot, RequestKind.Write, 0, 8, false, {
        requestDone: (slot, result): void => {
          errno = result;
          requests.releaseSlot(slot);
        },
      });
      await bench.until("it asks", () => bridge.numbers.length === 2);
      if (event === "grants") bridge.send(4096);
      else bridge.close();
      device.vbd.fault(new Error("A fault of the test"));
      await bench.until("the write fails", () => errno >= 0);
      await bench.until("a turn", () => true);
      assert.equal(errno, Errno.EIO);
      assert.ok(Deno.readFileSync(image).every((byte) => byte === 0));
      let isOpen = false;
      device.vbd.resume(null, (error) => isOpen = error === null);
      await bench.until("it is open again", () => isOpen);
      await bench.connected(2);
      if (event === "hangs up") bench.bridges.shift();
      await bench.close();
    }));
}
