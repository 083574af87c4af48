/**
 * The search `bad-disk`: a disk that loses writes, writes to other places and flips bits. Damage must
 * be found wherever the format has a checksum, and must not spread: a sector of the disk that was not
 * hit, and that needs no structure that was hit, holds what was written, also after later writes,
 * repairs and merges. docs/on-disk-order.md says what is promised.
 *
 * Two simulations run the same requests, one on a good disk: it tells what lies where.
 *
 * @module
 */
import { SystemError } from "../../../ffi/errno.ts";
import { coalesce } from "../../../src/bulk/coalesce.ts";
import { Random } from "../../../src/testing/random.ts";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { checkImage } from "../../../src/vhd/check/check.ts";
import type { Finding } from "../../../src/vhd/check/findings.ts";
import { fillImage } from "../../../src/vhd/fill.ts";
import { repairImage } from "../../../src/vhd/repair.ts";
import { resizeVhd } from "../../../src/vhd/resize/resize.ts";
import { setField } from "../../../src/vhd/set_fields.ts";
import { type SimulatedDevice, Simulation } from "../../support/sim.ts";
import { type MadeChain, makeChain } from "../images/chain.ts";
import type { Content } from "../images/content.ts";
import type { Search, SearchContext } from "../search.ts";
import { SECTOR_BYTES, stampAt, stamped } from "../sim/stamps.ts";
import { BadDisk } from "./faults.ts";
import { type Damage, damageOf, type Place, type PlaceKind, placesOf } from "./places.ts";

/** The search on bad disks. */
export const badDiskSearch: Search = {
  unit: "disks",
  secondsPerSeed: 30,
  residentBytes: 1.5 * 2 ** 30,
  async run(seed: number, context: SearchContext): Promise<number> {
    await new BadDiskRun(seed, context).run();
    return 1;
  },
};

/** A request of the client. */
interface Request {
  readonly kind: "write" | "zero" | "flush";
  readonly sector: number;
  readonly count: number;
  readonly stamp: number;
}

/** Structures whose damage a checksum tells. */
const WITH_CHECKSUM: readonly PlaceKind[] = ["backup footer", "footer", "header", "batmap"];

function makeSimulation(seed: number): { simulation: Simulation; chain: MadeChain } {
  const simulation = new Simulation({ seed, latencyMs: 0 });
  const chain = makeChain(new Random(seed), simulation.disk, {
    folder: "",
    mostLayers: 3,
    mostSectors: 6000,
    mostDataSectors: 300,
    extremes: 0,
    writable: true,
    damaged: 0,
    encrypted: 0,
  });
  return { simulation, chain };
}

class BadDiskRun {
  readonly #context: SearchContext;
  readonly #random: Random;
  readonly #good: { simulation: Simulation; chain: MadeChain };
  readonly #bad: { simulation: Simulation; chain: MadeChain };
  readonly #content: Content;
  #stamp: number;

  constructor(seed: number, context: SearchContext) {
    this.#context = context;
    this.#random = new Random(seed ^ 0x5bad);
    this.#good = makeSimulation(seed);
    this.#bad = makeSimulation(seed);
    this.#content = this.#bad.chain.top.content;
    this.#stamp = this.#bad.chain.nextStamp;
  }

  get #disk(): SimulatedDisk {
    return this.#bad.simulation.disk;
  }

  async run(): Promise<void> {
    try {
      await this.#run();
    } finally {
      this.#good.simulation.close();
      this.#bad.simulation.close();
    }
  }

  async #run(): Promise<void> {
    const random = this.#random;
    const { chain } = this.#bad;
    for (const line of chain.description.split("\n")) this.#context.trace(line);
    const bad = new BadDisk(random, this.#disk, { most: random.below(4), share: 0.05 });
    const requests = this.#someRequests();
    const before = placesOf(this.#good.simulation.disk, chain.images);
    this.#serve(this.#good.simulation, this.#open(this.#good.simulation), requests);
    this.#disk.beforeOperation = (operation) => bad.verdict(operation);
    const served = this.#tryToServe(requests);
    this.#disk.beforeOperation = null;
    const places = placesOf(this.#good.simulation.disk, chain.images);
    bad.rotAtRest(places, bad.hits.length === 0 ? 1 + random.below(2) : random.below(2));
    // A footer lies elsewhere after the image grew.
    const damage = damageOf(bad.hits, [...before, ...places]);
    for (const { what, path, sector, count } of bad.hits) {
      this.#context.trace(`${what}: ${path} ${sector}+${count}`);
      this.#context.count(what);
    }
    if (!served && !damage.mayBeRefused) throw new Error("The chain was refused at first");
    if (!served) return this.#context.count("chains refused");
    this.#requireFound(places, bad);
    if (!this.#verify("after the faults", damage)) return;
    await this.#goOn(damage);
  }

  /** Serves the disk again and works on it offline; what was not hit stays. */
  async #goOn(damage: Damage): Promise<void> {
    for (let i = 1 + this.#random.below(3); i > 0; i--) {
      const requests = this.#someRequests();
      if (this.#random.chance(0.5)) {
        this.#context.trace("served again");
        if (!this.#tryToServe(requests)) return this.#refused("served again", damage);
        // What is written anew is as it was written.
        for (const { kind, sector, count } of requests) {
          for (let at = 0; kind !== "flush" && at < count; at++) damage.sectors.delete(sector + at);
        }
      } else await this.#workOffline();
      if (!this.#verify("later", damage)) return;
    }
  }

  async #workOffline(): Promise<void> {
    const { images, top } = this.#bad.chain;
    const storage = this.#disk;
    const vhds = images.filter(({ kind }) => kind !== "raw");
    const { path } = vhds[this.#random.below(vhds.length)];
    const works: [string, () => unknown][] = [
      ["repair", () => repairImage(path, { storage })],
      ["set", () => setField(path, { storage, field: "hidden", value: 1 })],
      ["coalesce", () => coalesce(top.path, { makeContext: storage.bulkContext() })],
      ["fill", () => fillImage(top.path, { storage })],
      ["resize", () =>
        resizeVhd(top.path, {
          storage,
          sizeBytes: top.content.sectors * SECTOR_BYTES + 8 * 2 ** 20,
          journal: `/journal-${this.#stamp}`,
        })],
    ];
    const [name, work] = works[this.#random.below(works.length)];
    this.#context.trace(`offline: ${name} of ${path}`);
    this.#context.count(`offline: ${name}`);
    try {
      await work();
    } catch (error) {
      // Damage, or an image to which this cannot be done, is told by an error.
      if (!(error instanceof SystemError)) throw error;
      this.#context.trace(`  ${error.message}`);
    }
  }

  #someRequests(): Request[] {
    const random = this.#random;
    const { sectors } = this.#content;
    return Array.from({ length: 3 + random.below(20) }, () => {
      const sector = random.below(sectors);
      const count = Math.min(sectors - sector, 1 + random.below(random.chance(0.2) ? 300 : 30));
      const dice = random.below(10);
      const kind = dice < 7 ? "write" : dice < 8 ? "zero" : "flush";
      return { kind, sector, count, stamp: this.#stamp++ };
    });
  }

  /** Runs requests on a device, one after the other. */
  #serve(simulation: Simulation, device: SimulatedDevice, requests: readonly Request[]): void {
    for (const { kind, sector, count, stamp } of requests) {
      const outcome = kind === "write"
        ? device.write(sector, stamped(sector, count, stamp))
        : kind === "zero"
        ? device.zero(sector, count)
        : device.flush();
      device.settle();
      if (outcome.errno !== 0) throw new Error(`A ${kind} ended with errno ${outcome.errno}`);
    }
    device.close();
    if (simulation !== this.#bad.simulation) return;
    for (const { kind, sector, count, stamp } of requests) {
      if (kind !== "flush") this.#content.put(sector, count, kind === "write" ? stamp : 0);
    }
  }

  #open(simulation: Simulation): SimulatedDevice {
    const { top } = this.#bad.chain;
    return simulation.open(`vhd:${top.path}`);
  }

  /** Serves the chain on the bad disk; false when it is refused. */
  #tryToServe(requests: readonly Request[]): boolean {
    let device: SimulatedDevice;
    try {
      device = this.#open(this.#bad.simulation);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      this.#context.trace(`  ${error.message}`);
      return false;
    }
    this.#serve(this.#bad.simulation, device, requests);
    return true;
  }

  #refused(when: string, { mayBeRefused, places }: Damage): void {
    this.#context.count("chains refused");
    if (mayBeRefused) return;
    const hit = places.map(({ kind, path }) => `${kind} of ${path}`).join(", ");
    throw new Error(`The chain is refused ${when}, although only these were hit: ${hit}`);
  }

  /** What has a checksum, and is not as on the good disk, must be a finding of `check`. */
  #requireFound(places: readonly Place[], { hits }: BadDisk): void {
    for (const place of places) {
      if (!WITH_CHECKSUM.includes(place.kind)) continue;
      const hit = hits.some(({ mustBeFound, path, sector, count }) =>
        mustBeFound && path === place.path && sector < place.sector + place.count &&
        place.sector < sector + count
      );
      if (!hit || !this.#differs(place)) continue;
      const found = this.#findings(this.#disk, place.path);
      const before = this.#findings(this.#good.simulation.disk, place.path);
      if (found !== before) {
        this.#context.count(`${place.kind}: damage found`);
        continue;
      }
      throw new Error(`check finds nothing of the damage of the ${place.kind} of ${place.path}`);
    }
  }

  #findings(storage: SimulatedDisk, path: string): string {
    try {
      const { findings } = checkImage(path, { storage });
      return findings.map((finding: Finding) => finding.message).join("; ");
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      return error.message;
    }
  }

  #differs({ path, sector, count }: Place): boolean {
    const [a, b] = [this.#disk, this.#good.simulation.disk].map((disk) => {
      const bytes = new Uint8Array(count * SECTOR_BYTES);
      const file = disk.open(path, "read");
      file.readAt(bytes, sector * SECTOR_BYTES);
      file.close();
      return bytes;
    });
    return a.some((byte, i) => byte !== b[i]);
  }

  /** Reads all of the disk; false when it is refused. */
  #verify(when: string, damage: Damage): boolean {
    for (const { path, kind } of this.#bad.chain.images) {
      if (kind !== "raw") this.#findings(this.#disk, path);
    }
    let device: SimulatedDevice;
    try {
      device = this.#bad.simulation.open(`vhd:${this.#bad.chain.top.path}`, { readOnly: true });
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      this.#context.trace(`  ${error.message}`);
      this.#refused(when, damage);
      return false;
    }
    const { sectors } = this.#content;
    for (let sector = 0; sector < sectors; sector += 512) {
      const count = Math.min(512, sectors - sector);
      const { errno, data } = this.#read(device, sector, count);
      if (errno !== 0 || data === null) throw new Error(`A read ended with errno ${errno}`);
      const words = new Uint32Array(data.buffer, data.byteOffset, data.length / 4);
      for (let i = 0; i < count; i++) {
        if (damage.sectors.has(sector + i)) continue;
        const found = stampAt(words, i, sector + i);
        const wanted = this.#content.at(sector + i);
        if (found === wanted) continue;
        throw new Error(`${when}: sector ${sector + i} holds ${found}, not ${wanted}`);
      }
    }
    device.close();
    return true;
  }

  #read(device: SimulatedDevice, sector: number, count: number): ReturnType<typeof device.read> {
    const outcome = device.read(sector, count);
    device.settle();
    return outcome;
  }
}
