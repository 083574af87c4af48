/** Locks that a thread takes before the loop opens a file. */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { isLockedAside, tryLockAside } from "../../ffi/locks_aside.ts";
import type { ImageSpec } from "../../src/driver/driver.ts";
import { lockAhead, type ThreadCalls, type WithLock } from "../../src/files/locks_ahead.ts";
import { osStorage } from "../../src/files/storage.ts";
import { type DiskFile, type DiskFiles, osDiskFiles } from "../../src/queue/disk_files.ts";
import type { Scheduler } from "../../src/scheduler/scheduler.ts";
import { Preparation } from "../../src/vbd/preparation.ts";
import { withTempDir } from "../support/tools.ts";

/** Threads that are fast also on a slow machine. */
const fastThreads: ThreadCalls = { tryLockAside, isLockedAside, nowMs: () => 0 };

/** As for a file on NFS, whose lock may take time. */
async function ahead(path: string, direct = false, calls = fastThreads): Promise<WithLock> {
  const locking = lockAhead(path, { direct, asks: () => true, calls });
  assert.notEqual(locking, null);
  return await locking ?? ((work): void => work());
}

function isFree(path: string): boolean {
  try {
    osStorage.open(path, "write").close();
    return true;
  } catch {
    return false;
  }
}

function withFile(body: (path: string) => Promise<void>): Promise<void> {
  return withTempDir(async (folder) => {
    const path = `${folder}/disk`;
    Deno.writeFileSync(path, new Uint8Array(8192));
    await body(path);
  });
}

Deno.test("a file of this machine is locked when it is opened", () =>
  withFile((path) => {
    assert.equal(lockAhead(path, { direct: false }), null);
    assert.equal(lockAhead(`${path}.none`, { direct: false, asks: () => true }), null);
    return Promise.resolve();
  }));

for (const direct of [false, true]) {
  Deno.test(`the open gets the lock that a thread took, direct: ${direct}`, () =>
    withFile(async (path) => {
      const withLock = await ahead(path, direct);
      assert.equal(isFree(path), false, "another disk of this process gets it");
      const files: DiskFile[] = [];
      withLock(() => files.push(osDiskFiles.open(path, { readOnly: false, direct })));
      assert.equal(isFree(path), false, "the file keeps the lock");
      assert.equal(files[0].weakLock, null);
      files[0].close();
      assert.ok(isFree(path));
    }));
}

Deno.test("a lock that no open took is given back", () =>
  withFile(async (path) => {
    (await ahead(path))(() => {});
    assert.ok(isFree(path));
    // What opens it for writing here gets that open file.
    (await ahead(path))(() => osStorage.open(path, "write").close());
    assert.ok(isFree(path));
    const failing = await ahead(path);
    assert.throws(() =>
      failing(() => {
        throw new Error("no image");
      }), /no image/);
    assert.ok(isFree(path));
    // It is opened otherwise than was thought: it is another open file, with a lock of its own.
    const other = await ahead(path, true);
    other(() => osDiskFiles.open(path, { readOnly: false, direct: false }).close());
    assert.ok(isFree(path));
  }));

Deno.test("a file that another one has is EBUSY when it is opened", () =>
  withFile(async (path) => {
    const holder = osStorage.open(path, "write");
    const withLock = await ahead(path);
    assert.throws(
      () => withLock(() => void osDiskFiles.open(path, { readOnly: false, direct: false })),
      { errno: Errno.EBUSY, message: /has it open for writing/ },
    );
    holder.close();
    assert.ok(isFree(path));
  }));

/** Threads whose tries take so long and get no lock, and that do not find who has it. */
function slowThreads(...tookMs: number[]): ThreadCalls {
  let nowMs = 0;
  return {
    tryLockAside: () => {
      nowMs += tookMs.shift() ?? 0;
      return Promise.resolve(false);
    },
    isLockedAside: () => Promise.resolve(false),
    nowMs: () => nowMs,
  };
}

Deno.test("a try that took long for want of a thread does not mean that there are no locks", () =>
  withFile(async (path) => {
    const open = (): DiskFile => osDiskFiles.open(path, { readOnly: false, direct: false });
    const holder = osStorage.open(path, "write");
    const locked = await ahead(path, false, slowThreads(2_000, 10));
    assert.throws(() => locked(() => void open()), { errno: Errno.EBUSY });
    const isLockedAside = (): Promise<boolean> => Promise.resolve(true);
    const calls = { ...slowThreads(60_000), isLockedAside };
    const [errno, message] = [Errno.EBUSY, /open for writing; pause or close/];
    await assert.rejects(ahead(path, false, calls), { errno, message });
    holder.close();
    const files: DiskFile[] = [];
    const without = await ahead(path, false, slowThreads(60_000, 60_000));
    without(() => void files.push(open()));
    assert.match(files[0].weakLock ?? "", /is rpc.statd running/);
    files[0].close();
  }));

/** A preparation whose file's lock takes until the test ends it. */
class Rig {
  readonly did: string[] = [];
  readonly preparation = new Preparation();
  grant: (withLock: WithLock) => void = () => {};
  refuse: (error: Error) => void = () => {};

  constructor(spec: Partial<ImageSpec> = {}) {
    const files = {
      storage: osStorage,
      lockAhead: (path: string) => {
        this.did.push(`locks ${path}`);
        return new Promise<WithLock>((resolve, reject) => {
          this.grant = resolve;
          this.refuse = reject;
        });
      },
    } as unknown as DiskFiles;
    const scheduler = {
      settle: (work: Promise<unknown>, done: (result: unknown) => void) => void work.then(done),
    } as unknown as Scheduler;
    const leaf = { type: "log", path: "aio:/disk", readOnly: false, direct: true, ...spec };
    this.preparation.run(leaf, { scheduler, files }, (error) => {
      this.did.push(error === null ? "opens" : `fails: ${(error as Error).message}`);
    });
  }

  withLock = (work: () => void): void => {
    work();
    this.did.push("releases");
  };

  async turn(): Promise<void> {
    for (let i = 0; i < 20; i++) await Promise.resolve();
  }
}

Deno.test("an image is opened when its file is locked, and other work goes on meanwhile", async () => {
  const rig = new Rig();
  await rig.turn();
  assert.deepEqual([rig.did, rig.preparation.isRunning], [["locks /disk"], true]);
  rig.grant(rig.withLock);
  await rig.turn();
  assert.deepEqual(rig.did.slice(1), ["opens", "releases"]);
  assert.equal(rig.preparation.isRunning, false);
});

Deno.test("a lock that is refused, or given up, opens nothing", async () => {
  const refused = new Rig();
  refused.refuse(new Error("busy"));
  await refused.turn();
  assert.deepEqual(refused.did.slice(1), ["fails: busy"]);
  const cancelled = new Rig();
  cancelled.preparation.cancel();
  assert.match(cancelled.did[1], /fails: .*given up/);
  assert.equal(cancelled.preparation.isRunning, false);
  cancelled.grant(cancelled.withLock);
  await cancelled.turn();
  assert.deepEqual(cancelled.did.slice(2), ["releases"]);
});

Deno.test("an image that is only read has no lock", () => {
  assert.deepEqual(new Rig({ readOnly: true }).did, ["opens"]);
  assert.deepEqual(new Rig({ type: "ram", path: "16" }).did, ["opens"]);
});
