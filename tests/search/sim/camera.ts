/**
 * Decides at which operations of a world the power is cut, and hands each photograph to the judge.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import type { DiskOperation, OperationKind } from "../../../src/testing/disk_operation.ts";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { judge, type Verdict } from "./judge.ts";
import { CUT, NOW } from "./model.ts";
import type { World } from "./world.ts";

/** How likely the power is cut before an operation, beside a write of much data. */
const WEIGHTS: Readonly<Record<OperationKind, number>> = {
  open: 0,
  read: 0,
  write: 1,
  punch: 1,
  sync: 3,
  truncate: 3,
  create: 4,
  rename: 8,
  link: 8,
  remove: 8,
  "sync folder": 8,
};
/** Writes up to this size are mostly of metadata. */
const SMALL_BYTES = 1024;

/** The part of the photographs that show killed processes: everything that was handed over is there. */
const KILL_SHARE = 0.15;

/** A photograph of a disk whose processes are killed now. */
function photographKilled(
  disk: SimulatedDisk,
  { random, powerCuts }: { random: Random; powerCuts: boolean },
): SimulatedDisk {
  const changes = disk.undecided();
  return disk.photographWith((index) => !changes[index].inFlight || random.chance(0.5), {
    powerCuts,
  });
}

/** Takes photographs of one world. */
export class Camera {
  cuts = 0;
  /** Photographs that another world goes on from. */
  readonly kept: Verdict[] = [];
  readonly #random: Random;
  readonly #share: number;
  readonly #most: number;
  readonly #mostKept: number;

  /**
   * @param share How likely a cut is at an operation of weight 1.
   * @param most The limit of cuts.
   * @param mostKept The limit of photographs that are kept for other worlds.
   */
  constructor(
    random: Random,
    { share, most, mostKept }: { share: number; most: number; mostKept: number },
  ) {
    this.#random = random;
    this.#share = share;
    this.#most = most;
    this.#mostKept = mostKept;
  }

  /** Looks at an operation that is about to be executed. */
  see(world: World, { kind, lengthBytes, queued }: DiskOperation): void {
    const isSmall = kind === "write" && lengthBytes <= SMALL_BYTES;
    // Offline work has few operations, each of which matters.
    const isOffline = world.operation !== null && !queued;
    const weight = WEIGHTS[kind] * (isSmall ? 2 : 1) * (isOffline ? 4 : 1);
    if (weight === 0 || !this.#random.chance(weight * this.#share)) return;
    this.cut(world);
  }

  /** Cuts the power now. */
  cut(world: World): void {
    if (this.cuts >= this.#most || world.failure !== null) return;
    this.cuts++;
    const isKill = this.#random.chance(KILL_SHARE);
    world.trace(() => `  ${isKill ? "kill" : "cut"} ${this.cuts}`);
    const keeps = this.kept.length < this.#mostKept && this.#random.chance(0.1);
    const photo = isKill
      ? photographKilled(world.disk, { random: this.#random, powerCuts: keeps })
      : world.disk.photograph(this.#random, { powerCuts: keeps });
    photo.capacityBytes = Infinity;
    try {
      const verdict = judge(world, photo, {
        random: this.#random,
        keeps,
        cut: this.cuts,
        moment: isKill ? NOW : CUT,
      });
      if (keeps) this.kept.push(verdict);
    } catch (error) {
      world.fail(error);
      photo.close();
      return;
    }
    if (!keeps) photo.close();
  }
}
