/**
 * Rate limits of a device in random runs: requests of all kinds, limits that change, pauses, a disk
 * queue without room, faults and closes. No request may be lost, end twice or wait for ever, and no
 * timer may be left.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { Random } from "../../src/testing/random.ts";
import {
  MOST_RATE,
  NO_LIMITS,
  RATE_LIMIT_NAMES,
  type RateLimits,
} from "../../src/vbd/rate_limits.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { type Outcome, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const DISK_SECTORS = 32768;
const MOST_OPEN = 60;
const SEEDS = 60;
const STEPS = 120;

/** Limits at which all that is open may pass within seconds. */
const STAYING: RateLimits = {
  ...NO_LIMITS,
  readIops: 200,
  totalIops: 300,
  writeBps: 40_000_000,
  burstMs: 10,
};

function someLimits(random: Random): RateLimits {
  const limits: { -readonly [Name in keyof RateLimits]: RateLimits[Name] } = { ...NO_LIMITS };
  const rates = [0, 0, 0, 1, 7, 100, 5000, 1_000_000, 50_000_000, 2 ** 32 + 1, MOST_RATE];
  for (const name of RATE_LIMIT_NAMES) limits[name] = rates[random.below(rates.length)];
  limits.burstMs = [10, 100, 1000, 3_600_000][random.below(4)];
  return limits;
}

function someRequest(random: Random, device: SimulatedDevice): Outcome {
  const count = random.chance(0.1) ? 512 : 1 + random.below(16);
  const sector = random.below(DISK_SECTORS - count);
  switch (random.below(8)) {
    case 0:
      return device.flush();
    case 1:
      return device.status(sector, count);
    case 2:
      return device.discard(0, random.below(DISK_SECTORS));
    case 3:
      return device.zero(sector, random.below(DISK_SECTORS - sector));
    case 4:
    case 5:
      return device.read(sector, count);
    default:
      return device.write(sector, stampedSectors(sector, count, 1), random.chance(0.3));
  }
}

/** A run of one seed. */
class Run {
  readonly simulation: Simulation;
  readonly device: SimulatedDevice;
  readonly random: Random;
  readonly outcomes: Outcome[] = [];
  #room = 0;
  #isPaused = false;

  constructor(seed: number) {
    this.random = new Random(seed);
    this.simulation = new Simulation({ seed, latencyMs: seed % 3 });
    createDynamic("/a.vhd", { storage: this.simulation.disk, sizeBytes: DISK_SECTORS * 512 });
    this.device = this.simulation.open("vhd:/a.vhd", { limits: someLimits(this.random) });
  }

  elapse(forMs: number): void {
    const { scheduler } = this.simulation;
    const untilMs = scheduler.nowMs() + forMs;
    scheduler.addTimer(forMs, () => {});
    this.simulation.runUntil(() => scheduler.nowMs() >= untilMs, "The time");
  }

  takeRoom(): void {
    const { queue } = this.simulation.context;
    let room = queue.capacity;
    while (!queue.reserve(room)) room--;
    this.#room += room;
  }

  giveRoom(): void {
    this.simulation.context.queue.release(this.#room);
    this.#room = 0;
  }

  togglePause(): void {
    this.giveRoom();
    if (this.#isPaused) this.device.resume();
    else this.device.pause();
    this.#isPaused = !this.#isPaused;
  }

  step(): void {
    const { random, device } = this;
    const open = this.outcomes.filter(({ errno }) => errno === null).length;
    switch (random.below(12)) {
      case 0:
        return device.vbd.requests.limit(someLimits(random));
      case 1:
        return this.togglePause();
      case 2:
        return this.#room === 0 ? this.takeRoom() : this.giveRoom();
      case 3:
      case 4:
      case 5:
        return this.elapse([0, 1, 3, 20, 100, 5000][random.below(6)]);
      default:
        if (open < MOST_OPEN) this.outcomes.push(someRequest(random, device));
    }
  }

  runOn(): void {
    this.giveRoom();
    if (this.#isPaused) this.togglePause();
  }

  /** Closes the device and the simulation: no timer may be left. */
  close(): void {
    const { scheduler } = this.simulation;
    const { vbd } = this.device;
    let isClosed = vbd.phase === "closed";
    if (!isClosed && vbd.phase !== "closing") vbd.close(() => isClosed = true);
    this.simulation.runUntil(() => isClosed || vbd.phase === "closed", "The close");
    vbd.destroy();
    const endedMs = scheduler.nowMs();
    scheduler.runUntil(() => false);
    assert.equal(scheduler.nowMs(), endedMs, "a timer is left");
    this.simulation.close();
  }
}

for (const end of ["no limits", "limits that stay", "a close", "a fault"]) {
  Deno.test(`limits: no request is lost in ${SEEDS} random runs that end with ${end}`, () => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const run = new Run(seed);
      for (let step = 0; step < STEPS; step++) run.step();
      const { requests } = run.device.vbd;
      const allowed: number[] = [0];
      if (end === "a close") {
        run.giveRoom();
        allowed.push(Errno.ESHUTDOWN);
        run.device.vbd.close(() => {});
      } else if (end === "a fault") {
        run.giveRoom();
        run.simulation.expectsFaults = true;
        allowed.push(Errno.EIO);
        run.device.vbd.fault(new Error("A fault of the test"));
      } else {
        run.runOn();
        requests.limit(end === "no limits" ? NO_LIMITS : STAYING);
        // These find whatever waits by itself, without another change.
        for (let i = 0; i < 30; i++) run.outcomes.push(someRequest(run.random, run.device));
      }
      const beganMs = run.simulation.scheduler.nowMs();
      run.device.settle();
      const tookMs = run.simulation.scheduler.nowMs() - beganMs;
      assert.ok(tookMs < 20_000, `seed ${seed}: ${tookMs} ms`);
      assert.equal(requests.outstanding, 0, `seed ${seed}`);
      const others = run.outcomes.filter(({ errno }) => !allowed.includes(errno ?? -1));
      assert.deepEqual(others, [], `seed ${seed}`);
      run.close();
    }
  });
}
