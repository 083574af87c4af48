/** Counters of requests for monitoring programs: what is counted, and the files. */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { closeFile, O_RDONLY, openFile, tryLockExclusive } from "../../ffi/files.ts";
import { Meter } from "../../src/metrics/meter.ts";
import { METRICS_BYTES } from "../../src/metrics/metrics.ts";
import { MetricsFolder, removeStaleMetrics } from "../../src/metrics/metrics_folder.ts";
import { RequestKind } from "../../src/vbd/slots.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { Simulation, stampedSectors } from "../support/sim.ts";
import { readStats, SeenPages, type Vbd3Stats } from "../support/metrics.ts";
import { run, withTempDir } from "../support/tools.ts";

/** Larger than the number of any process. */
const NO_PROCESS = 2_000_000_000;

Deno.test("metrics: a field of 64 bits carries over", () => {
  const clock = new Float64Array(1);
  const meter = new Meter(2, clock);
  const pages = new SeenPages();
  meter.show(pages.open({ of: "vbd", domain: 3, device: 51712 }));
  const expected = { ticks: 0, sectors: 0 };
  // Times up to two days, such as those of requests that wait for the end of a pause.
  for (const [ms, sectors] of [[4_294_967, 2 ** 32 - 1], [0.3, 1], [172_800_000, 8]]) {
    meter.begin(1, 1);
    clock[0] += ms;
    meter.end(1, 1, sectors, 0);
    expected.ticks += Math.round(ms * 1000);
    expected.sectors += sectors;
    const { write_total_ticks: ticks, write_sectors } = pages.read("vbd-3-51712");
    assert.ok(Math.abs(ticks - expected.ticks) <= 1, `${ticks} instead of ${expected.ticks}`);
    assert.equal(write_sectors, expected.sectors);
  }
  meter.begin(0, 0);
  meter.hide();
  assert.deepEqual([...pages.named.keys()], []);
  meter.end(0, 0, 8, 0);
});

Deno.test("metrics: a disk's counters go on over pauses, and count requests that fail or are ended", () => {
  const metrics = new SeenPages();
  const simulation = new Simulation({ seed: 1, metrics });
  createDynamic("/disk.vhd", { storage: simulation.disk, sizeBytes: 16 << 20 });
  const device = simulation.open("vhd:/disk.vhd", { retry: { attempts: 2 } });
  const seen = (): Vbd3Stats => metrics.read("vdi-0");
  device.write(0, stampedSectors(0, 16, 1));
  device.write(4096, stampedSectors(4096, 8, 1));
  device.read(0, 32);
  device.flush();
  // The read has ended: there is nothing on disk yet.
  assert.equal(seen().oo_reqs, 3);
  device.settle();
  const first = seen();
  assert.deepEqual(
    [first.oo_reqs, first.read_reqs_submitted, first.read_reqs_completed, first.read_sectors],
    [0, 1, 1, 32],
  );
  assert.deepEqual(
    [first.write_reqs_submitted, first.write_reqs_completed, first.write_sectors],
    [2, 2, 24],
  );

  device.pause();
  device.read(0, 8);
  const beganMs = simulation.scheduler.nowMs();
  simulation.scheduler.addTimer(5000, () => {});
  simulation.runUntil(() => simulation.scheduler.nowMs() >= beganMs + 5000, "Five seconds");
  assert.deepEqual([seen().oo_reqs, seen().read_reqs_submitted], [1, 2]);
  device.resume();
  device.settle();
  const { read_total_ticks: ticks } = seen();
  assert.ok(ticks >= 5_000_000 && ticks < 5_100_000, `${ticks} µs`);

  simulation.fault = () => Errno.EIO;
  const failed = device.read(0, 8);
  device.settle();
  assert.equal(failed.errno, Errno.EIO);
  simulation.fault = null;
  assert.deepEqual([seen().io_errors, seen().read_reqs_completed, seen().read_sectors], [1, 3, 40]);

  simulation.hang("/disk.vhd", 60_000);
  device.write(0, stampedSectors(0, 8, 2));
  device.discard(0, 8);
  device.settle();
  device.close();
  assert.deepEqual([...metrics.named.keys()], []);
  assert.equal(metrics.opened, 1);
  simulation.close();
});

Deno.test("metrics: requests of a fault's disk have ended for the counters, too", () => {
  const metrics = new SeenPages();
  const simulation = new Simulation({ seed: 1, metrics });
  simulation.expectsFaults = true;
  createDynamic("/disk.vhd", { storage: simulation.disk, sizeBytes: 16 << 20 });
  const device = simulation.open("vhd:/disk.vhd");
  simulation.hang("/disk.vhd", 1000);
  device.write(0, stampedSectors(0, 8, 2));
  device.vbd.fault(new Error("planted"));
  device.settle();
  const { oo_reqs, io_errors, write_reqs_submitted, write_reqs_completed } = metrics.read("vdi-0");
  assert.deepEqual([oo_reqs, io_errors, write_reqs_submitted, write_reqs_completed], [0, 1, 1, 1]);
  simulation.close();
});

/** A folder of metrics in a folder of the test, and its log. */
function folderIn(root: string, pid = Deno.pid): { folder: MetricsFolder; log: string[] } {
  const log: string[] = [];
  return { folder: new MetricsFolder((line) => void log.push(line), root, pid), log };
}

Deno.test("metrics: files have a page each, are for their owner only, and go with the process", () =>
  withTempDir((root) => {
    const { folder, log } = folderIn(root);
    const path = `${root}/td3-${Deno.pid}`;
    const page = folder.open({ of: "vdi", minor: 7 });
    const left = new Meter(1, new Float64Array(1));
    left.show(folder.open({ of: "nbd", minor: 7 }));
    left.begin(0, 0);
    page.words[0] = 1;
    page.words[2] = 9;
    assert.deepEqual([...Deno.readDirSync(path)].map(({ name }) => name).sort(), [
      "nbd-7",
      "vdi-7",
    ]);
    const { mode, size, blocks } = Deno.statSync(`${path}/vdi-7`);
    assert.deepEqual([(mode ?? 0) & 0o777, size], [0o600, METRICS_BYTES]);
    assert.ok((blocks ?? 0) * 512 >= METRICS_BYTES, "the file has a hole");
    assert.equal((Deno.statSync(path).mode ?? 0) & 0o777, 0o700);
    assert.equal(readStats(`${path}/vdi-7`).oo_reqs, 9);
    assert.equal(readStats(`${path}/nbd-7`).read_reqs_submitted, 1);
    page.close();
    assert.deepEqual([...Deno.readDirSync(path)].map(({ name }) => name), ["nbd-7"]);
    folder.close();
    assert.deepEqual([...Deno.readDirSync(root)], []);
    left.end(0, 0, 8, 0);
    assert.deepEqual(log, []);
    assert.equal(folder.open({ of: "vdi", minor: 7 }).words.length, METRICS_BYTES / 4);
  }));

Deno.test("metrics: rrdp-iostat is told of a guest's ring, which is counted where xentop looks", () =>
  withTempDir((root) => {
    const namesOf = (folder = root): string[] =>
      [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
    const ring = { of: "vbd", domain: 3, device: 51712 } as const;
    const { folder, log } = folderIn(root);
    const meter = new Meter(32, new Float64Array(1));
    meter.show(folder.open(ring));
    meter.begin(0, 1);
    assert.deepEqual(namesOf(), [`td3-${Deno.pid}`, "vbd3-3-51712"].sort());
    const seen = readStats(`${root}/td3-${Deno.pid}/vbd-3-51712`);
    assert.deepEqual([seen.oo_reqs, seen.write_reqs_submitted], [1, 1]);
    assert.deepEqual(namesOf(`${root}/vbd3-3-51712`), ["statistics"]);
    // Another tapdisk has the ring next, before this one has let go of it.
    const next = folderIn(root, NO_PROCESS).folder;
    const page = next.open(ring);
    meter.hide();
    assert.deepEqual(namesOf(), [`td3-${Deno.pid}`, `td3-${NO_PROCESS}`, "vbd3-3-51712"].sort());
    page.close();
    assert.deepEqual(namesOf(), [`td3-${Deno.pid}`, `td3-${NO_PROCESS}`].sort());
    folder.open(ring);
    next.open(ring);
    // It ends without closing anything.
    next.close();
    assert.deepEqual(namesOf(), [`td3-${Deno.pid}`, "vbd3-3-51712"].sort());
    folder.close();
    assert.deepEqual([...namesOf(), ...log], []);
    Deno.mkdirSync(`${root}/td3-${NO_PROCESS}`, { mode: 0o700 });
    Deno.writeTextFileSync(`${root}/td3-${NO_PROCESS}/vbd-1-768`, "");
    for (const name of ["vbd3-1-768", "vbd3-1-832"]) Deno.mkdirSync(`${root}/${name}`);
    removeStaleMetrics(root);
    assert.deepEqual(namesOf(), ["vbd3-1-832"]);
    // A file is in the way of the notice.
    const again = folderIn(root);
    Deno.writeTextFileSync(`${root}/vbd3-3-51712`, "");
    again.folder.open(ring).words[0] = 1;
    again.folder.close();
    assert.deepEqual(namesOf(), ["vbd3-1-832", "vbd3-3-51712"]);
  }));

Deno.test("metrics: what a dead process of the same number left is cleared away", () =>
  withTempDir((root) => {
    const path = `${root}/td3-${Deno.pid}`;
    Deno.mkdirSync(path, { mode: 0o700 });
    Deno.writeTextFileSync(`${path}/vdi-3`, "old");
    Deno.writeTextFileSync(`${root}/outside`, "mine");
    Deno.symlinkSync(`${root}/outside`, `${path}/vdi-4`);
    const { folder, log } = folderIn(root);
    assert.deepEqual([...Deno.readDirSync(path)], []);
    folder.open({ of: "vdi", minor: 3 });
    assert.equal(Deno.readTextFileSync(`${root}/outside`), "mine");
    assert.deepEqual(log, []);
    folder.close();
  }));

Deno.test("metrics: without a folder of its own a process counts for itself, and says why", () =>
  withTempDir((root) => {
    const path = `${root}/td3-${Deno.pid}`;
    const refused = (why: RegExp): void => {
      const { folder, log } = folderIn(root);
      folder.open({ of: "vdi", minor: 0 }).words[0] = 1;
      folder.close();
      assert.equal(log.length, 1);
      assert.match(log[0], why);
    };
    // A link, wherever it leads.
    Deno.mkdirSync(`${root}/elsewhere`, { mode: 0o700 });
    Deno.writeTextFileSync(`${root}/elsewhere/vdi-0`, "mine");
    Deno.symlinkSync(`${root}/elsewhere`, path);
    refused(/ENOTDIR|ELOOP/);
    assert.equal(Deno.readTextFileSync(`${root}/elsewhere/vdi-0`), "mine");
    Deno.removeSync(path);
    // A folder to which others may write.
    Deno.mkdirSync(path);
    Deno.chmodSync(path, 0o777);
    refused(/other users can write to/);
    Deno.removeSync(path);
    // A file.
    Deno.writeTextFileSync(path, "");
    refused(/ENOTDIR/);
    Deno.removeSync(path);
    // The folder of a process in another container.
    const { folder } = folderIn(root);
    refused(/EBUSY/);
    folder.close();
    // No shared memory.
    const { log } = folderIn(`${root}/none`);
    assert.match(log.join(), /ENOENT/);
  }));

const isRoot = Deno.uid() === 0;

Deno.test({
  name: `metrics: a folder or a link of another user is refused${isRoot ? "" : " (needs root)"}`,
  ignore: !isRoot,
  fn: () =>
    withTempDir((root) => {
      Deno.chmodSync(root, 0o1777);
      const path = `${root}/td3-${Deno.pid}`;
      for (const make of [() => Deno.mkdirSync(path), () => Deno.symlinkSync("/etc", path)]) {
        make();
        // Of the link itself.
        new Deno.Command("chown", { args: ["-h", "12345", path] }).outputSync();
        const { folder, log } = folderIn(root);
        folder.open({ of: "vdi", minor: 0 });
        folder.close();
        assert.match(log.join(), /which user 12345 owns/);
        removeStaleMetrics(root);
        assert.ok(Deno.lstatSync(path).uid === 12345);
        Deno.removeSync(path);
      }
      Deno.mkdirSync(`${root}/td3-${NO_PROCESS}`);
      Deno.chownSync(`${root}/td3-${NO_PROCESS}`, 12345, 12345);
      removeStaleMetrics(root);
      Deno.statSync(`${root}/td3-${NO_PROCESS}`);
    }),
});

Deno.test("metrics: folders of processes that are gone are removed, others stay", () =>
  withTempDir((root) => {
    const held = folderIn(root, NO_PROCESS - 1);
    for (const name of [`td3-${NO_PROCESS}`, "td3-1", "td3-x", "td3-0", "td3-", "other"]) {
      Deno.mkdirSync(`${root}/${name}`, { mode: 0o700 });
      Deno.writeTextFileSync(`${root}/${name}/vdi-0`, "");
    }
    removeStaleMetrics(root);
    assert.deepEqual([...Deno.readDirSync(root)].map(({ name }) => name).sort(), [
      "other",
      "td3-",
      "td3-0",
      "td3-1",
      `td3-${NO_PROCESS - 1}`,
      "td3-x",
    ]);
    // The lock goes with the process.
    const lock = openFile(`${root}/td3-${NO_PROCESS - 1}`, O_RDONLY);
    assert.equal(tryLockExclusive(lock), false);
    closeFile(lock);
    held.folder.close();
    removeStaleMetrics(`${root}/none`);
  }));

const canMount = await withTempDir(async (folder) => {
  const { code } = await run("mount", ["-t", "tmpfs", "-o", "size=16k", "none", folder])
    .catch(() => ({ code: 1 }));
  if (code === 0) await run("umount", [folder]);
  return code === 0;
});

Deno.test({
  name: `metrics: a full filesystem costs the counters only${canMount ? "" : " (needs mount)"}`,
  ignore: !canMount,
  fn: () =>
    withTempDir(async (root) => {
      await run("mount", ["-t", "tmpfs", "-o", "size=16k,mode=1777", "none", root]);
      try {
        const { folder, log } = folderIn(root);
        const pages = Array.from(
          { length: 8 },
          (_, minor) => folder.open({ of: "vdi", minor }),
        );
        // A store to a page without room would end the process.
        for (const { words } of pages) words.fill(7);
        assert.ok(log.length > 0 && log.length < 8, log.join("\n"));
        for (const line of log) assert.match(line, /ENOSPC/);
        assert.equal([...Deno.readDirSync(`${root}/td3-${Deno.pid}`)].length, 8 - log.length);
        for (const page of pages) page.close();
        folder.close();
        assert.deepEqual([...Deno.readDirSync(root)], []);
      } finally {
        await run("umount", [root]);
      }
    }),
});

/** The numbers of a ring's own file. */
function readRing(path: string): number[] {
  const bytes = Deno.readFileSync(path);
  assert.equal(bytes.length, METRICS_BYTES);
  const view = new DataView(bytes.buffer);
  return Array.from({ length: 14 }, (_, i) => Number(view.getBigUint64(8 * i, true)));
}

Deno.test("metrics: a guest's ring is counted as the kernel's backend does, too", () =>
  withTempDir((root) => {
    const { folder, log } = folderIn(root);
    const clock = new Float64Array(1);
    const meter = new Meter(32, clock);
    const ring = { of: "vbd", domain: 3, device: 51712 } as const;
    const path = `${root}/vbd3-3-51712/statistics`;
    // What a killed tapdisk left.
    Deno.mkdirSync(`${root}/vbd3-3-51712`, { mode: 0o700 });
    Deno.writeTextFileSync(path, "old");
    meter.show(folder.open(ring));
    assert.deepEqual(readRing(path), new Array(14).fill(0));
    assert.equal((Deno.statSync(path).mode ?? 0) & 0o777, 0o600);
    const pass = (kind: number, sectors: number, errno: number, tookMs: number): void => {
      meter.begin(5, kind);
      clock[0] += tookMs;
      meter.end(5, kind, sectors, errno);
    };
    pass(RequestKind.Read, 8, 0, 2);
    pass(RequestKind.Read, 16, 0, 7);
    pass(RequestKind.Read, 16, 5, 3);
    pass(RequestKind.Write, 24, 0, 5_000_000);
    pass(RequestKind.Flush, 0, 0, 1);
    pass(RequestKind.Discard, 0, 0, 1);
    pass(RequestKind.Discard, 0, 0, 1);
    meter.begin(6, RequestKind.Write);
    const reads = [3, 3, 24, 12_000, 7_000];
    const writes = [2, 1, 24, 5_000_000_000, 5_000_000_000];
    assert.deepEqual(readRing(path), [2, 1, 0, ...reads, ...writes, 0]);
    meter.hide();
    meter.end(6, RequestKind.Write, 8, 0);
    assert.deepEqual([...Deno.readDirSync(root)].map(({ name }) => name), [`td3-${Deno.pid}`]);
    // A killed tapdisk's are cleared away with its folder.
    folder.open(ring);
    const dead = `${root}/td3-${NO_PROCESS}`;
    Deno.renameSync(`${root}/td3-${Deno.pid}`, dead);
    folder.close();
    Deno.mkdirSync(dead, { recursive: true, mode: 0o700 });
    Deno.writeTextFileSync(`${dead}/vbd-3-51712`, "");
    removeStaleMetrics(root);
    assert.deepEqual([...Deno.readDirSync(root)], []);
    assert.deepEqual(log, []);
    // Nothing is removed or written through a link that another made.
    Deno.mkdirSync(`${root}/outside`, { mode: 0o700 });
    Deno.writeTextFileSync(`${root}/outside/statistics`, "mine");
    Deno.symlinkSync(`${root}/outside`, `${root}/vbd3-3-51712`);
    const other = folderIn(root);
    meter.show(other.folder.open(ring));
    pass(RequestKind.Read, 8, 0, 2);
    meter.hide();
    other.folder.close();
    assert.equal(Deno.readTextFileSync(`${root}/outside/statistics`), "mine");
    assert.equal(other.log.length, 1);
  }));
