/**
 * What changed-block tracking and a mirror cost: 4 KiB random writes at depth 32 to a VHD, plain, with a
 * log of changed blocks, and with a mirror to a second tapdisk of this machine, whose connection is
 * handed over.
 *
 *     deno task bench:secondary [--rounds 3] [--seconds 3] [--size 512] [--reference FOLDER]
 *                               [--control FOLDER]
 *
 * `--reference` names a folder with `tapdisk`, `tap-ctl`, `vhd-util` and `cbt-util` of C blktap, which
 * are then measured in the same way; `--control` is their control folder, which is compiled into them.
 * All images are filled before, and lie in /dev/shm. The ways alternate in each round, so that noise
 * affects all of them equally. The table has medians, and ratios to the plain disk of the same programs.
 *
 * @module
 */
import { Command, InvalidArgumentError } from "commander";
import { socketPair } from "../../ffi/sockets.ts";
import { fio } from "../support/fio.ts";
import { handOver } from "../support/hand_over.ts";
import { binaryPath, needs, runOk } from "../support/tools.ts";
import { median } from "./measure.ts";
import { cpuSeconds } from "./processor_time.ts";

/** A new process runs without machine code for a while. */
const WARM_UP_SECONDS = 2;
const LOAD = ["rw=randwrite", "bs=4k", "iodepth=32", "randrepeat=0", "norandommap"];

const WAYS = ["plain", "changed blocks", "mirror"] as const;
type Way = (typeof WAYS)[number];

interface Options {
  readonly rounds: number;
  readonly seconds: number;
  readonly size: number;
  readonly reference?: string;
  readonly control?: string;
}

/** The programs that are measured. */
interface Programs {
  readonly title: string;
  readonly control: string;
  run(program: "tap-ctl" | "vhd-util" | "cbt-util", ...args: string[]): Promise<string>;
}

/** A disk that is served. */
interface Served {
  readonly pid: number;
  readonly minor: number;
}

interface Sample {
  readonly programs: string;
  readonly way: Way;
  readonly iops: number;
  /** Of the tapdisk that the client uses, and of both. */
  readonly ownMicroseconds: number;
  readonly allMicroseconds: number;
}

function ours(folder: string): Programs {
  const control = `${folder}/ctl`;
  const env = { BLKTAP_CONTROL_DIR: control, BLKTAP_DEVICE: "none" };
  const pathOf = (program: string): string => binaryPath("blktap").replace(/[^/]*$/, program);
  return {
    title: "this tapdisk",
    control,
    run: async (program, ...args) => (await runOk(pathOf(program), args, { env })).trim(),
  };
}

function reference(folder: string, control: string): Programs {
  // The libraries that the programs were linked with may lie beside them.
  const env = { LD_LIBRARY_PATH: folder, PATH: `${folder}:${Deno.env.get("PATH")}` };
  return {
    title: "C tapdisk",
    control,
    run: async (program, ...args) => (await runOk(`${folder}/${program}`, args, { env })).trim(),
  };
}

async function serve({ run }: Programs, ...open: string[]): Promise<Served> {
  const pid = Number(await run("tap-ctl", "spawn"));
  const minor = Number((await run("tap-ctl", "allocate")).replace(/^.*\D/, ""));
  const address = ["-p", `${pid}`, "-m", `${minor}`];
  await run("tap-ctl", "attach", ...address);
  await run("tap-ctl", "open", ...address, ...open);
  return { pid, minor };
}

async function stop({ run }: Programs, { pid, minor }: Served): Promise<void> {
  const address = ["-p", `${pid}`, "-m", `${minor}`];
  await run("tap-ctl", "close", ...address);
  await run("tap-ctl", "detach", ...address);
  await run("tap-ctl", "free", "-m", `${minor}`);
}

function uriOf({ control }: Programs, { pid, minor }: Served): string {
  return `nbd+unix:///?socket=${control}/nbd${pid}.${minor}`;
}

/** Makes a VHD all of whose blocks are allocated and full. */
async function makeImage(programs: Programs, path: string, sizeMib: number): Promise<void> {
  await programs.run("vhd-util", "create", "-n", path, "-s", `${sizeMib}`);
  const disk = await serve(programs, "-a", `vhd:${path}`);
  await fio(uriOf(programs, disk), ["rw=write", "bs=1m", "iodepth=4", `size=${sizeMib}M`]);
  await stop(programs, disk);
}

/** Serves the image in one of the ways; calls `body` with the disk, and with what mirrors it. */
async function servedIn(
  programs: Programs,
  { way, folder, size }: { way: Way; folder: string; size: number },
  body: (disk: Served, mirror: Served | null) => Promise<void>,
): Promise<void> {
  const image = `vhd:${folder}/leaf.vhd`;
  const log = `${folder}/log`;
  if (way === "changed blocks") {
    await programs.run("cbt-util", "create", "-n", log, "-s", `${size << 20}`);
  }
  const withLog = way === "changed blocks" ? ["-C", log] : [];
  const disk = await serve(programs, "-a", image, ...withLog);
  let mirror: Served | null = null;
  if (way === "mirror") {
    mirror = await serve(programs, "-a", `vhd:${folder}/mirror.vhd`);
    const [here, there] = socketPair();
    handOver(`${programs.control}/nbdserver${mirror.pid}.${mirror.minor}`, "bench", there);
    handOver(`${programs.control}/nbdclient${disk.pid}`, "bench", here);
    const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
    await programs.run("tap-ctl", "pause", ...address);
    await programs.run("tap-ctl", "unpause", ...address, "-2", "nbd:bench", "-a", image);
  }
  try {
    await body(disk, mirror);
    if (mirror !== null) await requireMirror(programs, disk);
  } finally {
    await stop(programs, disk);
    if (mirror !== null) await stop(programs, mirror);
    if (way === "changed blocks") Deno.removeSync(log);
  }
}

async function requireMirror({ run }: Programs, { pid, minor }: Served): Promise<void> {
  const seen = JSON.parse(await run("tap-ctl", "stats", "-p", `${pid}`, "-m", `${minor}`));
  if (seen.nbd_mirror_failed !== 0) throw new Error("The mirror failed while it was measured");
}

async function measure(
  programs: Programs,
  { way, folder, options }: { way: Way; folder: string; options: Options },
  samples: Sample[],
): Promise<void> {
  const { seconds, size } = options;
  await servedIn(programs, { way, folder, size }, async (disk, mirror) => {
    const pids = [disk.pid, ...(mirror === null ? [] : [mirror.pid])];
    const load = [...LOAD, `size=${size}M`, "time_based"];
    await fio(uriOf(programs, disk), [...load, `runtime=${WARM_UP_SECONDS}`]);
    const before = pids.map(cpuSeconds);
    const [job] = await fio(uriOf(programs, disk), [...load, `runtime=${seconds}`]);
    const used = pids.map((pid, i) => (cpuSeconds(pid) - before[i]) / job.write.total_ios * 1e6);
    const [ownMicroseconds] = used;
    const allMicroseconds = used.reduce((sum, each) => sum + each, 0);
    const { iops } = job.write;
    samples.push({ programs: programs.title, way, iops, ownMicroseconds, allMicroseconds });
    console.error(
      `${programs.title}, ${way}: ${Math.round(iops)} IOPS, ${ownMicroseconds.toFixed(1)} µs`,
    );
  });
}

function printReport(all: readonly Programs[], samples: readonly Sample[]): void {
  for (const { title } of all) {
    const of = (way: Way, figure: "iops" | "ownMicroseconds" | "allMicroseconds"): number =>
      median(
        samples.filter((sample) => sample.programs === title && sample.way === way)
          .map((sample) => sample[figure]),
      );
    console.log(`\n${title}, medians: IOPS, × plain, µs CPU/IO, of both tapdisks`);
    for (const way of WAYS) {
      const iops = of(way, "iops");
      const cells = [
        way.padEnd(16),
        iops.toFixed(0).padStart(8),
        (iops / of("plain", "iops")).toFixed(2).padStart(6),
        of(way, "ownMicroseconds").toFixed(1).padStart(7),
        of(way, "allMicroseconds").toFixed(1).padStart(7),
      ];
      console.log(cells.join(""));
    }
  }
}

function number(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("It must be a whole number above 0.");
}

function parse(): Options {
  return new Command("bench:secondary")
    .option("--rounds <count>", "rounds", number, 3)
    .option("--seconds <seconds>", "length of each run", number, 3)
    .option("--size <mebibytes>", "size of the disk", number, 512)
    .option("--reference <folder>", "programs of C blktap")
    .option("--control <folder>", "their control folder", "/run/blktap-control")
    .parse(Deno.args, { from: "user" })
    .opts<Options>();
}

async function main(): Promise<void> {
  const options = parse();
  const { ignore, suffix } = needs("dist/tapdisk", "dist/cbt-util", "fio");
  if (ignore) {
    console.error(`Cannot run the benchmark${suffix}`);
    Deno.exit(1);
  }
  const folder = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "blktap-bench-" });
  try {
    const all = [ours(folder)];
    const { reference: programs, control = "" } = options;
    if (programs !== undefined) all.push(reference(programs, control));
    const samples: Sample[] = [];
    for (const each of all) {
      Deno.mkdirSync(`${folder}/${each.title}`);
      for (const name of ["leaf", "mirror"]) {
        await makeImage(each, `${folder}/${each.title}/${name}.vhd`, options.size);
      }
    }
    for (let round = 0; round < options.rounds; round++) {
      for (const way of WAYS) {
        for (const each of all) {
          await measure(each, { way, folder: `${folder}/${each.title}`, options }, samples);
        }
      }
    }
    printReport(all, samples);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

if (import.meta.main) await main();
