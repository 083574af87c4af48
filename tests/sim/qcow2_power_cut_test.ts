/**
 * Power cuts and kills at random moments, in QCOW2 images with every kind of option: the tables agree
 * with each other, no reference is missing, and each sector holds what was flushed or something newer.
 *
 * @module
 */
import assert from "node:assert/strict";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2, type CreateQcow2Options } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import type { Storage } from "../../src/files/storage.ts";
import { Random } from "../../src/testing/random.ts";
import { assertQemuClean, takeFile } from "../support/qcow2.ts";
import {
  type Outcome,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
  stampOf,
} from "../support/sim.ts";
import { hasTool, withTempDir } from "../support/tools.ts";
import { syncFile } from "../support/vhd.ts";

const DISK_SECTORS = 6 * 2048;
const SEEDS = Array.from({ length: 60 }, (_, i) => i + 1);
const HAS_QEMU = hasTool("qemu-img");

interface Change {
  readonly kind: "write" | "zero" | "discard";
  readonly sector: number;
  readonly count: number;
  readonly stamp: number;
  readonly outcome: Outcome;
  isFlushed: boolean;
}

/** What each sector may hold. */
class Promises {
  readonly changes: Change[] = [];

  /** @param base The stamps of the image at the start. */
  constructor(readonly base: (sector: number) => number) {}

  isUnderWay(sector: number, count: number): boolean {
    return this.changes.some((change) =>
      change.outcome.errno === null && change.sector < sector + count &&
      sector < change.sector + change.count
    );
  }

  /** @param isKill Writes that ended are there after a kill, also those that were not flushed. */
  allowed(sector: number, isKill: boolean): Set<number> {
    let held = new Set([this.base(sector)]);
    for (const { kind, stamp, ...change } of this.changes) {
      if (sector < change.sector || sector >= change.sector + change.count) continue;
      const isSure = isKill ? change.outcome.errno === 0 : change.isFlushed;
      const before = isSure && kind !== "discard" ? [] : held;
      held = new Set([...before, kind === "write" ? stamp : 0]);
    }
    return held;
  }
}

function someOptions(random: Random): Omit<CreateQcow2Options, "sizeBytes"> {
  const extendedL2 = random.chance(0.25);
  const least = extendedL2 ? 14 : 9;
  return {
    extendedL2,
    clusterBytes: 2 ** (least + random.below(17 - least)),
    refcountBits: 2 ** random.below(7),
  };
}

function runUntilCut(
  { simulation, device }: { simulation: Simulation; device: SimulatedDevice },
  { random, promises, turns }: { random: Random; promises: Promises; turns: number },
): void {
  const { changes } = promises;
  let flush: { outcome: Outcome; ended: Change[] } | null = null;
  const area = 1 + random.below(DISK_SECTORS - 300);
  for (let turn = 0; turn < turns; turn++) {
    for (let i = random.below(6); i > 0; i--) {
      const count = 1 + random.below(random.chance(0.2) ? 300 : 20);
      const sector = random.below(Math.max(1, Math.min(area, DISK_SECTORS - count)));
      if (promises.isUnderWay(sector, count)) continue;
      const stamp = changes.length + 1;
      const kind = random.chance(0.7) ? "write" : random.chance(0.5) ? "zero" : "discard";
      const outcome = kind === "write"
        ? device.write(sector, stampedSectors(sector, count, stamp))
        : device[kind](sector, count);
      changes.push({ kind, sector, count, stamp, outcome, isFlushed: false });
    }
    if (flush === null && random.chance(0.2)) {
      const ended = changes.filter(({ outcome }) => outcome.errno === 0);
      flush = { ended, outcome: device.flush() };
    }
    simulation.scheduler.turn();
    if (flush !== null && flush.outcome.errno === 0) {
      for (const change of flush.ended) change.isFlushed = true;
      flush = null;
    }
  }
}

function assertSound(storage: Storage, path: string): number {
  const image = openQcow2(path, { storage });
  const { errors, errorCount, leakedClusters } = checkQcow2(image);
  image.close();
  assert.equal(errorCount, 0, errors.join("; "));
  return leakedClusters;
}

function verify(after: Simulation, path: string, promises: Promises, isKill: boolean): void {
  const device = after.open(`qcow2:${path}`);
  for (let sector = 0; sector < DISK_SECTORS; sector += 512) {
    const outcome = device.read(sector, 512);
    device.settle();
    assert.ok(outcome.data);
    for (let i = 0; i < 512; i++) {
      const stamp = stampOf(outcome.data, i, sector + i);
      const allowed = promises.allowed(sector + i, isKill);
      const what = `sector ${sector + i} holds ${stamp}, not one of ${[...allowed].join(", ")}`;
      assert.ok(allowed.has(stamp), what);
    }
  }
  device.close();
}

const BASE_STAMP = 100_000;

/** A raw image below with stamps in its first half. */
function makeBase(storage: Storage): void {
  const file = storage.open("/base.raw", "create-new");
  file.writeAt(new Uint8Array(stampedSectors(0, DISK_SECTORS / 2, BASE_STAMP)), 0);
  file.sync();
  file.close();
}

for (const seed of SEEDS) {
  Deno.test(`a cut of power or a kill leaves a sound image, seed ${seed}`, () =>
    withTempDir(async (folder) => {
      const random = new Random(seed);
      const simulation = new Simulation({ seed, latencyMs: random.below(5), powerCuts: true });
      const storage = simulation.disk;
      const path = "/disk.qcow2";
      const hasBase = random.chance(0.4);
      if (hasBase) makeBase(storage);
      const backing = hasBase ? { name: "base.raw", format: "raw" } : undefined;
      const options = someOptions(random);
      createQcow2(path, { storage, sizeBytes: DISK_SECTORS * 512, ...options, backing });
      syncFile(storage, path);
      const base = (sector: number): number =>
        hasBase && sector < DISK_SECTORS / 2 ? BASE_STAMP : 0;
      const promises = new Promises(base);
      const device = simulation.open(`qcow2:${path}`);
      runUntilCut({ simulation, device }, { random, promises, turns: random.below(400) });
      const after = new Simulation({ seed }, simulation);
      assertSound(after.disk, path);
      if (HAS_QEMU && seed % 5 === 0) {
        takeFile(after.disk, path, `${folder}/cut.qcow2`);
        if (hasBase) takeFile(after.disk, "/base.raw", `${folder}/base.raw`);
        await assertQemuClean(`${folder}/cut.qcow2`, true);
      }
      verify(after, path, promises, false);
      const later = new Promises((sector) => sector < 0 ? 0 : NaN);
      const next = after.open(`qcow2:${path}`);
      runUntilCut({ simulation: after, device: next }, { random, promises: later, turns: 50 });
      next.settle();
      next.close();
      assertSound(after.disk, path);
      // The requests never end and would keep their memory.
      device.vbd.requests.memory.release();
      after.close();
    }));
}
