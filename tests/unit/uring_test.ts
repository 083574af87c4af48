import assert from "node:assert/strict";
import { Epoll, EPOLLET, EPOLLIN } from "../../ffi/epoll.ts";
import { Errno } from "../../ffi/errno.ts";
import { closeFile, O_RDONLY, openFile } from "../../ffi/files.ts";
import { Arena } from "../../ffi/memory.ts";
import { Uring } from "../../ffi/uring.ts";
import { uringMissing } from "../../ffi/uring_probe.ts";
import { sharedUringLoop, UringLoop, type UringUser } from "../../src/queue/uring_loop.ts";
import { EpollScheduler } from "../../src/scheduler/epoll_scheduler.ts";
import { runOk } from "../support/tools.ts";

const missing = uringMissing();
const named = (what: string): string => missing === null ? what : `${what} (skipped: ${missing})`;
const ignore = missing !== null;

/** Records its completions. */
class Listener implements UringUser {
  readonly told: number[] = [];
  onDone = (_id: number): void => {};

  uringDone(id: number, result: number): void {
    this.told.push(id, result);
    this.onDone(id);
  }
}

Deno.test({
  name: named("uring: completions carry both numbers and the result, over many rounds of the ring"),
  ignore,
  fn() {
    const ring = new Uring(8, 16);
    for (let round = 0; round < 20; round++) {
      const count = 1 + round % ring.entries;
      for (let i = 0; i < count; i++) ring.prepareNothing(1000 * round + i, 0x7fff_fff0 + i);
      assert.equal(ring.prepared, count);
      assert.equal(ring.submit(), count);
      assert.equal(ring.completions(), count);
      for (let i = 0; i < count; i++) {
        assert.equal(ring.completionId(i), 1000 * round + i);
        assert.equal(ring.completionTag(i), 0x7fff_fff0 + i);
        assert.equal(ring.completionResult(i), 0);
      }
      ring.consume(count);
      assert.equal(ring.completions(), 0);
    }
    ring.close();
  },
});

Deno.test({
  name: named("uring: a full ring says so; what finds no room among the completions is not lost"),
  ignore,
  fn() {
    const ring = new Uring(4, 8);
    for (let i = 0; i < 4; i++) ring.prepareNothing(i, 0);
    assert.ok(ring.isFull);
    assert.throws(() => ring.prepareNothing(4, 0), /More operations/);
    for (let i = 4; i < 40; i++) {
      if (ring.isFull) assert.equal(ring.submit(), 4);
      ring.prepareNothing(i, 0);
    }
    assert.equal(ring.submit(), 4);
    const ids: number[] = [];
    for (let waiting = ring.completions(); waiting > 0; waiting = ring.completions()) {
      for (let i = 0; i < waiting; i++) ids.push(ring.completionId(i));
      ring.consume(waiting);
    }
    assert.deepEqual(ids, Array.from({ length: 40 }, (_, i) => i));
    ring.close();
  },
});

Deno.test({
  name: named("uring: operations that the kernel refuses complete with the error"),
  ignore,
  fn() {
    const ring = new Uring(8, 16);
    const path = Deno.makeTempFileSync();
    const fd = openFile(path, O_RDONLY);
    const sectors = new Float64Array(4);
    ring.prepareTransfer(99, fd, new Arena(512).sector, 512, sectors, 0, 1);
    ring.prepareSync(1_000_000, 1, 1);
    const at = ring.prepareCommand(fd, 0x1234, 2, 1);
    for (let i = 0; i < 16; i++) assert.equal(ring.commands.getUint8(at + i), 0);
    assert.equal(ring.submit(), 3);
    const results = new Map<number, number>();
    while (results.size < 3) {
      ring.wait();
      results.set(ring.completionId(0), ring.completionResult(0));
      ring.consume(1);
    }
    assert.equal(results.get(0), -Errno.EINVAL);
    assert.equal(results.get(1), -Errno.EBADF);
    assert.equal(results.get(2), -Errno.EOPNOTSUPP);
    closeFile(fd);
    Deno.removeSync(path);
    ring.close();
  },
});

Deno.test({
  name: named("uring: whoever looks until nothing is left can wait for the eventfd, none is lost"),
  ignore,
  fn() {
    const ring = new Uring(64, 256);
    const epoll = new Epoll(1);
    epoll.add(ring.eventFd, EPOLLIN | EPOLLET);
    for (let round = 0; round < 3000; round++) {
      // The kernel runs these operations in its own threads, so they end at any time.
      for (let i = 0; i < ring.entries; i++) ring.prepareSync(-1, i, 0);
      let left = ring.submit();
      while (left > 0) {
        for (let count = ring.completions(); count > 0; count = ring.completions()) {
          ring.consume(count);
          left -= count;
        }
        if (left > 0) assert.notEqual(epoll.wait(5000), 0, `round ${round}: ${left} do not end`);
      }
    }
    epoll.close();
    ring.close();
  },
});

Deno.test({
  name: named(
    "uring: a flag of work that is left set without work is looked at once, not for ever",
  ),
  ignore,
  async fn() {
    const program = new URL("../support/stale_task_flag.ts", import.meta.url).pathname;
    const printed = await runOk(Deno.execPath(), ["run", "-A", program], { timeoutMs: 30_000 });
    assert.equal(printed, "completions 1\ncompletions 0, flags 0\n");
  },
});

Deno.test({
  name: named("uring loop: users share a ring, each is told of its own, and may prepare more"),
  ignore,
  async fn() {
    const scheduler = new EpollScheduler();
    const loop = sharedUringLoop(scheduler);
    assert.equal(sharedUringLoop(scheduler), loop);
    const [first, second] = [new Listener(), new Listener()];
    const [tag, otherTag] = [loop.add(first), loop.add(second)];
    assert.notEqual(tag, otherTag);
    // Descriptor -1 fails with EBADF, which is enough to identify the notified user.
    first.onDone = (id) => {
      if (id < 2000) loop.prepareSync(-1, id + 1, tag);
      else scheduler.stop();
    };
    scheduler.addTimer(0, () => {
      loop.prepareSync(-1, 0, tag);
      for (let i = 0; i < 3000; i++) loop.prepareSync(-1, i, otherTag);
    });
    await scheduler.run();
    assert.equal(first.told.length, 2 * 2001);
    assert.deepEqual(
      second.told,
      Array.from({ length: 6000 }, (_, i) => i % 2 === 0 ? i / 2 : -Errno.EBADF),
    );
    assert.equal(loop.underWay(tag), 0);
    assert.equal(loop.underWay(otherTag), 0);
    loop.remove(tag);
    assert.equal(loop.isClosed, false);
    loop.remove(otherTag);
    assert.equal(loop.isClosed, true);
    const next = sharedUringLoop(scheduler);
    assert.notEqual(next, loop);
    next.remove(next.add(first));
    scheduler.close();
  },
});

Deno.test({
  name: named("uring loop: one that is left hands operations to the kernel, and tells no ends"),
  ignore,
  fn() {
    const scheduler = new EpollScheduler();
    const loop = new UringLoop(scheduler);
    const user = new Listener();
    const tag = loop.add(user);
    loop.prepareSync(-1, 1, tag);
    loop.leave();
    loop.submitLast();
    assert.equal(loop.endOfTurn(), false);
    loop.ready(EPOLLIN);
    assert.equal(loop.reap(), 0);
    assert.deepEqual([user.told, loop.underWay(tag)], [[], 1]);
    loop.remove(tag);
    scheduler.close();
  },
});

Deno.test({
  name: named("uring loop: the tag of a user that left is given away once nothing is under way"),
  ignore,
  async fn() {
    const scheduler = new EpollScheduler();
    const loop = new UringLoop(scheduler);
    const [gone, stays, late] = [new Listener(), new Listener(), new Listener()];
    const tag = loop.add(gone);
    const staysTag = loop.add(stays);
    loop.prepareSync(-1, 1, tag);
    loop.remove(tag);
    assert.notEqual(loop.add(late), tag);
    loop.prepareSync(-1, 2, staysTag);
    stays.onDone = () => scheduler.stop();
    scheduler.addTimer(0, () => {});
    await scheduler.run();
    assert.deepEqual(gone.told, []);
    assert.deepEqual(stays.told, [2, -Errno.EBADF]);
    assert.equal(loop.add(gone), tag);
    loop.remove(tag);
    loop.remove(staysTag);
    loop.remove(2);
    assert.ok(loop.isClosed);
    scheduler.close();
  },
});
