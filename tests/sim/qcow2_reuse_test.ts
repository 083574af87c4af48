/**
 * Places of QCOW2 images that are freed and given to others: operations on them that began before have
 * their own data, and a write that ends late does not land in what is another cluster now.
 *
 * @module
 */
import assert from "node:assert/strict";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { Random } from "../../src/testing/random.ts";
import { type Outcome, Simulation, stampedSectors, stampOf } from "../support/sim.ts";

const CLUSTER_SECTORS = 8;
const CLUSTERS = 6;

interface Read {
  readonly outcome: Outcome;
  readonly cluster: number;
  /** What the cluster may hold: stamps, and 0. */
  readonly may: Set<number>;
}

/** What one cluster of the disk may hold now. */
class State {
  held = new Set([0]);
  /** The change that is under way. */
  change: { readonly outcome: Outcome; readonly stamp: number } | null = null;

  end(): void {
    if (this.change === null || this.change.outcome.errno === null) return;
    assert.equal(this.change.outcome.errno, 0);
    this.held = new Set([this.change.stamp]);
    this.change = null;
  }

  get now(): Set<number> {
    return this.change === null ? this.held : new Set([...this.held, this.change.stamp]);
  }
}

Deno.test("a place is given to others only when what was under way there has ended", () => {
  const random = new Random(1);
  const simulation = new Simulation({ seed: 1, latencyMs: 5 });
  simulation.connection.delayOf = (kind) => kind !== "sync" && random.chance(0.1) ? 100 : 0;
  const { disk: storage } = simulation;
  createQcow2("/a", { storage, sizeBytes: 1 << 20, clusterBytes: 512 * CLUSTER_SECTORS });
  const device = simulation.open("qcow2:/a");
  const states = Array.from({ length: CLUSTERS }, () => new State());
  let reads: Read[] = [];
  let stamp = 1;
  let verified = 0;
  for (let turn = 0; turn < 10_000; turn++) {
    for (const state of states) state.end();
    for (const { outcome, cluster, may } of reads) {
      if (outcome.errno === null) continue;
      assert.ok(outcome.data);
      for (let i = 0; i < CLUSTER_SECTORS; i++) {
        const got = stampOf(outcome.data, i, cluster * CLUSTER_SECTORS + i);
        assert.ok(may.has(got), `cluster ${cluster}: ${got}, not one of ${[...may].join(", ")}`);
      }
      verified++;
    }
    reads = reads.filter(({ outcome }) => outcome.errno === null);
    const cluster = random.below(CLUSTERS);
    const sector = cluster * CLUSTER_SECTORS;
    const state = states[cluster];
    if (random.chance(0.7) && reads.length < 60) {
      const outcome = device.read(sector, CLUSTER_SECTORS);
      reads.push({ outcome, cluster, may: state.now });
    } else if (state.change === null) {
      const isWrite = random.chance(0.5);
      const outcome = isWrite
        ? device.write(sector, stampedSectors(sector, CLUSTER_SECTORS, stamp))
        : device.zero(sector, CLUSTER_SECTORS);
      state.change = { outcome, stamp: isWrite ? stamp++ : 0 };
      // A read that is under way sees the cluster before the change, or after it.
      for (const read of reads) if (read.cluster === cluster) read.may.add(state.change.stamp);
    }
    simulation.scheduler.turn();
  }
  device.settle();
  assert.ok(verified > 1000 && stamp > 300, `${verified} reads, ${stamp} writes`);
  device.close();
  const image = openQcow2("/a", { storage });
  const { errors, leakedClusters } = checkQcow2(image);
  image.close();
  assert.deepEqual([errors, leakedClusters], [[], 0]);
  simulation.close();
});
