import assert from "node:assert/strict";
import fc from "fast-check";
import { Errno } from "../../ffi/errno.ts";
import { Arena } from "../../ffi/memory.ts";
import { uringMissing } from "../../ffi/uring_probe.ts";
import type { DiskBackend } from "../../src/queue/backend.ts";
import { CachedBackend } from "../../src/queue/cached.ts";
import { type DiskFile, osDiskFiles } from "../../src/queue/disk_files.ts";
import { DiskQueue, type IoOwner } from "../../src/queue/disk_queue.ts";
import { LibaioBackend } from "../../src/queue/libaio.ts";
import { MixedBackend } from "../../src/queue/mixed.ts";
import { UringBackend } from "../../src/queue/uring.ts";
import { sharedUringLoop } from "../../src/queue/uring_loop.ts";
import { EpollScheduler } from "../../src/scheduler/epoll_scheduler.ts";

const SECTOR_BYTES = 512;
const FILE_SECTORS = 4096;
const uringIsMissing = uringMissing();

interface Kind {
  readonly name: string;
  readonly missing: string | null;
  make(scheduler: EpollScheduler): DiskBackend;
}

const KINDS: readonly Kind[] = [
  { name: "libaio", missing: null, make: (scheduler) => new LibaioBackend(scheduler) },
  { name: "io_uring", missing: uringIsMissing, make: (scheduler) => new UringBackend(scheduler) },
  { name: "threads", missing: uringIsMissing, make: (scheduler) => new CachedBackend(scheduler) },
  { name: "both", missing: uringIsMissing, make: (scheduler) => new MixedBackend(scheduler) },
];

/** Folders for the tests: usually on a disk, and in memory. */
const FOLDERS = [undefined, "/dev/shm"].filter((folder) =>
  folder === undefined || canWriteTo(folder)
);

function canWriteTo(folder: string): boolean {
  try {
    Deno.removeSync(Deno.makeTempDirSync({ dir: folder }));
    return true;
  } catch {
    return false;
  }
}

/** A file, and a queue on the real loop. Operations in a batch start in one turn. */
class Rig implements IoOwner {
  readonly scheduler = new EpollScheduler();
  readonly memory = new Arena(FILE_SECTORS * SECTOR_BYTES);
  readonly queue: DiskQueue;
  readonly file: DiskFile;
  readonly #folder: string;
  /** By token. */
  errors: number[] = [];
  #left = 0;

  constructor(kind: Kind, { folder, direct }: { folder?: string; direct: boolean }) {
    this.queue = new DiskQueue(this.scheduler, kind.make(this.scheduler), 4096);
    this.#folder = Deno.makeTempDirSync({ dir: folder });
    const path = `${this.#folder}/file`;
    Deno.writeFileSync(path, new Uint8Array(FILE_SECTORS * SECTOR_BYTES));
    this.file = osDiskFiles.open(path, { readOnly: false, direct });
    this.queue.register(this.file.file);
  }

  ioDone(token: number, _sectors: number, errno: number): void {
    this.errors[token] = errno;
    if (--this.#left === 0) this.scheduler.stop();
  }

  /** Starts `count` operations by `start` in one turn of the loop and waits for all of them. */
  async batch(count: number, start: (token: number) => void): Promise<number[]> {
    this.errors = new Array<number>(count).fill(-1);
    this.#left = count;
    this.scheduler.addTimer(0, () => {
      for (let token = 0; token < count; token++) start(token);
    });
    await this.scheduler.run();
    return this.errors;
  }

  bytesAt(sector: number, count: number): Uint8Array {
    return this.memory.bytes.subarray(sector * SECTOR_BYTES, (sector + count) * SECTOR_BYTES);
  }

  close(): void {
    assert.ok(this.queue.idle);
    this.queue.close();
    this.file.close();
    this.scheduler.close();
    this.memory.release();
    Deno.removeSync(this.#folder, { recursive: true });
  }
}

function backendTest(name: string, body: (kind: Kind) => Promise<void>): void {
  for (const kind of KINDS) {
    const suffix = kind.missing === null ? "" : ` (skipped: ${kind.missing})`;
    Deno.test({
      name: `disk queue on ${kind.name}: ${name}${suffix}`,
      ignore: kind.missing !== null,
      fn: () => body(kind),
    });
  }
}

/** Disjoint runs of sectors of the file, each with its own place in memory. */
const runs = fc.uniqueArray(fc.nat(FILE_SECTORS / 16 - 1), { minLength: 1, maxLength: 120 })
  .chain((places) =>
    fc.tuple(...places.map((place) => fc.integer({ min: 1, max: 16 }).map((n) => [place * 16, n])))
  );

backendTest("what was written is read back, merged or not, cached or not", async (kind) => {
  for (const folder of FOLDERS) {
    for (const direct of [true, false]) {
      const rig = new Rig(kind, { folder, direct });
      const model = new Uint8Array(FILE_SECTORS * SECTOR_BYTES);
      const { file } = rig.file;
      let generation = 0;
      await fc.assert(
        fc.asyncProperty(runs, async (written) => {
          generation++;
          for (const [sector, count] of written) {
            const bytes = rig.bytesAt(sector, count);
            for (let i = 0; i < bytes.length; i++) bytes[i] = (generation * 31 + sector + i) % 251;
            model.set(bytes, sector * SECTOR_BYTES);
          }
          const start = (token: number): void => {
            const [sector, count] = written[token];
            rig.queue.write(file, sector, count, rig.memory.sector + sector, rig, token);
          };
          const errors = await rig.batch(written.length, start);
          assert.ok(errors.every((errno) => errno === 0), errors.join());
          assert.deepEqual(await rig.batch(1, () => rig.queue.sync(file, rig, 0)), [0]);
          rig.memory.bytes.fill(0xee);
          // Pieces that the queue merges; most of them are backwards in memory.
          const pieces = FILE_SECTORS / 8;
          const read = await rig.batch(pieces, (token) => {
            const memory = rig.memory.sector + (pieces - 1 - token) * 8;
            rig.queue.read(file, token * 8, 8, memory, rig, token);
          });
          assert.ok(read.every((errno) => errno === 0), read.join());
          for (let piece = 0; piece < pieces; piece++) {
            const got = rig.bytesAt((pieces - 1 - piece) * 8, 8);
            const at = piece * 8 * SECTOR_BYTES;
            assert.deepEqual(got, model.subarray(at, at + 8 * SECTOR_BYTES));
          }
        }),
        { numRuns: 12 },
      );
      rig.close();
    }
  }
});

backendTest("more than the backend holds at once, none next to another", async (kind) => {
  const rig = new Rig(kind, { direct: true });
  const count = 1800;
  rig.memory.bytes.fill(7);
  const place = (token: number): number => token * 2;
  const start = (token: number): void => {
    const sector = place(token);
    rig.queue.write(rig.file.file, sector, 1, rig.memory.sector + sector, rig, token);
  };
  assert.deepEqual(await rig.batch(count, start), new Array<number>(count).fill(0));
  rig.memory.bytes.fill(1);
  const errors = await rig.batch(FILE_SECTORS / 8, (token) => {
    const at = token * 8;
    rig.queue.read(rig.file.file, at, 8, rig.memory.sector + at, rig, token);
  });
  assert.ok(errors.every((errno) => errno === 0));
  for (let sector = 0; sector < FILE_SECTORS; sector++) {
    const wanted = sector % 2 === 0 && sector < place(count) ? 7 : 0;
    assert.equal(rig.bytesAt(sector, 1)[0], wanted);
  }
  rig.close();
});

backendTest("every operation has its own error, and the others go on", async (kind) => {
  const rig = new Rig(kind, { direct: false });
  const { file } = rig.file;
  const bad = 4000;
  rig.queue.register(bad);
  const errors = await rig.batch(6, (token) => {
    const memory = rig.memory.sector + token * 16;
    if (token === 0) rig.queue.read(file, 0, 8, memory, rig, token);
    // The second half of it is beyond the end of the file.
    else if (token === 1) rig.queue.read(file, FILE_SECTORS - 4, 8, memory, rig, token);
    else if (token === 2) rig.queue.read(bad, 0, 8, memory, rig, token);
    else if (token === 3) rig.queue.write(bad, 0, 8, memory, rig, token);
    else if (token === 4) rig.queue.sync(bad, rig, token);
    else rig.queue.read(file, 1024, 8, memory, rig, token);
  });
  assert.deepEqual(errors, [0, Errno.EIO, Errno.EBADF, Errno.EBADF, Errno.EBADF, 0]);
  rig.close();
});

backendTest("places in the file and in memory beyond 4 GiB", async (kind) => {
  const rig = new Rig(kind, { direct: false });
  const far = 5 * 1024 ** 3 / SECTOR_BYTES;
  // Address space only: untouched pages take no memory.
  const high = [0, 1].map(() => new Arena(2 * 1024 ** 3));
  const memory = high[1].sector + 1024;
  high[1].bytes.fill(9, 1024 * SECTOR_BYTES, 1025 * SECTOR_BYTES);
  const { file } = rig.file;
  assert.deepEqual(await rig.batch(1, () => rig.queue.write(file, far, 1, memory, rig, 0)), [0]);
  assert.deepEqual(
    await rig.batch(1, () => rig.queue.read(file, far, 1, rig.memory.sector, rig, 0)),
    [0],
  );
  assert.deepEqual(rig.bytesAt(0, 1), new Uint8Array(SECTOR_BYTES).fill(9));
  assert.equal(rig.file.sizeBytes(), (far + 1) * SECTOR_BYTES);
  for (const arena of high) arena.release();
  rig.close();
});

/** How often each io_uring thread of this process has been scheduled so far. */
function uringThreadRuns(): Map<string, number> {
  const runs = new Map<string, number>();
  for (const { name } of Deno.readDirSync("/proc/self/task")) {
    try {
      const folder = `/proc/self/task/${name}`;
      if (!Deno.readTextFileSync(`${folder}/comm`).startsWith("iou-")) continue;
      runs.set(name, Number(Deno.readTextFileSync(`${folder}/schedstat`).split(" ")[2]));
    } catch {
      // The thread has ended.
    }
  }
  return runs;
}

backendTest("only io_uring gives cached files to threads", async (kind) => {
  // Threads of the previous test may still exist and wake up occasionally.
  const before = uringThreadRuns();
  const rig = new Rig(kind, { direct: false });
  for (let round = 0; round < 50; round++) {
    const errors = await rig.batch(64, (token) => {
      rig.queue.write(rig.file.file, token * 16, 8, rig.memory.sector, rig, token);
    });
    assert.ok(errors.every((errno) => errno === 0));
  }
  let gained = 0;
  for (const [thread, runs] of uringThreadRuns()) gained += runs - (before.get(thread) ?? 0);
  assert.equal(gained > 20, kind.name === "io_uring", `${gained} runs`);
  rig.close();
});

Deno.test({
  name: `two queues and other operations share an io_uring${
    uringIsMissing === null ? "" : ` (skipped: ${uringIsMissing})`
  }`,
  ignore: uringIsMissing !== null,
  async fn() {
    const scheduler = new EpollScheduler();
    const queues = [0, 1].map(() => new DiskQueue(scheduler, new UringBackend(scheduler), 64));
    const loop = sharedUringLoop(scheduler);
    const memory = new Arena(64 * SECTOR_BYTES);
    const folder = Deno.makeTempDirSync();
    const files = queues.map((queue, index) => {
      const path = `${folder}/${index}`;
      Deno.writeFileSync(path, new Uint8Array(64 * SECTOR_BYTES).fill(index + 1));
      const file = osDiskFiles.open(path, { readOnly: false, direct: true });
      queue.register(file.file);
      return file;
    });
    const ended: string[] = [];
    const finish = (what: string): void => {
      ended.push(what);
      if (ended.length === 4) scheduler.stop();
    };
    const owner = (index: number): IoOwner => ({
      ioDone: (token, _sectors, errno) => finish(`queue ${index}: ${token} ${errno}`),
    });
    const tag = loop.add({
      // The queue gets its operation from a completion of another user, as from a request of a
      // driver.
      uringDone(id, result) {
        finish(`user: ${id} ${result}`);
        if (id === 1) queues[1].read(files[1].file, 8, 8, memory.sector + 8, owner(1), 77);
        if (id === 1) loop.prepareSync(files[0].file, 2, tag);
      },
    });
    scheduler.addTimer(0, () => {
      queues[0].read(files[0].file, 0, 8, memory.sector, owner(0), 66);
      loop.prepareSync(-1, 1, tag);
    });
    await scheduler.run();
    assert.deepEqual(ended.sort(), [
      "queue 0: 66 0",
      "queue 1: 77 0",
      `user: 1 ${-Errno.EBADF}`,
      "user: 2 0",
    ]);
    assert.equal(memory.bytes[0], 1);
    assert.equal(memory.bytes[8 * SECTOR_BYTES], 2);
    loop.remove(tag);
    queues[0].close();
    assert.equal(loop.isClosed, false);
    queues[1].close();
    assert.ok(loop.isClosed);
    for (const file of files) file.close();
    memory.release();
    scheduler.close();
    Deno.removeSync(folder, { recursive: true });
  },
});
