/**
 * Measures the speed of served QCOW2 images, and compares it with QEMU's programs on the same kind of
 * image, and with tapdisk's VHD. `deno task bench` runs it too.
 *
 *     deno task bench:qcow2 [--rounds 3] [--seconds 3] [--size 1024] [--loads reads,…] [--json FILE]
 *
 * All images are on tmpfs. fio's nbd engine generates the load: 4 KiB random at depth 32. The loads are
 * reads and writes of clusters that hold data, first writes, each to another cluster of an empty disk
 * of 64 GiB, and reads through a chain of 30 images. The servers take turns within each load of each
 * round. First writes get a new image each time; tapdisk's process stays, as it does where disks are
 * plugged, QEMU's is one for each image. The tables have medians; a server that is not installed is
 * left out by name.
 *
 * @module
 */
import { Command, InvalidArgumentError } from "commander";
import { needsServed } from "../support/served.ts";
import { hasTool } from "../support/tools.ts";
import { type Figures, measure, median, printColumns, type Workload } from "./measure.ts";
import { Qcow2Images, type Qcow2Server, qcow2Servers, Qcow2Starter } from "./qcow2_servers.ts";

const CLUSTER_BYTES = 65536;
const SPARSE_MIB = 65536;

/** What is measured. */
export const QCOW2_LOADS = ["reads", "writes", "first writes", "chain of 30"] as const;
type Load = (typeof QCOW2_LOADS)[number];

interface Sample extends Figures {
  readonly load: Load;
  readonly server: Qcow2Server;
}

/** A target of the project: tapdisk's QCOW2 over a peer, by medians of one run. */
interface Target {
  readonly load: Load;
  readonly figure: "iops" | "cpuMicrosecondsPerIo";
  readonly peers: readonly Qcow2Server[];
  /** A minimum; for processor time a maximum. */
  readonly ratio: number;
}

const QEMU = ["qemu-nbd", "qemu-storage-daemon"] as const;
const TARGETS: readonly Target[] = [
  { load: "reads", figure: "iops", peers: QEMU, ratio: 2 },
  { load: "reads", figure: "cpuMicrosecondsPerIo", peers: QEMU, ratio: 0.5 },
  { load: "reads", figure: "iops", peers: ["vhd"], ratio: 0.9 },
  { load: "writes", figure: "iops", peers: ["vhd"], ratio: 0.9 },
  { load: "first writes", figure: "iops", peers: QEMU, ratio: 4 },
  { load: "first writes", figure: "cpuMicrosecondsPerIo", peers: QEMU, ratio: 0.5 },
  { load: "chain of 30", figure: "iops", peers: QEMU, ratio: 3 },
];

const COMMON = ["bs=4k", "iodepth=32", "randrepeat=0", "norandommap"];
const WORKLOADS: Readonly<Record<Load, Workload>> = {
  "reads": workload("reads", "read", []),
  "writes": workload("writes", "write", []),
  "first writes": workload("first writes", "write", [`blockalign=${CLUSTER_BYTES}`]),
  "chain of 30": workload("chain of 30", "read", []),
};

function workload(name: string, direction: "read" | "write", more: string[]): Workload {
  return {
    name,
    direction,
    blockBytes: 4096,
    options: [`rw=rand${direction}`, ...COMMON, ...more],
  };
}

/** What to run. */
export interface Qcow2BenchOptions {
  readonly rounds: number;
  readonly seconds: number;
  /** MiB of the disks whose clusters all hold data. */
  readonly size: number;
  readonly loads: readonly Load[];
}

/** One bench, in its folder. */
class Bench {
  readonly samples: Sample[] = [];
  readonly #options: Qcow2BenchOptions;
  readonly #servers: readonly Qcow2Server[];
  readonly #images: Qcow2Images;
  readonly #starter: Qcow2Starter;
  readonly #full = new Map<Qcow2Server, string>();
  #chain = "";

  constructor(folder: string, options: Qcow2BenchOptions) {
    this.#options = options;
    this.#servers = qcow2Servers.filter((server) => !server.startsWith("qemu") || hasTool(server));
    this.#images = new Qcow2Images(folder, options.size);
    this.#starter = new Qcow2Starter(this.#images);
    for (const server of qcow2Servers) {
      if (!this.#servers.includes(server)) {
        console.error(`${server} is not installed; it is left out`);
      }
    }
  }

  async run(): Promise<void> {
    const { loads, rounds } = this.#options;
    try {
      await this.#starter.warmUp();
      const overwrites = loads.some((load) => load === "reads" || load === "writes");
      for (const server of overwrites ? this.#servers : []) {
        this.#full.set(server, await this.#images.full(server));
      }
      if (loads.includes("chain of 30")) {
        this.#chain = await this.#images.chain(await this.#images.full("qcow2"));
      }
      for (let round = 1; round <= rounds; round++) {
        for (const load of loads) {
          for (const server of this.#servers) await this.#sample(load, server);
        }
      }
      await this.#starter.finish();
    } finally {
      this.#starter.abandon();
    }
  }

  async #sample(load: Load, server: Qcow2Server): Promise<void> {
    if (load === "chain of 30" && server === "vhd") return;
    const { size, seconds } = this.#options;
    const isFirst = load === "first writes";
    const sizeMib = isFirst ? SPARSE_MIB : size;
    const path = await this.#imageFor(load, server);
    const served = await this.#starter.start(server, path, sizeMib);
    const figures = await measure(served, WORKLOADS[load], seconds);
    await served.stop();
    if (isFirst) Deno.removeSync(path);
    this.samples.push({ load, server, ...figures });
    const { iops, cpuMicrosecondsPerIo } = figures;
    console.error(
      `${load}, ${server}: ${Math.round(iops)} IOPS, ${cpuMicrosecondsPerIo.toFixed(1)} µs`,
    );
  }

  async #imageFor(load: Load, server: Qcow2Server): Promise<string> {
    if (load === "first writes") return await this.#images.empty(server, "empty", SPARSE_MIB);
    return load === "chain of 30" ? this.#chain : this.#full.get(server) ?? "";
  }
}

/** Runs the benchmark and prints its tables. */
export async function benchQcow2(options: Qcow2BenchOptions): Promise<readonly Sample[]> {
  const folder = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "blktap-bench-" });
  const bench = new Bench(folder, options);
  try {
    await bench.run();
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
  printTables(bench.samples);
  return bench.samples;
}

function printTables(samples: readonly Sample[]): void {
  const of = (load: Load, server: Qcow2Server, figure: Target["figure"]): number =>
    median(
      samples.filter((sample) => sample.load === load && sample.server === server)
        .map((sample) => sample[figure]),
    );
  const rows = [["QCOW2 on tmpfs, 4 KiB, 32 deep", "IOPS", "µs CPU/IO", "ours ×", "our CPU ×"]];
  for (const load of QCOW2_LOADS) {
    for (const server of qcow2Servers) {
      const iops = of(load, server, "iops");
      if (!Number.isFinite(iops)) continue;
      const cpu = of(load, server, "cpuMicrosecondsPerIo");
      rows.push([
        `${load.padEnd(14)}${server.startsWith("qemu") ? server : `tapdisk, ${server}`}`,
        iops.toFixed(0),
        cpu.toFixed(1),
        (of(load, "qcow2", "iops") / iops).toFixed(2),
        (of(load, "qcow2", "cpuMicrosecondsPerIo") / cpu).toFixed(2),
      ]);
    }
  }
  console.log("");
  printColumns(rows);
  const targets = [["Targets, QCOW2 on tmpfs", "wanted", "found", ""]];
  for (const { load, figure, peers, ratio } of TARGETS) {
    const isCpu = figure === "cpuMicrosecondsPerIo";
    for (const peer of peers) {
      const found = of(load, "qcow2", figure) / of(load, peer, figure);
      if (!Number.isFinite(found)) continue;
      const isMet = isCpu ? found <= ratio : found >= ratio;
      targets.push([
        `${load}, ${isCpu ? "CPU per I/O" : "IOPS"} over ${peer === "vhd" ? "our VHD" : peer}`,
        `${isCpu ? "≤" : "≥"} ${ratio.toFixed(2)}`,
        found.toFixed(2),
        isMet ? "met" : "MISSED",
      ]);
    }
  }
  console.log("");
  printColumns(targets);
}

function number(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("It must be a whole number above 0.");
}

function loadNames(text: string): Load[] {
  return text.split(",").map((word) => {
    const found = QCOW2_LOADS.find((load) => load === word);
    if (found === undefined) throw new InvalidArgumentError(`One of ${QCOW2_LOADS.join(", ")}.`);
    return found;
  });
}

async function main(): Promise<void> {
  const options = new Command("bench:qcow2")
    .option("--rounds <count>", "rounds", number, 3)
    .option("--seconds <seconds>", "length of each run", number, 3)
    .option("--size <mebibytes>", "size of the disks that are full", number, 1024)
    .option("--loads <names>", QCOW2_LOADS.join(","), loadNames, [...QCOW2_LOADS])
    .option("--json <file>", "write all samples to a file")
    .parse(Deno.args, { from: "user" })
    .opts<Qcow2BenchOptions & { json?: string }>();
  const { ignore, suffix } = needsServed("fio", "qemu-img", "qemu-io");
  if (ignore) {
    console.error(`Cannot run the benchmark${suffix}`);
    Deno.exit(1);
  }
  const samples = await benchQcow2(options);
  if (options.json !== undefined) {
    Deno.writeTextFileSync(options.json, JSON.stringify(samples, null, 2));
  }
}

if (import.meta.main) await main();
