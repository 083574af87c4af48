/**
 * What the disk queue hands to its backend: which operations it joins, in which memory, and how it
 * shares the backend's room among files.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { memoryAt } from "../../ffi/libc.ts";
import { Arena, memorySectorOf } from "../../ffi/memory.ts";
import { uringMissing } from "../../ffi/uring_probe.ts";
import { type CompletionSink, type DiskBackend, IoKind } from "../../src/queue/backend.ts";
import { osDiskFiles } from "../../src/queue/disk_files.ts";
import { DiskQueue } from "../../src/queue/disk_queue.ts";
import { LibaioBackend } from "../../src/queue/libaio.ts";
import { UringBackend } from "../../src/queue/uring.ts";
import { EpollScheduler } from "../../src/scheduler/epoll_scheduler.ts";
import type { FaultOwner } from "../../src/scheduler/faults.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";
import { withTempDir } from "../support/tools.ts";

const SECTOR_BYTES = 512;

/** A group of operations, as the backend was given it. */
interface Group {
  readonly io: number;
  readonly kind: IoKind;
  readonly file: number;
  readonly sector: number;
  readonly count: number;
  /** Sectors of memory: where each part begins, and how long it is. */
  readonly parts: readonly (readonly [number, number])[];
}

/** A backend that keeps what it is given; the test ends it. */
class NotedBackend implements DiskBackend {
  readonly batch = 64;
  readonly groups: Group[] = [];
  readonly #ended: number[] = [];
  /** With which error groups of several operations end. */
  errno = 0;

  constructor(readonly capacity: number) {}

  register(): void {}

  prepare(
    kind: IoKind,
    file: number,
    sectors: Float64Array,
    count: number,
    memorySector: number,
    iovecs: number,
    io: number,
  ): void {
    const parts = iovecs === 0 ? [[memorySector, count] as const] : partsAt(memorySector, iovecs);
    this.groups.push({ io, kind, file, sector: sectors[io], count, parts });
  }

  submit(): void {}

  /** Ends the groups of a file. */
  end(file: number): void {
    for (const group of this.groups) if (group.file === file) this.#ended.push(group.io);
  }

  reap(sink: CompletionSink): number {
    const ended = this.#ended.splice(0);
    for (const io of ended) {
      const at = this.groups.findIndex((group) => group.io === io);
      const [group] = this.groups.splice(at, 1);
      const fails = this.errno !== 0 && group.parts.length > 1;
      sink.completed(io, fails ? -this.errno : group.count * SECTOR_BYTES);
    }
    return ended.length;
  }

  close(): void {}
}

/** The iovecs that the kernel would read. */
function partsAt(memorySector: number, count: number): (readonly [number, number])[] {
  const arena = new Arena(1);
  const base = arena.address - arena.sector * SECTOR_BYTES;
  arena.release();
  const view = new DataView(memoryAt(base + memorySector * SECTOR_BYTES, 16 * count));
  return Array.from({ length: count }, (_, i) => {
    const address = Number(view.getBigUint64(16 * i, true));
    return [memorySectorOf(address), Number(view.getBigUint64(16 * i + 8, true)) / 512] as const;
  });
}

class Rig {
  readonly scheduler = new SimulatedScheduler();
  readonly backend: NotedBackend;
  readonly queue: DiskQueue;
  readonly memory = new Arena(256 * SECTOR_BYTES);
  readonly ended: number[] = [];

  constructor(capacity = 64) {
    this.backend = new NotedBackend(capacity);
    this.queue = new DiskQueue(this.scheduler, this.backend, 256);
    for (const file of [3, 4]) this.queue.register(file);
  }

  /** Starts an operation in memory at a sector of `memory`. */
  start(kind: "read" | "write", sector: number, count: number, at = 0, file = 3): void {
    const owner = { ioDone: (token: number): void => void this.ended.push(token) };
    this.queue[kind](file, sector, count, this.memory.sector + at, owner, sector);
  }

  /** The groups, their memory counted from the start of `memory`. */
  groups(): [sector: number, count: number, parts: number[][]][] {
    this.scheduler.turn();
    return this.backend.groups.map(({ sector, count, parts }) => [
      sector,
      count,
      parts.map(([start, length]) => [start - this.memory.sector, length]),
    ]);
  }

  close(): void {
    for (let i = 0; i < 40; i++) {
      for (const file of [3, 4]) this.backend.end(file);
      this.scheduler.turn();
    }
    assert.ok(this.queue.idle);
    this.queue.close();
    this.memory.release();
  }
}

Deno.test("disk queue: neighbours on disk are joined, wherever their memory is", () => {
  const rig = new Rig();
  rig.start("write", 100, 2, 0);
  rig.start("write", 102, 1, 2);
  rig.start("write", 103, 1, 50);
  rig.start("write", 104, 2, 20);
  assert.deepEqual(rig.groups(), [[100, 6, [[0, 3], [50, 1], [20, 2]]]]);
  rig.close();
});

Deno.test("disk queue: what is no neighbour on disk, or of another kind or file, is not joined", () => {
  const rig = new Rig();
  rig.start("write", 100, 2, 0);
  rig.start("write", 103, 1, 2);
  rig.start("write", 102, 1, 3);
  rig.start("write", 102, 1, 4);
  rig.start("read", 103, 1, 5);
  rig.start("write", 103, 1, 6, 4);
  const sectors = rig.groups().map(([sector, count]) => [sector, count]);
  assert.deepEqual(sectors, [[100, 2], [103, 1], [102, 1], [102, 1], [103, 1], [103, 1]]);
  rig.close();
});

Deno.test("disk queue: a group has no more parts than the kernel takes", () => {
  const rig = new Rig();
  for (let i = 0; i < 130; i++) rig.start("write", i, 1, 250 - i);
  assert.deepEqual(rig.groups().map(([sector, count]) => [sector, count]), [
    [0, 64],
    [64, 64],
    [128, 2],
  ]);
  rig.close();
});

Deno.test("disk queue: a file that hangs leaves room at the backend for others", () => {
  const rig = new Rig(8);
  for (let i = 0; i < 20; i++) rig.start("write", 10 * i, 1);
  rig.scheduler.turn();
  const hanging = rig.backend.groups.length;
  assert.ok(hanging < rig.backend.capacity, `${hanging} operations of one file`);
  for (let i = 0; i < 20; i++) {
    rig.start("write", 1000 + 10 * i, 1, 0, 4);
    rig.scheduler.turn();
    rig.backend.end(4);
    rig.scheduler.turn();
  }
  assert.equal(rig.ended.filter((token) => token >= 1000).length, 20);
  assert.equal(rig.ended.filter((token) => token < 1000).length, 0);
  rig.close();
});

Deno.test("disk queue: what an owner throws ends its disk, and no other operation", () => {
  const rig = new Rig();
  const faults: unknown[] = [];
  const disk: FaultOwner & { failed: boolean } = {
    failed: false,
    fault(error) {
      this.failed = true;
      faults.push(error);
    },
  };
  rig.queue.register(3, disk);
  const broken = {
    ioDone(): void {
      throw new Error("broken");
    },
  };
  rig.queue.write(3, 0, 1, rig.memory.sector, broken, 0);
  rig.start("write", 500, 1, 1, 4);
  rig.scheduler.turn();
  for (const file of [3, 4]) rig.backend.end(file);
  rig.scheduler.turn();
  assert.deepEqual(rig.ended, [500]);
  assert.equal(faults.length, 1);
  rig.close();
});

Deno.test("disk queue: a file is busy since its first operation after none", () => {
  const rig = new Rig();
  const since: number[] = [];
  const note = (): void => void since.push(rig.queue.busySinceMs(3));
  rig.scheduler.lastMs[0] = 1_000;
  rig.start("read", 100, 1);
  note();
  rig.scheduler.lastMs[0] = 2_000;
  rig.start("read", 300, 1, 10);
  note();
  rig.groups();
  rig.backend.end(3);
  rig.scheduler.turn();
  assert.equal(rig.queue.pendingOf(3), 0);
  rig.scheduler.lastMs[0] = 3_000;
  rig.start("read", 100, 1);
  note();
  assert.deepEqual(since, [1_000, 1_000, 3_000]);
  rig.close();
});

Deno.test("disk queue: what was joined with a bad place is started again alone, unless its disk ended", () => {
  for (
    const [errno, failed, again] of [[Errno.EIO, false, 3], [Errno.ENOSPC, false, 0], [
      Errno.EIO,
      true,
      0,
    ]]
  ) {
    const rig = new Rig();
    const disk = { failed: false, fault() {} };
    rig.queue.register(3, disk);
    for (let i = 0; i < 3; i++) rig.start("write", 100 + i, 1, 250 - 2 * i);
    assert.equal(rig.groups().length, 1);
    disk.failed = Boolean(failed);
    rig.backend.errno = Number(errno);
    rig.backend.end(3);
    assert.deepEqual(
      rig.groups().map(([sector, count]) => [sector, count]),
      [[100, 1], [101, 1], [102, 1]].slice(0, Number(again)),
    );
    assert.equal(rig.queue.pendingOf(3), again);
    // Those of another turn are joined again.
    rig.start("write", 200, 1, 10);
    rig.start("write", 201, 1, 20);
    assert.equal(rig.groups().length, Number(again) + 1);
    disk.failed = false;
    rig.backend.errno = 0;
    rig.close();
  }
});

const BACKENDS = {
  libaio: (scheduler: EpollScheduler): DiskBackend => new LibaioBackend(scheduler),
  io_uring: (scheduler: EpollScheduler): DiskBackend => new UringBackend(scheduler),
};

for (const [name, make] of Object.entries(BACKENDS)) {
  const missing = name === "io_uring" ? uringMissing() : null;
  Deno.test({
    name: `disk queue on ${name}: joined writes from memory in any order`,
    ignore: missing !== null,
    fn: () =>
      withTempDir(async (folder) => {
        const path = `${folder}/file`;
        Deno.writeFileSync(path, new Uint8Array(64 * SECTOR_BYTES));
        const scheduler = new EpollScheduler();
        const queue = new DiskQueue(scheduler, make(scheduler), 256);
        const file = osDiskFiles.open(path, { readOnly: false, direct: false });
        queue.register(file.file);
        const memory = new Arena(64 * SECTOR_BYTES);
        const errors: number[] = [];
        const owner = {
          ioDone(_token: number, _sectors: number, errno: number): void {
            if (errors.push(errno) === 64) scheduler.stop();
          },
        };
        scheduler.addTimer(0, () => {
          for (let sector = 0; sector < 64; sector++) {
            const at = 63 - sector;
            memory.bytes.fill(1 + sector, at * SECTOR_BYTES, (at + 1) * SECTOR_BYTES);
            queue.write(file.file, sector, 1, memory.sector + at, owner, sector);
          }
        });
        await scheduler.run();
        assert.ok(errors.every((errno) => errno === 0), errors.join());
        const written = Deno.readFileSync(path);
        for (let sector = 0; sector < 64; sector++) {
          const bytes = written.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
          assert.ok(bytes.every((byte) => byte === 1 + sector), `sector ${sector}`);
        }
        queue.close();
        file.close();
        scheduler.close();
        memory.release();
      }),
  });

  Deno.test({
    name: `disk queue on ${name}: an operation that the kernel refuses ends with its error`,
    ignore: missing !== null,
    fn: async () => {
      const scheduler = new EpollScheduler();
      const queue = new DiskQueue(scheduler, make(scheduler), 256);
      const memory = new Arena(SECTOR_BYTES);
      queue.register(4000);
      const ended = await new Promise<number>((resolve) => {
        const owner = {
          ioDone(_token: number, _sectors: number, errno: number): void {
            resolve(errno);
            scheduler.stop();
          },
        };
        scheduler.addTimer(0, () => queue.read(4000, 0, 1, memory.sector, owner, 0));
        scheduler.addTimer(5000, () => {
          resolve(-1);
          scheduler.stop();
        });
        void scheduler.run();
      });
      assert.equal(ended, Errno.EBADF);
      queue.close();
      scheduler.close();
      memory.release();
    },
  });
}
