/**
 * Random requests to QCOW2 images that qemu-img made, with every option, against a plain model. What
 * is in the file afterwards is read and checked by qemu-img.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { Random } from "../../src/testing/random.ts";
import { assertQemuClean, putFile, qemuCreate, takeFile } from "../support/qcow2.ts";
import {
  assertHolds,
  type Outcome,
  SECTOR_BYTES,
  type SimulatedDevice,
  Simulation,
  stampedSectors,
} from "../support/sim.ts";
import { needs, run, runOk, withTempDir } from "../support/tools.ts";

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

/** A pattern that is not zero and differs from sector to sector. */
function pattern(sizeBytes: number, stamp: number): Uint8Array {
  const bytes = new Uint8Array(sizeBytes);
  for (let at = 0; at < sizeBytes; at += SECTOR_BYTES) {
    if ((at / 4096) % 3 === stamp % 3) continue;
    bytes.fill(1 + (at / SECTOR_BYTES + stamp) % 255, at, at + SECTOR_BYTES);
  }
  return bytes;
}

/** A disk of an image that was made, as it reads. */
type Maker = (folder: string, path: string, size: number) => Promise<Uint8Array>;

/** Images with more than one file, or with content of their own. */
const MAKERS: Readonly<Record<string, Maker>> = {
  async "a raw backing file that is shorter"(folder, path, size) {
    const bytes = pattern(size, 1);
    Deno.writeFileSync(`${folder}/base.raw`, bytes.subarray(0, size / 2));
    bytes.fill(0, size / 2);
    const backing = ["-b", "base.raw", "-F", "raw"];
    await runOk("qemu-img", ["create", "-q", "-f", "qcow2", ...backing, path, String(size)]);
    return bytes;
  },
  async "a backing chain of version 2, with 4 KiB clusters"(folder, path, size) {
    const bytes = pattern(size, 2);
    Deno.writeFileSync(`${folder}/base.raw`, bytes);
    const old = ["-o", "compat=0.10,cluster_size=4k"];
    const create = ["create", "-q", "-f", "qcow2", ...old];
    await runOk("qemu-img", [...create, "-b", "base.raw", "-F", "raw", `${folder}/mid.qcow2`]);
    await runOk("qemu-io", ["-c", "write -q -P 77 40k 100k", `${folder}/mid.qcow2`]);
    bytes.fill(77, 40 * 1024, 140 * 1024);
    await runOk("qemu-img", [...create, "-b", "mid.qcow2", "-F", "qcow2", path]);
    return bytes;
  },
  async "a VHD below"(folder, path, size) {
    const bytes = pattern(size, 3);
    Deno.writeFileSync(`${folder}/base.raw`, bytes);
    const out = ["-O", "vpc", "-o", "force_size=on"];
    await runOk("qemu-img", ["convert", ...out, `${folder}/base.raw`, `${folder}/base.vhd`]);
    Deno.removeSync(`${folder}/base.raw`);
    const backing = ["-b", "base.vhd", "-F", "vpc"];
    await runOk("qemu-img", ["create", "-q", "-f", "qcow2", ...backing, path, String(size)]);
    return bytes;
  },
  async "subclusters and a backing file"(folder, path, size) {
    const bytes = pattern(size, 1);
    Deno.writeFileSync(`${folder}/base.raw`, bytes);
    const options = ["-o", "extended_l2=on,cluster_size=64k"];
    const backing = ["-b", "base.raw", "-F", "raw"];
    await runOk("qemu-img", ["create", "-q", "-f", "qcow2", ...options, ...backing, path]);
    await runOk("qemu-io", ["-c", "write -q -P 9 66k 3k", "-c", "write -qz 100k 10k", path]);
    bytes.fill(9, 66 * 1024, 69 * 1024);
    bytes.fill(0, 100 * 1024, 110 * 1024);
    return bytes.subarray(0, size);
  },
  "clusters compressed by zlib": (folder, path, size) => compressed(folder, path, size, []),
  "clusters compressed by zstd": (folder, path, size) =>
    compressed(folder, path, size, ["-o", "compression_type=zstd"]),
  "small clusters compressed by zlib": (folder, path, size) =>
    compressed(folder, path, size, ["-o", "cluster_size=4k"]),
  async "an internal snapshot"(_folder, path, size) {
    await qemuCreate(path, size, ["cluster_size=16k"]);
    await runOk("qemu-io", ["-c", "write -q -P 5 0 3M", path]);
    await runOk("qemu-img", ["snapshot", "-c", "first", path]);
    await runOk("qemu-io", ["-c", "write -q -P 6 1M 1M", path]);
    const bytes = new Uint8Array(size);
    bytes.fill(5, 0, 3 * MIB);
    bytes.fill(6, MIB, 2 * MIB);
    return bytes;
  },
  async "an internal snapshot and subclusters"(_folder, path, size) {
    await qemuCreate(path, size, ["extended_l2=on"]);
    await runOk("qemu-io", ["-c", "write -q -P 5 3k 2M", path]);
    await runOk("qemu-img", ["snapshot", "-c", "first", path]);
    const bytes = new Uint8Array(size);
    bytes.fill(5, 3072, 3072 + 2 * MIB);
    return bytes;
  },
};

for (const [name, make] of Object.entries(MAKERS)) {
  Deno.test({
    name: `random requests to ${name}${suffix}`,
    ignore,
    fn: () =>
      withTempDir(async (folder) => {
        const path = `${folder}/top.qcow2`;
        await assertServed(path, await make(folder, path, 8 * MIB), name);
      }),
  });
}

async function compressed(
  folder: string,
  path: string,
  size: number,
  options: readonly string[],
): Promise<Uint8Array> {
  const bytes = pattern(size, 4);
  Deno.writeFileSync(`${folder}/in.raw`, bytes);
  const args = ["convert", "-c", "-f", "raw", "-O", "qcow2", ...options];
  await runOk("qemu-img", [...args, `${folder}/in.raw`, path]);
  Deno.removeSync(`${folder}/in.raw`);
  return bytes;
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
    for (const { name: file } of Deno.readDirSync(folder)) {
      if (file.startsWith("out")) continue;
      const after = `${folder}/out-other`;
      takeFile(storage, `/d/${file}`, after);
      const isSame = await run("cmp", ["-s", `${folder}/${file}`, after]);
      assert.equal(isSame.code !== 0, `/d/${file}` === served, `${file} has changed, or has not`);
    }
    await assertQemuClean(out);
    const raw = `${folder}/out-${seed}.raw`;
    await runOk("qemu-img", ["convert", "-O", "raw", "-f", "qcow2", out, raw]);
    const read = Deno.readFileSync(raw);
    assert.equal(read.length, model.bytes.length, name);
    assertSame(read, model, 0, model.sectors);
    simulation.close();
  }
}

for (const seed of [1, 2, 3, 4, 5, 6, 7, 8]) {
  Deno.test(`disk errors and a full disk only delay requests to a QCOW2 image, seed ${seed}`, () => {
    const random = new Random(seed);
    const simulation = new Simulation({ seed, latencyMs: seed % 3 });
    const storage = simulation.disk;
    const extendedL2 = seed % 4 === 0;
    createQcow2("/a.qcow2", {
      storage,
      sizeBytes: 4 * MIB,
      extendedL2,
      clusterBytes: extendedL2 ? 16384 : 2 ** (9 + random.below(8)),
    });
    const model = new Model(new Uint8Array(4 * MIB));
    const device = simulation.open("qcow2:/a.qcow2");
    const errno = random.chance(0.5) ? Errno.EIO : Errno.ENOSPC;
    for (let round = 0; round < 8; round++) {
      let left = 40;
      simulation.fault = round % 2 === 0 ? null : (kind) => {
        // A sync that fails through the page cache ends all flushes that follow.
        if (kind === "sync") return 0;
        // A request with many clusters must get through within its time.
        return left > 0 && random.chance(0.08) ? (left--, errno) : 0;
      };
      simulation.lengthFault = round === 3 ? Errno.ENOSPC : 0;
      const timer = simulation.scheduler.addTimer(5000, () => simulation.lengthFault = 0);
      work(device, model, random, 20);
      simulation.scheduler.cancelTimer(timer);
    }
    simulation.fault = null;
    simulation.lengthFault = 0;
    readAll(device, model);
    device.close();
    const image = openQcow2("/a.qcow2", { storage });
    const { errors } = checkQcow2(image);
    image.close();
    assert.deepEqual(errors, []);
    const again = simulation.open("qcow2:/a.qcow2");
    readAll(again, model);
    again.close();
    simulation.close();
  });
}

Deno.test("zeros over large clusters of version 2 read the image below in few operations at once", () => {
  const simulation = new Simulation({ seed: 1, latencyMs: 5 });
  const { disk: storage } = simulation;
  const sizeBytes = 36 * MIB;
  const sectors = sizeBytes / SECTOR_BYTES;
  createQcow2("/base", { storage, sizeBytes, clusterBytes: 512 });
  const base = simulation.open("qcow2:/base");
  for (let at = 0; at < sectors; at += 2) base.write(at, stampedSectors(at, 1, 7));
  base.settle();
  base.close();
  const backing = { name: "base", format: "qcow2" };
  createQcow2("/a", { storage, sizeBytes, version: 2, clusterBytes: 2 * MIB, backing });
  // The drivers of a simulation throw for operations that there is no room for.
  const device = simulation.open("qcow2:/a");
  const outcome = device.zero(8, sectors - 16);
  device.settle();
  assert.equal(outcome.errno, 0);
  assertHolds(device, 0, 1, 7);
  assertHolds(device, 8, 400, 0);
  assertHolds(device, sectors - 8, 1, 7);
  device.close();
  simulation.close();
});
