/**
 * Errors of a place of a disk that otherwise works: they reach users early, and those of a disk that is
 * gone do not. And the policies of retries.
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import type { OpenOptions } from "../../src/vbd/open_options.ts";
import { RETRY_POLICIES } from "../../src/vbd/retry.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import {
  assertHolds,
  type Outcome,
  SECTOR_BYTES,
  SimulatedDevice,
  Simulation,
  stampedSectors,
} from "../support/sim.ts";

const DISK_SECTORS = 4 * 2048;
const BAD = 1003;
/** A place that works. */
const GOOD = 5000;
/** How often others make a request. */
const TRAFFIC_MS = 250;

/** Decides the result of an operation: 0, or an errno. */
type Fault = (kind: string, sector: number, count: number, path: string) => number;

/** A fault of the operations of a kind that touch the sector `BAD`. */
function badSector(kind: string, errno: number = Errno.EIO): Fault {
  return (what, sector, count) =>
    what === kind && sector <= BAD && BAD < sector + count ? errno : 0;
}

/** A fixed image, whose sectors are where those of its disk are. */
class Rig {
  readonly simulation: Simulation;
  readonly device: SimulatedDevice;

  constructor(options: OpenOptions = {}, simulation = new Simulation({ seed: 1 })) {
    this.simulation = simulation;
    const sizeBytes = DISK_SECTORS * SECTOR_BYTES;
    createFixed("/disk.vhd", { storage: simulation.disk, sizeBytes });
    this.device = simulation.open("vhd:/disk.vhd", options);
  }

  set fault(fault: Fault) {
    setFault(this.simulation, fault);
  }

  close(): void {
    this.fault = () => 0;
    this.device.close();
    this.simulation.close();
  }
}

function setFault({ disk }: Simulation, fault: Fault): void {
  disk.beforeOperation = ({ kind, queued, path, offsetBytes, lengthBytes }) =>
    queued ? fault(kind, offsetBytes / SECTOR_BYTES, lengthBytes / SECTOR_BYTES, path) : 0;
}

/** How many seconds a request takes, while `others` make requests. */
function secondsOf(
  device: SimulatedDevice,
  outcome: Outcome,
  others: (() => Outcome) | null = null,
): number {
  const { scheduler } = device.simulation;
  const startMs = scheduler.nowMs();
  const made: Outcome[] = [];
  let endMs = 0;
  const goOn = (): void => {
    if (others === null || outcome.errno !== null) return;
    made.push(others());
    scheduler.addTimer(TRAFFIC_MS, goOn);
  };
  goOn();
  device.simulation.runUntil(() => {
    if (outcome.errno !== null && endMs === 0) endMs = scheduler.nowMs();
    return outcome.errno !== null;
  }, "The request");
  device.settle();
  for (const { errno } of made) assert.equal(errno, 0);
  return Math.round((endMs - startMs) / 1000);
}

Deno.test("media error: a read of one bad sector fails after ten seconds, if others read or not", () => {
  for (const errno of [Errno.EIO, Errno.ENODATA, Errno.EILSEQ, Errno.EREMOTEIO]) {
    for (const hasOthers of [true, false]) {
      const rig = new Rig();
      const { device, simulation } = rig;
      rig.fault = badSector("read", errno);
      const outcome = device.read(BAD - 3, 8);
      const others = hasOthers ? (): Outcome => device.read(GOOD, 8) : null;
      const seconds = secondsOf(device, outcome, others);
      assert.equal(outcome.errno, errno);
      assert.ok(seconds >= 10 && seconds <= 12, `${seconds} s`);
      const { media_errors, retries } = device.vbd.statistics();
      assert.deepEqual([media_errors, retries], [1, seconds]);
      const line = simulation.log.at(-1) ?? "";
      assert.match(
        line,
        /sector 1000 of vhd:\/disk\.vhd failed 1[123] times \(E\w+\), and the rest/,
      );
      // Each request has its own count.
      assert.ok(secondsOf(device, device.read(BAD, 1)) >= 10);
      rig.close();
    }
  }
});

Deno.test("media error: a write of one bad sector fails after thirty seconds while others write", () => {
  const rig = new Rig();
  const { device } = rig;
  rig.fault = badSector("write");
  const write = (): Outcome => device.write(BAD, stampedSectors(BAD, 1, 2));
  const others = (): Outcome => device.write(GOOD, stampedSectors(GOOD, 8, 1));
  const outcome = write();
  const seconds = secondsOf(device, outcome, others);
  assert.equal(outcome.errno, Errno.EIO);
  assert.ok(seconds >= 30 && seconds <= 32, `${seconds} s`);
  // A disk that can only be read is no place: a guest may have to give a filesystem up.
  assert.equal(secondsOf(device, write(), () => device.read(GOOD, 8)), 100);
  assert.equal(secondsOf(device, write()), 100);
  assertHolds(device, BAD, 1, 0);
  rig.close();
});

Deno.test("media error: a disk that is gone is waited for, whatever else is read", () => {
  const rig = new Rig();
  rig.fault = (kind) => kind === "read" ? Errno.EIO : 0;
  const { device } = rig;
  assert.equal(secondsOf(device, device.read(BAD, 8)), 100);
  rig.fault = (_kind) => Errno.EIO;
  assert.equal(secondsOf(device, device.write(BAD, stampedSectors(BAD, 1, 2))), 100);
  assert.equal(device.vbd.statistics().media_errors, 0);
  rig.close();
});

Deno.test("media error: a leaf that is gone is waited for while its parent is read", () => {
  const simulation = new Simulation({ seed: 1 });
  const storage = simulation.disk;
  createDynamic("/base.vhd", { storage, sizeBytes: DISK_SECTORS * SECTOR_BYTES });
  const base = simulation.open("vhd:/base.vhd");
  base.write(GOOD, stampedSectors(GOOD, 8, 1));
  base.settle();
  base.close();
  snapshot("/leaf.vhd", { storage, parent: "/base.vhd" });
  const device = simulation.open("vhd:/leaf.vhd");
  device.write(BAD, stampedSectors(BAD, 8, 1));
  device.settle();
  setFault(simulation, (_kind, _sector, _count, path) => path === "/leaf.vhd" ? Errno.EIO : 0);
  const outcome = device.read(BAD, 8);
  assert.equal(secondsOf(device, outcome, () => device.read(GOOD, 8)), 100);
  assert.equal(outcome.errno, Errno.EIO);
  setFault(simulation, () => 0);
  assertHolds(device, BAD, 8, 1);
  device.close();
  simulation.close();
});

Deno.test("media error: a full disk, and a disk through the page cache, are waited for", () => {
  const full = new Rig();
  full.fault = badSector("write", Errno.ENOSPC);
  const others = (): Outcome => full.device.write(GOOD, stampedSectors(GOOD, 8, 1));
  const outcome = full.device.write(BAD, stampedSectors(BAD, 1, 2));
  assert.equal(secondsOf(full.device, outcome, others), 100);
  full.close();
  const cached = new Rig({ direct: false });
  cached.fault = badSector("read");
  const read = cached.device.read(BAD, 1);
  assert.equal(secondsOf(cached.device, read, () => cached.device.read(GOOD, 8)), 100);
  cached.close();
});

Deno.test("sync error: through the page cache no flush ends well after it, until the disk is reopened", () => {
  for (const direct of [true, false]) {
    const rig = new Rig({ direct, retry: { policy: "none" } });
    const { device } = rig;
    const end = (outcome: Outcome): number | null => {
      device.settle();
      return outcome.errno;
    };
    assert.equal(end(device.write(GOOD, stampedSectors(GOOD, 8, 1))), 0);
    rig.fault = (kind) => kind === "sync" ? Errno.EINTR : 0;
    assert.equal(end(device.flush()), Errno.EINTR);
    rig.fault = () => 0;
    assert.equal(end(device.flush()), 0, "what was interrupted lost nothing");
    rig.fault = (kind) => kind === "sync" ? Errno.ENOSPC : 0;
    assert.equal(end(device.flush()), Errno.ENOSPC);
    rig.fault = () => 0;
    const after = direct ? 0 : Errno.ENOSPC;
    assert.equal(end(device.flush()), after);
    assert.equal(end(device.write(GOOD, stampedSectors(GOOD, 8, 2), true)), after);
    assert.equal(end(device.read(GOOD, 8)), 0);
    let errno = -1;
    device.vbd.pause((error) => errno = error?.errno ?? 0);
    rig.simulation.runUntil(() => errno >= 0, "The pause");
    assert.equal(errno, after);
    device.resume();
    assert.equal(end(device.flush()), 0);
    rig.close();
  }
});

Deno.test("media error: a file that was cut is one, also while the disk is full", () => {
  const rig = new Rig();
  const { device, simulation } = rig;
  simulation.disk.beforeOperation = ({ kind, queued, offsetBytes, lengthBytes }) => {
    if (!queued || kind === "sync") return 0;
    if (kind === "write") return Errno.ENOSPC;
    const isCut = offsetBytes < (BAD + 1) * SECTOR_BYTES &&
      offsetBytes + lengthBytes > BAD * SECTOR_BYTES;
    return isCut ? { does: "shorten", lengthBytes: SECTOR_BYTES } : 0;
  };
  const write = device.write(GOOD, stampedSectors(GOOD, 8, 1));
  const read = device.read(BAD - 3, 8);
  const startMs = simulation.scheduler.nowMs();
  simulation.runUntil(() => read.errno !== null, "The read");
  const seconds = Math.round((simulation.scheduler.nowMs() - startMs) / 1000);
  assert.ok(seconds >= 10 && seconds <= 12, `${seconds} s`);
  assert.deepEqual([read.errno, write.errno], [Errno.EIO, null]);
  setFault(simulation, () => 0);
  device.settle();
  assert.equal(write.errno, 0);
  rig.close();
});

Deno.test("media error: a time-out that was asked for counts if it is sooner", () => {
  const rig = new Rig({ retry: { timeoutMs: 4000 } });
  rig.fault = badSector("read");
  assert.equal(secondsOf(rig.device, rig.device.read(BAD, 1)), 4);
  rig.close();
});

Deno.test("media error: a bad sector costs its own request, and not those next to it", () => {
  for (const kind of ["read", "write"] as const) {
    const rig = new Rig({ retry: { attempts: 0 } });
    const { device } = rig;
    rig.fault = badSector(kind);
    // They are neighbours, and the queue joins them.
    const outcomes = Array.from({ length: 8 }, (_, i) => {
      const sector = BAD - 3 - 24 + 8 * i;
      return kind === "read"
        ? device.read(sector, 8)
        : device.write(sector, stampedSectors(sector, 8, 1));
    });
    const startMs = rig.simulation.scheduler.nowMs();
    device.settle();
    assert.deepEqual(outcomes.map(({ errno }) => errno), [0, 0, 0, Errno.EIO, 0, 0, 0, 0]);
    assert.ok(device.vbd.statistics().merges >= 7);
    assert.ok(rig.simulation.scheduler.nowMs() - startMs < 100);
    rig.close();
  }
});

Deno.test("media error: a pause and a close in between find nothing under way", () => {
  const rig = new Rig();
  const { device, simulation } = rig;
  rig.fault = badSector("read");
  const outcome = device.read(BAD, 8);
  const until = (ms: number): void => {
    simulation.scheduler.addTimer(ms, () => {});
    const endMs = simulation.scheduler.nowMs() + ms;
    simulation.runUntil(() => simulation.scheduler.nowMs() >= endMs, "The wait");
  };
  until(5500);
  device.pause();
  until(60_000);
  assert.equal(outcome.errno, null);
  device.resume();
  // It begins to count anew.
  const seconds = secondsOf(device, outcome);
  assert.ok(seconds >= 9 && seconds <= 12, `${seconds} s`);
  const last = device.read(BAD, 8);
  until(3100);
  // The reads that look after the disk hang, and the close waits for them.
  simulation.hang("/disk.vhd", 5000);
  until(1000);
  device.close();
  assert.equal(last.errno, Errno.ESHUTDOWN);
  simulation.close();
});

Deno.test("retry: the policies, and what each tries again", () => {
  const table: Record<string, readonly [all: number, transient: number, none: number]> = {
    EAGAIN: [100, 100, 0],
    EBUSY: [100, 100, 0],
    EINTR: [100, 100, 0],
    EIO: [100, 0, 0],
    ENOSPC: [100, 0, 0],
    ETIMEDOUT: [100, 0, 0],
    EINVAL: [0, 0, 0],
    EOPNOTSUPP: [0, 0, 0],
  };
  for (const [name, tries] of Object.entries(table)) {
    const errno = Errno[name as keyof typeof Errno];
    for (const [index, policy] of RETRY_POLICIES.entries()) {
      const rig = new Rig({ retry: { policy } });
      rig.fault = (kind) => kind === "write" ? errno : 0;
      const outcome = rig.device.write(BAD, stampedSectors(BAD, 1, 1));
      assert.equal(secondsOf(rig.device, outcome), tries[index], `${name} ${policy}`);
      assert.equal(outcome.errno, errno);
      const { retries, retry_policy } = rig.device.vbd.statistics();
      assert.deepEqual([retries, retry_policy], [tries[index], policy]);
      rig.close();
    }
  }
});

Deno.test("retry: a policy stays over a pause", () => {
  const rig = new Rig({ retry: { policy: "transient" } });
  rig.device.pause();
  rig.device.resume();
  rig.fault = () => Errno.EIO;
  assert.equal(secondsOf(rig.device, rig.device.read(BAD, 1)), 0);
  rig.close();
});
