/**
 * Random work on an image whose disk reports writes as failed that it has done, and others that it has
 * not; with power cuts, and a model of what each sector may hold.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import type { Verdict } from "../../src/testing/disk_operation.ts";
import { Random } from "../../src/testing/random.ts";
import { type Outcome, type SimulatedDevice, Simulation, stampedSectors, stampOf } from "./sim.ts";

/** An image, and where the work on it is. */
export interface LateErrorsSubject {
  /** Its name for a device. */
  readonly name: string;
  /** Where ranges of sectors begin that the work is on, and how long each is. */
  readonly regions: readonly number[];
  readonly regionSectors: number;
  /** What a sector holds at first. */
  readonly initial: (sector: number) => number;
  /** Throws when the image is not in order. */
  readonly check: (simulation: Simulation) => void;
}

interface Request {
  readonly sector: number;
  readonly count: number;
  readonly stamp: number;
  readonly keeps: boolean;
  readonly outcome: Outcome;
}

/** What the sectors of a disk may hold: when they are read, and after a power cut. */
class SectorModel {
  readonly #now = new Map<number, Set<number>>();
  readonly #cut = new Map<number, Set<number>>();

  /** Sectors surely hold this, durably. */
  settle(sector: number, stamp: number): void {
    this.#now.set(sector, new Set([stamp]));
    this.#cut.set(sector, new Set([stamp]));
  }

  /** A request came to its end, or to that of the power. A failed one was done, or was not. */
  ended({ sector, count, stamp, keeps, outcome }: Request): void {
    for (let each = sector; each < sector + count; each++) {
      if (outcome.errno === 0 && !keeps) this.#now.set(each, new Set([stamp]));
      else this.#now.get(each)?.add(stamp);
      this.#cut.get(each)?.add(stamp);
    }
  }

  flushed(): void {
    for (const [sector, stamps] of this.#now) this.#cut.set(sector, new Set(stamps));
  }

  require(sector: number, stamp: number, moment: "now" | "cut"): void {
    const allowed = (moment === "now" ? this.#now : this.#cut).get(sector) ?? new Set();
    const what = `sector ${sector} holds ${stamp}, not ${[...allowed].join(" or ")}`;
    assert.ok(allowed.has(stamp), `${moment === "now" ? "" : "after a power cut "}${what}`);
  }
}

/** Does random work from a seed. */
export class LateErrorsWork {
  readonly #random: Random;
  readonly #model = new SectorModel();
  readonly #subject: LateErrorsSubject;
  readonly #errorsEnd: boolean;
  #simulation: Simulation;
  #device: SimulatedDevice;
  #stamp = 1000;
  /** The last request that failed. */
  #failed: Request | null = null;

  constructor(simulation: Simulation, seed: number, subject: LateErrorsSubject) {
    this.#random = new Random(seed);
    this.#subject = subject;
    // Requests are tried until they succeed, or their errors are told.
    this.#errorsEnd = this.#random.chance(0.3);
    this.#simulation = simulation;
    for (const sector of this.#sectors()) this.#model.settle(sector, subject.initial(sector));
    this.#device = this.#open();
  }

  *#sectors(): Generator<number> {
    const { regions, regionSectors } = this.#subject;
    for (const first of regions) {
      for (let i = 0; i < regionSectors; i++) yield first + i;
    }
  }

  #open(): SimulatedDevice {
    const retry = this.#errorsEnd ? {} : { timeoutMs: 0 };
    const device = this.#simulation.open(this.#subject.name, { retry });
    const share = this.#random.next() * 0.4;
    this.#simulation.disk.beforeOperation = ({ kind, queued }): Verdict => {
      if (!queued || kind !== "write" || !this.#random.chance(share)) return 0;
      if (this.#random.chance(0.2)) return Errno.EIO;
      return { does: "fail late", errno: Errno.EIO };
    };
    return device;
  }

  /** Does so many steps; then the power fails, or the device is closed. */
  run(steps: number): void {
    for (let i = 0; i < steps; i++) {
      const what = this.#random.next();
      if (what < 0.05) this.#reopen();
      else if (what < 0.12) this.#cut();
      else if (what < 0.2) this.#flush();
      else this.#requests();
    }
    this.#cut();
    this.#reopen();
    this.#device.close();
    this.#simulation.close();
  }

  /** A range at random; often the one of a request that failed. */
  #range(): { readonly sector: number; readonly count: number } {
    const random = this.#random;
    if (this.#failed !== null && random.chance(0.3)) return this.#failed;
    const { regions, regionSectors } = this.#subject;
    const first = random.below(regionSectors);
    const most = random.chance(0.2) ? regionSectors : 12;
    const count = Math.min(regionSectors - first, 1 + random.below(most));
    return { sector: regions[random.below(regions.length)] + first, count };
  }

  #start(taken: Set<number>): Request | null {
    const { sector, count } = this.#range();
    const each = Array.from({ length: count }, (_, i) => sector + i);
    if (each.some((one) => taken.has(one))) return null;
    for (const one of each) taken.add(one);
    const kind = this.#random.next();
    const stamp = kind < 0.6 ? ++this.#stamp : 0;
    const keeps = kind >= 0.9;
    let outcome: Outcome;
    if (kind < 0.6) outcome = this.#device.write(sector, stampedSectors(sector, count, stamp));
    else if (keeps) outcome = this.#device.discard(sector, count);
    else outcome = this.#device[kind < 0.8 ? "zero" : "fill"](sector, count);
    return { sector, count, stamp, keeps, outcome };
  }

  #startSome(): Request[] {
    const taken = new Set<number>();
    const started: Request[] = [];
    for (let i = 1 + this.#random.below(4); i > 0; i--) {
      const request = this.#start(taken);
      if (request !== null) started.push(request);
    }
    return started;
  }

  #requests(): void {
    const started = this.#startSome();
    this.#device.settle();
    for (const request of started) {
      this.#model.ended(request);
      if (request.outcome.errno !== 0) this.#failed = request;
    }
    if (this.#random.chance(0.2)) this.#readAll("now");
  }

  #flush(): void {
    const outcome = this.#device.flush();
    this.#device.settle();
    assert.equal(outcome.errno, 0);
    this.#model.flushed();
  }

  #cut(): void {
    const started = this.#startSome();
    for (let turns = this.#random.below(25); turns > 0; turns--) this.#simulation.scheduler.turn();
    for (const request of started) this.#model.ended(request);
    const { disk } = this.#simulation;
    disk.beforeOperation = null;
    const before = this.#device;
    this.#simulation = new Simulation({ latencyMs: 3 }, this.#simulation);
    // Requests under way never end and would keep their memory.
    before.vbd.requests.memory.release();
    this.#subject.check(this.#simulation);
    this.#device = this.#open();
    this.#readAll("cut");
  }

  #reopen(): void {
    // A close tells of errors, and leaves the image to the next opening.
    this.#simulation.disk.beforeOperation = null;
    this.#device.close();
    this.#subject.check(this.#simulation);
    this.#device = this.#open();
    this.#readAll("now");
  }

  /** Compares all with the model. After an opening memory has what the file has. */
  #readAll(moment: "now" | "cut"): void {
    const { regions, regionSectors } = this.#subject;
    for (const first of regions) {
      const outcome = this.#device.read(first, regionSectors);
      this.#device.settle();
      assert.ok(outcome.data);
      for (let i = 0; i < regionSectors; i++) {
        const stamp = stampOf(outcome.data, i, first + i);
        this.#model.require(first + i, stamp, moment);
        if (moment === "cut") this.#model.settle(first + i, stamp);
      }
    }
  }
}
