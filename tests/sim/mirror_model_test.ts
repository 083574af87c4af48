/**
 * Random disks with secondary images and local caches, with errors, full and hanging images, pauses
 * and a power cut at random moments: clients read what they wrote, and the images that must have all
 * data have it. `BLKTAP_MIRROR_SEEDS=FIRST-LAST` runs other seeds.
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { Random } from "../../src/testing/random.ts";
import type { DiskOperation, OperationKind, Verdict } from "../../src/testing/disk_operation.ts";
import { qcow2Kind } from "../../src/images/qcow2_kind.ts";
import { vhdKind } from "../../src/images/vhd_kind.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { snapshotQcow2 } from "../../src/qcow2/snapshot.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { burst, DISK_MIB, DISK_SECTORS, Model, readAll } from "../support/disk_model.ts";
import { type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1024 * 1024;

/** Those with `diff` and `over` are on a base. */
const IMAGES = [
  "vhd:/%.diff",
  "vhd:/%.diff",
  "vhd:/%.vhd",
  "aio:/%.raw",
  "qcow2:/%.qcow2",
  "qcow2:/%.over",
];

function pathOf(name: string): string {
  return name.slice(name.indexOf(":") + 1);
}

/** One disk, and what happens to it. */
class World {
  readonly random: Random;
  readonly simulation: Simulation;
  readonly model = new Model();
  readonly leaf: string;
  readonly second: string;
  readonly standby: boolean;
  readonly localCache: boolean;
  readonly device: SimulatedDevice;
  /** What the disk does just now. */
  #leafFull = false;
  #leafErrors = 0;
  #secondErrors = 0;
  /** Whether the mirror has had all writes so far. */
  #told = 0;

  constructor(readonly seed: number) {
    this.random = new Random(seed);
    this.simulation = new Simulation({ seed, latencyMs: 3, powerCuts: true });
    const { random, simulation: { disk: storage } } = this;
    createDynamic("/base.vhd", { storage, sizeBytes: DISK_MIB * MIB });
    for (const path of ["/leaf.diff", "/second.diff"]) {
      snapshot(path, { storage, parent: "/base.vhd", keepEmptyParent: true });
    }
    for (const path of ["/leaf.vhd", "/second.vhd"]) {
      createDynamic(path, { storage, sizeBytes: DISK_MIB * MIB });
    }
    for (const path of ["/leaf.raw", "/second.raw"]) {
      const file = storage.open(path, "create");
      file.truncate(DISK_MIB * MIB);
      file.close();
    }
    for (const image of ["leaf", "second"]) {
      const clusterBytes = 2 ** (9 + random.below(8));
      createQcow2(`/${image}.qcow2`, { storage, sizeBytes: DISK_MIB * MIB, clusterBytes });
      snapshotQcow2(`/${image}.over`, { storage, parent: { type: "vhd", path: "/base.vhd" } });
    }
    this.leaf = IMAGES[random.below(IMAGES.length)].replace("%", "leaf");
    this.second = IMAGES[random.below(IMAGES.length)].replace("%", "second");
    this.standby = random.chance(0.3);
    this.localCache = random.chance(0.5);
    storage.beforeOperation = (operation): Verdict => this.#verdict(operation);
    const { standby, localCache, second: secondary } = this;
    this.device = this.simulation.open(this.leaf, { secondary, standby, localCache });
    this.device.vbd.whenSecondaryChanged = () => this.#told++;
  }

  get isLayer(): boolean {
    return !this.standby && this.leaf.endsWith(".diff") && this.second.endsWith(".diff");
  }

  get title(): string {
    const mode = this.standby ? "standby" : "mirror";
    return `${this.leaf} ${mode} ${this.second}${this.localCache ? " cached" : ""}`;
  }

  #verdict({ kind, path, offsetBytes, queued }: DiskOperation): Verdict {
    if (!queued) return 0;
    const changes = kind === "write" || kind === "truncate";
    if (this.leaf.endsWith(path)) {
      // Both full: nothing to go on with. The guest would wait.
      const isFull = this.#leafFull && !this.device.vbd.secondary.hasFailed;
      const lacksRoom = kind === "truncate" ||
        (path.endsWith(".raw") && kind === "write" && Math.floor(offsetBytes / MIB) % 2 === 1);
      if (isFull && lacksRoom) return Errno.ENOSPC;
      if (this.#leafErrors > 0 && changes && kind === "write") {
        this.#leafErrors--;
        return this.#error(kind, Errno.EIO);
      }
    }
    if (this.second.endsWith(path) && this.#secondErrors > 0 && (changes || kind === "sync")) {
      this.#secondErrors--;
      return this.#error(kind, this.random.chance(0.5) ? Errno.EIO : Errno.ENOSPC);
    }
    return 0;
  }

  /** Some writes fail after the disk has done them. */
  #error(kind: OperationKind, errno: number): Verdict {
    const isLate = kind === "write" && this.random.chance(0.5);
    return isLate ? { does: "fail late", errno } : errno;
  }

  /** Reads and changes that meet each other, some of which end late. */
  #traffic(stamp: number): void {
    const { random, device, model } = this;
    const changes: { sector: number; count: number }[] = [];
    const area = random.below(DISK_SECTORS - 4096);
    for (let i = 0; i < 40; i++) {
      const count = 1 + random.below(120);
      const sector = area + random.below(1500);
      const meets = changes.some((each) =>
        each.sector < sector + count && sector < each.sector + each.count
      );
      if (random.chance(0.5)) device.read(sector, count);
      else if (!meets) {
        changes.push({ sector, count });
        const isWrite = random.chance(0.7);
        if (isWrite) device.write(sector, stampedSectors(sector, count, stamp));
        else if (random.chance(0.5)) device.zero(sector, count);
        else device.fill(sector, count);
        model.put(sector, count, isWrite ? stamp : 0);
      }
      if (random.chance(0.2)) device.simulation.scheduler.turn();
      if (i === 20) this.#event();
    }
    device.settle();
  }

  /** Something happens while requests are under way. */
  #event(): void {
    const { random, simulation } = this;
    const dice = random.below(12);
    if (dice === 0) this.#leafFull = true;
    else if (dice === 1) this.#leafFull = false;
    else if (dice === 2) this.#leafErrors = 1 + random.below(4);
    else if (dice === 3) this.#secondErrors = 1 + random.below(3);
    else if (dice === 4) simulation.hang(pathOf(this.second), 1000 * (1 + random.below(30)));
    else if (dice === 5) simulation.hang(pathOf(this.leaf), 1000 * (1 + random.below(8)));
  }

  run(): void {
    const { random, device, model } = this;
    for (let stamp = 1; stamp <= 14; stamp++) {
      this.#event();
      if (random.chance(0.5)) burst(device, model, random, stamp);
      else this.#traffic(stamp);
      if (random.chance(0.3)) {
        // A pause fails when the image cannot be closed in order.
        this.#leafErrors = 0;
        if (device.vbd.secondary.isFull) this.#secondErrors = 0;
        device.pause();
        device.resume();
      }
      if (random.chance(0.3)) readAll(device, model);
    }
    readAll(device, model);
    this.#leafErrors = 0;
    this.#secondErrors = 0;
    if (random.chance(0.5)) this.#closeInOrder();
    else this.#cutPower();
  }

  /** The images that have all data, each alone. */
  get #complete(): string[] {
    const { hasFailed, isFull } = this.device.vbd.secondary;
    if (isFull) return this.standby ? [] : [this.second];
    return hasFailed || this.standby ? [this.leaf] : [this.leaf, this.second];
  }

  #closeInOrder(): void {
    const { device, simulation, model } = this;
    const complete = this.#complete;
    this.#leafFull = false;
    device.close();
    const { hasFailed } = device.vbd.secondary;
    assert.equal(hasFailed, false);
    simulation.runUntil(() => simulation.disk.openFiles === 0, "Closing the images");
    this.#verify(simulation, complete, model);
    simulation.close();
  }

  #cutPower(): void {
    const { device, simulation, model } = this;
    const flushed = device.flush();
    device.settle();
    assert.equal(flushed.errno, 0);
    const complete = this.#complete;
    // A photograph is what a power cut leaves; the memory of the disk can still be given back.
    const disk = simulation.disk.photograph(this.random);
    const after = new Simulation({ seed: this.seed, latencyMs: 1, disk });
    this.#verify(after, complete, model);
    after.close();
    device.close();
    simulation.runUntil(() => simulation.disk.openFiles === 0, "Closing the images");
    simulation.close();
  }

  #verify(simulation: Simulation, complete: string[], model: Model): void {
    for (const name of complete) {
      const image = simulation.open(name, { readOnly: true });
      readAll(image, model);
      image.close();
      if (name.startsWith("aio:")) continue;
      const kind = name.startsWith("vhd:") ? vhdKind : qcow2Kind;
      const { findings } = kind.check?.(simulation.disk, pathOf(name)) ?? { findings: [] };
      const faults = findings.filter(({ severity }) => severity === "error");
      assert.deepEqual(faults, [], name);
    }
  }
}

const [first, last] = (Deno.env.get("BLKTAP_MIRROR_SEEDS") ?? "1-12").split("-").map(Number);
for (let seed = first; seed <= last; seed++) {
  Deno.test(`mirror model: seed ${seed}`, () => {
    const world = new World(seed);
    try {
      world.run();
    } catch (error) {
      throw new Error(`Seed ${seed}: ${world.title}`, { cause: error });
    }
  });
}
