/** Images that are opened anew when requests fail with ESTALE. */
import assert from "node:assert/strict";
import { AssertionError } from "../../ffi/assert.ts";
import { Errno, errnoName, type SystemError } from "../../ffi/errno.ts";
import { qcow2Driver } from "../../src/driver/qcow2/qcow2_driver.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { OpenDiskFile } from "../../src/testing/open_disk_file.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { assertHolds, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";
import { putFile } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const COUNT = 16;

/** Files that the server does not know any more, by the names that they were opened by. */
class StaleFiles {
  readonly simulation = new Simulation({ seed: 7, latencyMs: 2 });
  readonly #stale = new Set<string>();
  /** Errors of opening files; 0: they open. */
  openErrno = 0;
  /** Errors of files that the server does not know. */
  staleErrno: number = Errno.ESTALE;
  /** How often the queue's files were opened, and how often the loop has tried to. */
  opens = 0;
  queuedOpens = 0;

  constructor() {
    const { disk } = this.simulation;
    disk.beforeOperation = ({ kind, path, queued }): number => {
      if (kind === "open") {
        if (queued) this.queuedOpens++;
        if (this.openErrno !== 0) return this.openErrno;
        if (queued) {
          this.opens++;
          this.#stale.delete(path);
        }
        return 0;
      }
      // What opens an image reads from files of its own.
      const isOld = queued || ["write", "sync", "truncate"].includes(kind);
      return isOld && this.#stale.has(path) ? this.staleErrno : 0;
    };
  }

  /** From now on all that is done to an open file fails, until the file is opened again. */
  makeStale(...paths: string[]): void {
    for (const path of paths) this.#stale.add(path);
  }

  /** A VHD with a parent, which holds stamp 1 at the start, open as a device. */
  chain(): SimulatedDevice {
    const storage = this.simulation.disk;
    createDynamic("/base.vhd", { storage, sizeBytes: 16 * MIB });
    const base = this.simulation.open("vhd:/base.vhd");
    base.write(0, stampedSectors(0, COUNT, 1));
    base.settle();
    base.close();
    snapshot("/disk.vhd", { storage, parent: "/base.vhd" });
    const device = this.simulation.open("vhd:/disk.vhd");
    device.write(4096, stampedSectors(4096, COUNT, 2));
    device.settle();
    this.opens = 0;
    return device;
  }

  logged(text: string): number {
    return this.simulation.log.filter((line) => line.includes(text)).length;
  }

  /** Closes the device, and checks the images. */
  end(device: SimulatedDevice): void {
    device.close();
    for (const name of ["/base.vhd", "/disk.vhd"]) {
      assert.deepEqual(checkImage(name, { storage: this.simulation.disk }).findings, []);
    }
    this.simulation.close();
  }
}

const CASES = [
  { paths: ["/disk.vhd"], errno: Errno.ESTALE },
  { paths: ["/base.vhd"], errno: Errno.ESTALE },
  { paths: ["/disk.vhd", "/base.vhd"], errno: Errno.ESTALE },
  { paths: ["/disk.vhd"], errno: Errno.EBADF },
];

for (const { paths, errno } of CASES) {
  const what = `${paths.join(" and ")} that went stale (${errnoName(errno)})`;
  Deno.test(`${what}: opened anew, and no request fails`, () => {
    const files = new StaleFiles();
    files.staleErrno = errno;
    const device = files.chain();
    files.makeStale(...paths);
    const outcomes = [
      device.read(0, COUNT),
      device.read(4096, COUNT),
      device.write(8192, stampedSectors(8192, COUNT, 3), true),
      device.write(4096 + COUNT, stampedSectors(4096 + COUNT, COUNT, 4)),
      device.flush(),
    ];
    device.settle();
    assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 0, 0, 0, 0]);
    assert.equal(files.opens, 2, files.simulation.log.join("\n"));
    assert.ok(device.vbd.statistics().retries > 0);
    assert.equal(files.logged("are opened anew"), 1);
    assertHolds(device, 0, COUNT, 1);
    assertHolds(device, 4096, COUNT, 2);
    assertHolds(device, 8192, COUNT, 3);
    assertHolds(device, 4096 + COUNT, COUNT, 4);
    files.end(device);
  });
}

Deno.test("another file under the name is not opened: requests are tried again on the old one", () => {
  const files = new StaleFiles();
  const device = files.chain();
  const storage = files.simulation.disk;
  storage.rename("/disk.vhd", "/aside.vhd");
  snapshot("/disk.vhd", { storage, parent: "/base.vhd" });
  files.opens = 0;
  files.makeStale("/disk.vhd");
  const outcome = device.write(8192, stampedSectors(8192, COUNT, 3));
  device.settle();
  assert.equal(outcome.errno, Errno.ESTALE);
  assert.equal(files.opens, 0);
  assert.equal(files.logged("is another file now"), 1, files.simulation.log.join("\n"));
  storage.rename("/aside.vhd", "/disk.vhd");
  const again = device.write(8192, stampedSectors(8192, COUNT, 3));
  device.settle();
  assert.equal(again.errno, 0);
  assertHolds(device, 8192, COUNT, 3);
  files.end(device);
});

Deno.test("a server that is away for a while is waited for", () => {
  const files = new StaleFiles();
  const device = files.chain();
  files.makeStale("/disk.vhd");
  files.openErrno = Errno.ESTALE;
  files.simulation.scheduler.addTimer(20_000, () => files.openErrno = 0);
  const outcome = device.write(8192, stampedSectors(8192, COUNT, 3));
  device.settle();
  assert.equal(outcome.errno, 0);
  const tookMs = files.simulation.scheduler.nowMs();
  assert.ok(tookMs >= 20_000 && tookMs < 23_000, `${tookMs} ms`);
  assert.equal(files.logged("cannot be opened"), 1);
  files.end(device);
});

/** Lets the file be looked at, and not opened. */
function failOpens(files: StaleFiles, errno: number): void {
  const hook = files.simulation.disk.beforeOperation;
  files.simulation.disk.beforeOperation = (operation) =>
    operation.kind === "open" && operation.queued && files.openErrno === 0
      ? errno
      : hook?.(operation) ?? 0;
}

Deno.test("images that cannot be opened after all: requests wait for the limit, and then fail", () => {
  const files = new StaleFiles();
  const device = files.chain();
  files.makeStale("/disk.vhd");
  const hook = files.simulation.disk.beforeOperation;
  failOpens(files, Errno.EBUSY);
  const outcome = device.write(8192, stampedSectors(8192, COUNT, 3));
  device.settle();
  assert.equal(outcome.errno, Errno.ESHUTDOWN);
  const tookMs = files.simulation.scheduler.nowMs();
  assert.ok(tookMs >= 99_000 && tookMs < 110_000, `${tookMs} ms`);
  assert.equal(device.vbd.phase, "paused");
  files.simulation.disk.beforeOperation = hook;
  device.resume();
  const again = device.write(8192, stampedSectors(8192, COUNT, 3));
  device.settle();
  assert.equal(again.errno, 0);
  files.end(device);
});

Deno.test("a file that goes stale again and again: the failures of a request add up", () => {
  const files = new StaleFiles();
  const device = files.chain();
  files.simulation.disk.beforeOperation = ({ kind, queued }): number =>
    queued && kind === "write" ? Errno.ESTALE : 0;
  const outcome = device.write(4096, stampedSectors(4096, COUNT, 3));
  device.settle();
  assert.equal(outcome.errno, Errno.ESTALE);
  assert.ok(files.simulation.scheduler.nowMs() < 210_000);
  files.simulation.disk.beforeOperation = null;
  files.end(device);
});

Deno.test("a pause that is asked for meanwhile begins when the images are open again", () => {
  const files = new StaleFiles();
  const device = files.chain();
  files.makeStale("/disk.vhd");
  failOpens(files, Errno.EBUSY);
  const { vbd, simulation } = device;
  const outcome = device.write(8192, stampedSectors(8192, COUNT, 3));
  simulation.runUntil(() => vbd.phase === "paused", "Closing the images");
  const ends: (SystemError | null)[] = [];
  vbd.pause((error) => ends.push(error));
  vbd.pause((error) => ends.push(error));
  // A second pause is refused, and the first one has not begun.
  assert.deepEqual(ends.map((error) => error?.errno), [Errno.EAGAIN]);
  files.simulation.disk.beforeOperation = null;
  simulation.runUntil(() => ends.length === 2, "The pause");
  assert.equal(ends[1], null);
  assert.equal(vbd.phase, "paused");
  // Nothing opens a disk that its user has paused.
  const untilMs = simulation.scheduler.nowMs() + 10_000;
  let isLater = false;
  simulation.scheduler.addTimer(10_000, () => isLater = true);
  simulation.runUntil(() => isLater, "Ten seconds");
  assert.ok(simulation.scheduler.nowMs() >= untilMs);
  assert.equal(vbd.phase, "paused");
  device.resume();
  device.settle();
  assert.equal(outcome.errno, 0);
  files.end(device);
});

Deno.test("a pause that fails while the server is away: the disk runs on when it is back", () => {
  const files = new StaleFiles();
  const device = files.chain();
  const { vbd, simulation } = device;
  files.makeStale("/disk.vhd");
  files.openErrno = Errno.EIO;
  let ended: SystemError | null = null;
  vbd.pause((error) => ended = error);
  simulation.runUntil(() => ended !== null, "The pause");
  assert.deepEqual([(ended as SystemError | null)?.errno, vbd.phase], [Errno.ESTALE, "paused"]);
  const { message } = ended as unknown as SystemError;
  assert.match(message, /in order .*; minor 0 does not run: .* 'tap-ctl unpause'$/);
  assert.equal(files.logged("requests wait, and this is tried again"), 1);
  const outcome = device.write(8192, stampedSectors(8192, COUNT, 3));
  files.queuedOpens = 0;
  let triedOpens = -1;
  simulation.scheduler.addTimer(20_000, () => {
    triedOpens = files.queuedOpens;
    files.openErrno = 0;
  });
  device.settle();
  // The loop, which serves other disks, did not wait for the server: another thread looks first.
  assert.equal(triedOpens, 0);
  assert.deepEqual([outcome.errno, vbd.phase], [0, "open"]);
  assertHolds(device, 8192, COUNT, 3);
  files.end(device);
});

Deno.test("a disk that is to run on after a pause of others does so when the server is back", () => {
  const files = new StaleFiles();
  const device = files.chain();
  const { vbd, simulation } = device;
  device.pause();
  files.openErrno = Errno.EIO;
  let ended: SystemError | null = null;
  vbd.reopening.runOn((error) => ended = error);
  simulation.runUntil(() => ended !== null, "The first try");
  assert.deepEqual([(ended as SystemError | null)?.errno, vbd.phase], [Errno.EIO, "paused"]);
  const outcome = device.write(8192, stampedSectors(8192, COUNT, 3));
  simulation.scheduler.addTimer(20_000, () => files.openErrno = 0);
  device.settle();
  assert.deepEqual([outcome.errno, vbd.phase], [0, "open"]);
  assertHolds(device, 8192, COUNT, 3);
  files.end(device);
});

Deno.test("an unpause after a pause that failed opens what the name leads to, once", () => {
  const files = new StaleFiles();
  const device = files.chain();
  const { vbd, simulation } = device;
  files.makeStale("/disk.vhd");
  files.openErrno = Errno.EIO;
  let hasEnded = false;
  vbd.pause(() => hasEnded = true);
  simulation.runUntil(() => hasEnded, "The pause");
  files.openErrno = 0;
  device.resume();
  assert.equal(vbd.phase, "open");
  device.pause();
  let isLater = false;
  simulation.scheduler.addTimer(10_000, () => isLater = true);
  simulation.runUntil(() => isLater, "Ten seconds");
  assert.equal(vbd.phase, "paused");
  device.resume();
  files.end(device);
});

Deno.test("a close ends it", () => {
  const files = new StaleFiles();
  const device = files.chain();
  files.makeStale("/disk.vhd");
  failOpens(files, Errno.EBUSY);
  const outcome = device.write(8192, stampedSectors(8192, COUNT, 3));
  device.simulation.runUntil(() => device.vbd.phase === "paused", "Closing the images");
  let waited: SystemError | null = null;
  device.vbd.pause((error) => waited = error);
  device.close();
  assert.equal(outcome.errno, Errno.ESHUTDOWN);
  assert.equal((waited as SystemError | null)?.errno, Errno.ECANCELED);
  files.simulation.close();
});

Deno.test("a file that is replaced while requests drain is not opened", () => {
  const files = new StaleFiles();
  const device = files.chain();
  const storage = files.simulation.disk;
  files.makeStale("/disk.vhd");
  const outcome = device.write(8192, stampedSectors(8192, COUNT, 3));
  device.simulation.runUntil(() => device.vbd.phase === "pausing", "The end of the first try");
  storage.rename("/disk.vhd", "/aside.vhd");
  snapshot("/new.vhd", { storage, parent: "/base.vhd" });
  storage.rename("/new.vhd", "/disk.vhd");
  device.settle();
  assert.equal(outcome.errno, Errno.ESHUTDOWN);
  assert.ok([1, 2, 3].includes(files.logged("it is another file than before")));
  // It is the user's decision to go on with another one.
  device.resume();
  const again = device.write(8192, stampedSectors(8192, COUNT, 3));
  device.settle();
  assert.equal(again.errno, 0);
  files.end(device);
});

Deno.test("a file that is replaced while a close takes longer than the pause may is not opened", () => {
  const files = new StaleFiles();
  const { disk } = files.simulation;
  putFile(disk, "/disk.raw", new Uint8Array(MIB));
  putFile(disk, "/new.raw", new Uint8Array(MIB));
  const device = files.simulation.open("aio:/disk.raw");
  files.makeStale("/disk.raw");
  const outcome = device.write(64, stampedSectors(64, COUNT, 3));
  device.simulation.runUntil(() => device.vbd.phase === "pausing", "The end of the first try");
  files.simulation.hang("/disk.raw", 20_000);
  disk.rename("/disk.raw", "/aside.raw");
  disk.rename("/new.raw", "/disk.raw");
  device.settle();
  assert.equal(outcome.errno, Errno.ESHUTDOWN, files.simulation.log.join("\n"));
  assert.ok(files.logged("it is another file than before") > 0);
  assert.equal(device.vbd.phase, "paused");
  device.close();
  files.simulation.close();
});

Deno.test("a close that takes longer than the pause may, and fails: the same file is opened after it", () => {
  const files = new StaleFiles();
  const { disk } = files.simulation;
  putFile(disk, "/disk.raw", new Uint8Array(MIB));
  const device = files.simulation.open("aio:/disk.raw");
  files.makeStale("/disk.raw");
  const outcome = device.write(64, stampedSectors(64, COUNT, 3));
  device.simulation.runUntil(() => device.vbd.phase === "pausing", "The end of the first try");
  files.simulation.hang("/disk.raw", 20_000);
  // The server is away when the close has ended, and does not stay away.
  files.openErrno = Errno.ESTALE;
  files.simulation.scheduler.addTimer(40_000, () => files.openErrno = 0);
  device.settle();
  assert.equal(outcome.errno, 0, files.simulation.log.join("\n"));
  assertHolds(device, 64, COUNT, 3);
  device.close();
  files.simulation.close();
});

Deno.test("EBADF of a descriptor that is not the file's any more ends the disk: nothing is tried again", () => {
  const files = new StaleFiles();
  const device = files.chain();
  files.simulation.expectsFaults = true;
  files.staleErrno = Errno.EBADF;
  const { requireOwn } = OpenDiskFile.prototype;
  OpenDiskFile.prototype.requireOwn = (): void => {
    throw new AssertionError("Descriptor 7 of /disk.vhd was closed, or is another file's");
  };
  try {
    files.makeStale("/disk.vhd");
    const outcome = device.write(8192, stampedSectors(8192, COUNT, 3));
    device.settle();
    assert.equal(outcome.errno, Errno.EIO);
    assert.ok(files.simulation.scheduler.nowMs() < 1000, "before its next try");
    assert.equal(device.vbd.failed, true);
  } finally {
    OpenDiskFile.prototype.requireOwn = requireOwn;
  }
  files.simulation.close();
});

Deno.test("an unpause that comes while the files are being opened anew does not lift the condition", () => {
  const files = new StaleFiles();
  const { disk } = files.simulation;
  for (const path of ["/disk.qcow2", "/new.qcow2"]) {
    createQcow2(path, { storage: disk, sizeBytes: 16 * MIB });
  }
  const device = files.simulation.open("qcow2:/disk.qcow2");
  const { prepare } = qcow2Driver;
  try {
    // As with an image on Ceph below it.
    qcow2Driver.prepare = (_spec, scheduler, done): () => void => {
      const timer = scheduler.addTimer(300, () => done(null, { discard(): void {} }));
      return () => scheduler.cancelTimer(timer);
    };
    files.makeStale("/disk.qcow2");
    const outcome = device.write(64, stampedSectors(64, COUNT, 3));
    device.simulation.runUntil(() => device.vbd.phase === "paused", "Closing the images");
    disk.rename("/disk.qcow2", "/aside.qcow2");
    disk.rename("/new.qcow2", "/disk.qcow2");
    let refusal: SystemError | null = null;
    device.vbd.resume(null, (error) => refusal = error);
    assert.equal((refusal as SystemError | null)?.errno, Errno.EAGAIN);
    device.settle();
    assert.equal(outcome.errno, Errno.ESHUTDOWN);
    assert.ok(files.logged("it is another file than before") > 0);
  } finally {
    if (prepare !== undefined) qcow2Driver.prepare = prepare;
  }
  device.close();
  files.simulation.close();
});
