/**
 * QCOW2 images that QEMU and our driver write in turns. qemu-img makes an image with options that a
 * seed draws; then rounds follow, in which the one writes and the other reads all of it. Snapshots and
 * bitmaps of QEMU come in between, and keep what they held.
 *
 * @module
 */
import assert from "node:assert/strict";
import { compactQcow2 } from "../../src/qcow2/compact.ts";
import { Random } from "../../src/testing/random.ts";
import { assertBytes } from "./nbd_disks.ts";
import { putFile, qemuCheck, takeFile } from "./qcow2.ts";
import { type Outcome, SECTOR_BYTES, type SimulatedDevice, Simulation } from "./sim.ts";
import { run, runOk } from "./tools.ts";

const ROUNDS = 3;
/** Requests of a round that are under way at once, and how often. */
const AT_ONCE = 8;
const BATCHES = 20;

/** What an image is made with. */
interface Options {
  readonly list: readonly string[];
  readonly clusterBytes: number;
  readonly refcountBits: number;
  readonly isOld: boolean;
  readonly dataFile: "none" | "plain" | "raw";
  readonly backing: "none" | "raw" | "qcow2" | "vpc";
}

function pick<T>(random: Random, from: readonly T[]): T {
  return from[random.below(from.length)];
}

/** Options that QEMU takes together. */
function drawOptions(random: Random): Options {
  const isOld = random.chance(0.15);
  const extended = !isOld && random.chance(0.3);
  const clusterBytes = 2 ** (extended ? 14 + random.below(8) : 9 + random.below(13));
  const refcountBits = isOld ? 16 : 2 ** random.below(7);
  const dataFile = isOld ? "none" : pick(random, ["none", "none", "none", "plain", "raw"] as const);
  const backing = dataFile === "raw"
    ? "none"
    : pick(random, ["none", "none", "raw", "qcow2", "vpc"] as const);
  const preallocations = backing !== "none" && !extended
    ? ["off"]
    : ["off", "off", "metadata", "falloc", "full"];
  const list = [`cluster_size=${clusterBytes}`, `compat=${isOld ? "0.10" : "1.1"}`];
  if (!isOld) list.push(`refcount_bits=${refcountBits}`);
  if (extended) list.push("extended_l2=on");
  if (!isOld && random.chance(0.3)) list.push("lazy_refcounts=on");
  if (!isOld && dataFile === "none" && random.chance(0.5)) list.push("compression_type=zstd");
  list.push(`preallocation=${pick(random, preallocations)}`);
  return { list, clusterBytes, refcountBits, isOld, dataFile, backing };
}

/** An image, and what it must hold. */
class Peers {
  readonly options: Options;
  readonly path: string;
  readonly sizeBytes: number;
  bytes: Uint8Array<ArrayBuffer>;
  readonly snapshots: { readonly name: string; readonly bytes: Uint8Array<ArrayBuffer> }[] = [];
  hasBitmap = false;
  readonly steps: string[] = [];

  constructor(readonly folder: string, readonly random: Random) {
    this.options = drawOptions(random);
    this.path = `${folder}/top.qcow2`;
    this.sizeBytes = (1 + random.below(6 * 2048)) * SECTOR_BYTES;
    this.bytes = new Uint8Array(this.sizeBytes);
  }

  async qemuImg(...args: string[]): Promise<string> {
    return await runOk("qemu-img", args, { cwd: this.folder });
  }

  async make(): Promise<void> {
    const { backing, dataFile } = this.options;
    const list = [...this.options.list];
    if (dataFile !== "none") {
      list.push(`data_file=data,data_file_raw=${dataFile === "raw" ? "on" : "off"}`);
    }
    const more: string[] = [];
    if (backing !== "none") {
      // It may be shorter than the image, or longer.
      const sectors = this.random.below(2 * this.sizeBytes / SECTOR_BYTES) + 1;
      const base = new Uint8Array(sectors * SECTOR_BYTES);
      for (let at = 0; at < base.length; at += 8192) base.fill(1 + (at >> 13) % 200, at, at + 5120);
      Deno.writeFileSync(`${this.folder}/raw`, base);
      if (backing !== "raw") {
        const fixedSize = backing === "vpc" ? ["-o", "force_size=on"] : [];
        await this.qemuImg("convert", "-O", backing, ...fixedSize, "raw", `base`);
        Deno.removeSync(`${this.folder}/raw`);
      } else Deno.renameSync(`${this.folder}/raw`, `${this.folder}/base`);
      more.push("-b", "base", "-F", backing);
      this.bytes.set(base.subarray(0, Math.min(base.length, this.sizeBytes)));
    }
    this.steps.push(`${list} ${more} ${this.sizeBytes}`);
    const create = ["create", "-q", "-f", "qcow2", "-o", list.join(","), ...more];
    await this.qemuImg(...create, "top.qcow2", `${this.sizeBytes}`);
  }

  #range(mostSectors: number): [number, number] {
    const sectors = this.sizeBytes / SECTOR_BYTES;
    const count = 1 + this.random.below(Math.min(mostSectors, sectors));
    return [this.random.below(sectors - count + 1) * SECTOR_BYTES, count * SECTOR_BYTES];
  }

  /** Lets qemu-io write, and takes over what qemu-img reads then. */
  async qemuWrites(): Promise<void> {
    const { clusterBytes, dataFile } = this.options;
    const commands: string[] = [];
    for (let i = 0; i < 25; i++) {
      const [at, length] = this.#range(this.random.chance(0.3) ? 2048 : 64);
      const kind = this.random.below(10);
      if (kind < 5) commands.push(`write -q -P ${1 + this.random.below(255)} ${at} ${length}`);
      else if (kind < 6) commands.push(`write -q -z ${at} ${length}`);
      else if (kind < 7) commands.push(`write -q -z -u ${at} ${length}`);
      else if (kind < 8) commands.push(`discard -q ${at} ${length}`);
      else if (dataFile === "none") {
        const first = Math.floor(at / clusterBytes) * clusterBytes;
        const part = Math.min(clusterBytes, this.sizeBytes - first);
        commands.push(`write -q -c -P ${1 + this.random.below(255)} ${first} ${part}`);
      }
    }
    const args = ["-f", "qcow2", "-d", "unmap", "-t", "unsafe"];
    this.steps.push(`qemu-io: ${commands.join("; ")}`);
    const all = [...args, ...commands.flatMap((each) => ["-c", each]), "top.qcow2"];
    const { code, stdout, stderr } = await run("qemu-io", all, { cwd: this.folder });
    // A compressed write to a cluster that has a place is refused.
    const text = (stdout + stderr).replaceAll("write failed: Input/output error\n", "");
    const isRefused = text === "" && commands.some((each) => each.includes("-c"));
    assert.ok(code === 0 || isRefused, `qemu-io ended with status ${code}: ${stdout}${stderr}`);
    this.bytes = await this.#read();
  }

  async #read(...options: string[]): Promise<Uint8Array<ArrayBuffer>> {
    await this.qemuImg("convert", "-O", "raw", ...options, "top.qcow2", "out.raw");
    const bytes = Deno.readFileSync(`${this.folder}/out.raw`);
    Deno.removeSync(`${this.folder}/out.raw`);
    return bytes;
  }

  async addSnapshot(): Promise<void> {
    const { refcountBits, dataFile } = this.options;
    // A cluster of a snapshot has two references.
    if (refcountBits === 1 || dataFile !== "none" || this.snapshots.length === 3) return;
    const name = `s${this.snapshots.length}`;
    this.steps.push(`snapshot ${name}`);
    await this.qemuImg("snapshot", "-c", name, "top.qcow2");
    this.snapshots.push({ name, bytes: this.bytes.slice() });
  }

  async addBitmap(): Promise<void> {
    if (this.options.isOld || this.hasBitmap) return;
    this.hasBitmap = true;
    this.steps.push("bitmap");
    await this.qemuImg("bitmap", "-f", "qcow2", "--add", "top.qcow2", "b0");
  }

  /** Lets our driver read all and write, and qemu-img judge. */
  async weWrite(): Promise<void> {
    this.steps.push("our driver writes");
    const simulation = new Simulation({
      seed: this.random.bits(),
      latencyMs: this.random.below(4),
    });
    const storage = simulation.disk;
    const names = [...Deno.readDirSync(this.folder)].map(({ name }) => name);
    for (const name of names) putFile(storage, `/d/${name}`, `${this.folder}/${name}`);
    const device = simulation.open("qcow2:/d/top.qcow2");
    this.#readBy(device);
    for (let i = 0; i < BATCHES; i++) this.#requests(device);
    this.#readBy(device);
    device.close();
    for (const name of names) {
      if (name !== "base") takeFile(storage, `/d/${name}`, `${this.folder}/${name}`);
    }
    simulation.close();
    await this.judge();
  }

  #readBy(device: SimulatedDevice): void {
    for (let at = 0; at < this.sizeBytes; at += 256 * 1024) {
      const length = Math.min(256 * 1024, this.sizeBytes - at);
      const outcome = device.read(at / SECTOR_BYTES, length / SECTOR_BYTES);
      device.settle();
      assert.equal(outcome.errno, 0, `a read at ${at}`);
      assertBytes(outcome.data ?? new Uint8Array(0), this.bytes.subarray(at, at + length));
    }
  }

  /** Some requests at once, which do not overlap. */
  #requests(device: SimulatedDevice): void {
    const taken: [number, number][] = [];
    const outcomes: Outcome[] = [];
    for (let i = 0; i < AT_ONCE; i++) {
      const [at, length] = this.#range(this.random.chance(0.2) ? 512 : 48);
      if (taken.some(([start, size]) => start < at + length && at < start + size)) continue;
      taken.push([at, length]);
      const [sector, count] = [at / SECTOR_BYTES, length / SECTOR_BYTES];
      if (this.random.chance(0.7)) {
        const data = new Uint8Array(length).fill(1 + this.random.below(255));
        this.bytes.set(data, at);
        outcomes.push(device.write(sector, data, this.random.chance(0.1)));
      } else {
        this.bytes.fill(0, at, at + length);
        outcomes.push(device.zero(sector, count));
      }
    }
    if (this.random.chance(0.2)) outcomes.push(device.flush());
    device.settle();
    for (const { errno } of outcomes) assert.equal(errno, 0);
  }

  /** What qemu-img finds: no faults, the disk, and each snapshot as it was. */
  async judge(): Promise<void> {
    const { errors, leaks, text } = await qemuCheck(this.path);
    assert.deepEqual([errors, leaks], [0, 0], text);
    assertBytes(await this.#read("-f", "qcow2"), this.bytes);
    for (const { name, bytes } of this.snapshots) {
      assertBytes(await this.#read("-f", "qcow2", "-l", `snapshot.name=${name}`), bytes);
    }
    const listed = await this.qemuImg("snapshot", "-l", "top.qcow2");
    for (const { name } of this.snapshots) assert.match(listed, new RegExp(` ${name} `));
    if (!this.hasBitmap) return;
    const info = JSON.parse(await this.qemuImg("info", "--output=json", "top.qcow2"));
    const [bitmap] = info["format-specific"].data.bitmaps;
    assert.deepEqual([bitmap.name, bitmap.flags], ["b0", ["in-use", "auto"]]);
    if (!this.random.chance(0.5)) return;
    await this.qemuImg("bitmap", "-f", "qcow2", "--remove", "top.qcow2", "b0");
    this.hasBitmap = false;
  }

  /** Compacts the image, which changes nothing that anybody reads. */
  async compact(): Promise<void> {
    if (this.options.dataFile !== "none") return;
    this.steps.push("compact");
    const before = Deno.statSync(this.path).size;
    compactQcow2(this.path);
    assert.ok(Deno.statSync(this.path).size <= before, "compacting made the file longer");
    await this.judge();
  }

  /** Goes back to a snapshot, as QEMU does. */
  async apply(): Promise<void> {
    // QEMU refuses it for an image with bitmaps.
    if (this.snapshots.length === 0 || this.hasBitmap) return;
    const { name, bytes } = pick(this.random, this.snapshots);
    this.steps.push(`apply ${name}`);
    await this.qemuImg("snapshot", "-a", name, "top.qcow2");
    this.bytes = bytes.slice();
  }
}

/** Runs the rounds of a seed in a folder. Throws with the steps where QEMU and we differ. */
export async function runPeers(folder: string, seed: number): Promise<void> {
  const peers = new Peers(folder, new Random(seed));
  try {
    await peers.make();
    for (let round = 0; round < ROUNDS; round++) {
      if (peers.random.chance(0.7)) await peers.qemuWrites();
      if (peers.random.chance(0.4)) await peers.addSnapshot();
      if (peers.random.chance(0.3)) await peers.addBitmap();
      await peers.weWrite();
      if (peers.random.chance(0.4)) await peers.compact();
      if (peers.random.chance(0.2)) await peers.apply();
    }
    // QEMU takes what it shares away again.
    for (const { name } of peers.snapshots) {
      await peers.qemuImg("snapshot", "-d", name, "top.qcow2");
    }
    peers.snapshots.length = 0;
    await peers.judge();
    const compared = await run("qemu-img", ["check", "-q", "top.qcow2"], { cwd: folder });
    assert.equal(compared.code, 0, compared.stderr);
  } catch (error) {
    throw new Error(`Seed ${seed}: ${error}\n${peers.steps.join("\n")}`, { cause: error });
  }
}
