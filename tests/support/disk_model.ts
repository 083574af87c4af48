/**
 * The expected contents of a disk, and random requests that are checked against it.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Random } from "../../src/testing/random.ts";
import { SECTOR_BYTES, type SimulatedDevice, stampedSectors, stampOf } from "./sim.ts";

export const DISK_MIB = 24;
/** Size of the disk in sectors. */
export const DISK_SECTORS = DISK_MIB * 2048;

/** The expected contents of the disk: the stamp of each sector; -1 for undefined contents. */
export class Model {
  readonly stamps = new Int32Array(DISK_SECTORS);

  put(sector: number, count: number, stamp: number): void {
    this.stamps.fill(stamp, sector, sector + count);
  }

  compare(data: Uint8Array, sector: number): void {
    for (let i = 0; i < data.length / SECTOR_BYTES; i++) {
      if (this.stamps[sector + i] === -1) continue;
      assert.equal(stampOf(data, i, sector + i), this.stamps[sector + i], `sector ${sector + i}`);
    }
  }
}

/**
 * A random range. Ranges overlap each other and touch block boundaries more often than uniform
 * ones.
 */
function somePlace(random: Random): { sector: number; count: number } {
  const count = random.chance(0.5) ? 8 : 1 + random.below(300);
  const near = random.below(DISK_MIB / 2) * 4096 + random.below(600) - 300;
  const sector = random.chance(0.6) ? near : random.below(DISK_SECTORS);
  return { sector: Math.max(0, Math.min(DISK_SECTORS - count, sector)), count };
}

/** The part of a device that makes requests and waits for them. */
export type DiskClient = Pick<
  SimulatedDevice,
  "write" | "read" | "zero" | "discard" | "flush" | "settle"
>;

/** A burst of requests that do not overlap and are all in flight at once. */
export function burst(device: DiskClient, model: Model, random: Random, stamp: number): void {
  const taken: { sector: number; count: number }[] = [];
  const reads: { sector: number; outcome: ReturnType<DiskClient["read"]> }[] = [];
  for (let i = 0; i < 40; i++) {
    const place = somePlace(random);
    const overlaps = taken.some((other) =>
      place.sector < other.sector + other.count && other.sector < place.sector + place.count
    );
    if (overlaps) continue;
    taken.push(place);
    const { sector, count } = place;
    const dice = random.next();
    if (dice < 0.5) {
      device.write(sector, stampedSectors(sector, count, stamp), random.chance(0.1));
      model.put(sector, count, stamp);
    } else if (dice < 0.85) reads.push({ sector, outcome: device.read(sector, count) });
    else if (dice < 0.93) {
      device.zero(sector, count);
      model.put(sector, count, 0);
    } else if (dice < 0.96) {
      device.discard(sector, count);
      model.put(sector, count, -1);
    } else device.flush();
  }
  device.settle();
  for (const { sector, outcome } of reads) {
    assert.equal(outcome.errno, 0);
    assert.ok(outcome.data);
    model.compare(outcome.data, sector);
  }
}

/** Reads the whole disk and compares it with the model. */
export function readAll(device: DiskClient, model: Model): void {
  for (let sector = 0; sector < DISK_SECTORS; sector += 512) {
    const outcome = device.read(sector, 512);
    device.settle();
    assert.ok(outcome.data);
    model.compare(outcome.data, sector);
  }
}
