/**
 * Random requests to QCOW2 images that qemu-img made, with every option, against a plain model. What
 * is in the file afterwards is read and checked by qemu-img.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Random } from "../../src/testing/random.ts";
import { assertQemuClean, putFile, qemuCreate, takeFile } from "../support/qcow2.ts";
import { type Outcome, SECTOR_BYTES, type SimulatedDevice, Simulation } from "../support/sim.ts";
import { needs, runOk, withTempDir } from "../support/tools.ts";

const { ignore, suffix } = needs("qemu-img", "qemu-io");

/** A disk as it must read. */
class Model {
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  get sectors(): number {
    return this.bytes.length / SECTOR_BYTES;
  }
}

function someRange(random: Random, sectors: number): { sector: number; count: number } {
  const most = random.chance(0.2) ? 512 : random.chance(0.5) ? 8 : 64;
  const count = 1 + random.below(Math.min(most, sectors));
  const near = random.chance(0.5) ? Math.min(sectors, 4096) : sectors;
  const sector = random.below(Math.max(1, near - count + 1));
  return { sector, count };
}

/** Makes requests, several at once that do not overlap, and keeps the model true. */
function work(device: SimulatedDevice, model: Model, random: Random, steps: number): void {
  for (let step = 0; step < steps; step++) {
    const busy: { sector: number; count: number }[] = [];
    const outcomes: Outcome[] = [];
    const reads: { outcome: Outcome; sector: number; count: number }[] = [];
    for (let i = 0; i < 1 + random.below(8); i++) {
      const range = someRange(random, model.sectors);
      const { sector, count } = range;
      const overlaps = busy.some((other) =>
        other.sector < sector + count && sector < other.sector + other.count
      );
      if (overlaps) continue;
      busy.push(range);
      const at = sector * SECTOR_BYTES;
      const choice = random.below(10);
      if (choice < 5) {
        const data = new Uint8Array(count * SECTOR_BYTES).fill(1 + random.below(255));
        new DataView(data.buffer).setUint32(0, step * 100 + i);
        model.bytes.set(data, at);
        outcomes.push(device.write(sector, data, random.chance(0.1)));
      } else if (choice < 7) {
        model.bytes.fill(0, at, at + count * SECTOR_BYTES);
        outcomes.push(device.zero(sector, count));
      } else if (choice < 8) {
        outcomes.push(device.flush());
      } else {
        const outcome = device.read(sector, count);
        reads.push({ outcome, sector, count });
      }
    }
    device.settle();
    for (const { errno } of outcomes) assert.equal(errno, 0);
    for (const { outcome, sector, count } of reads) {
      assert.equal(outcome.errno, 0);
      assertSame(outcome.data, model, sector, count);
    }
  }
}

function assertSame(data: Uint8Array | null, model: Model, sector: number, count: number): void {
  assert.ok(data);
  const from = sector * SECTOR_BYTES;
  for (let i = 0; i < count * SECTOR_BYTES; i++) {
    if (data[i] !== model.bytes[from + i]) {
      const where = `sector ${sector + Math.floor(i / 512)}, byte ${i % 512}`;
      assert.fail(`${where}: ${data[i]} instead of ${model.bytes[from + i]}`);
    }
  }
}

function readAll(device: SimulatedDevice, model: Model): void {
  for (let sector = 0; sector < model.sectors; sector += 512) {
    const count = Math.min(512, model.sectors - sector);
    const outcome = device.read(sector, count);
    device.settle();
    assert.equal(outcome.errno, 0);
    assertSame(outcome.data, model, sector, count);
  }
}

const MIB = 1 << 20;
const OPTIONS: readonly (readonly string[])[] = [
  [],
  ["compat=0.10"],
  ["cluster_size=512"],
  ["cluster_size=512", "refcount_bits=64"],
  ["cluster_size=4096", "refcount_bits=1"],
  ["cluster_size=2M"],
  ["refcount_bits=2"],
  ["refcount_bits=8", "lazy_refcounts=on"],
  ["refcount_bits=32", "cluster_size=1024"],
  ["extended_l2=on", "cluster_size=16k"],
  ["extended_l2=on", "cluster_size=64k"],
  ["preallocation=metadata"],
  ["preallocation=full", "cluster_size=8k"],
];

for (const options of OPTIONS) {
  const name = options.length === 0 ? "no options" : options.join(",");
  Deno.test({
    name: `random requests to an image of qemu-img with ${name}${suffix}`,
    ignore,
    fn: () =>
      withTempDir(async (folder) => {
        const path = `${folder}/a.qcow2`;
        const size = 9 * MIB + 512;
        await qemuCreate(path, size, options);
        await assertServed(path, new Uint8Array(size), name);
      }),
  });
}

/** Serves an image of real files for a while, and lets qemu-img judge the result. */
async function assertServed(path: string, bytes: Uint8Array, name: string): Promise<void> {
  const folder = path.slice(0, path.lastIndexOf("/"));
  for (const seed of [1, 2]) {
    const random = new Random(seed);
    const simulation = new Simulation({ seed, latencyMs: seed === 1 ? 0 : 5 });
    const { storage } = simulation.context.files;
    for (const { name: file } of Deno.readDirSync(folder)) {
      if (!file.startsWith("out")) putFile(storage, `/d/${file}`, `${folder}/${file}`);
    }
    const served = `/d/${path.slice(folder.length + 1)}`;
    const model = new Model(bytes.slice());
    for (let round = 0; round < 3; round++) {
      const device = simulation.open(`qcow2:${served}`);
      work(device, model, random, 60);
      readAll(device, model);
      device.close();
    }
    const out = `${folder}/out-${seed}.qcow2`;
    takeFile(storage, served, out);
    await assertQemuClean(out);
    const raw = `${folder}/out-${seed}.raw`;
    await runOk("qemu-img", ["convert", "-O", "raw", "-f", "qcow2", out, raw]);
    const read = Deno.readFileSync(raw);
    assert.equal(read.length, model.bytes.length, name);
    assertSame(read, model, 0, model.sectors);
    simulation.close();
  }
}
