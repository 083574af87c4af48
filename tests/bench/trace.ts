/**
 * What a trace costs: 4 KiB at depth 32 on a raw image in /dev/shm, while `tap-ctl trace` records, and
 * while it does not.
 *
 *     deno task bench:trace [--rounds 8] [--seconds 2] [--before FOLDER]
 *
 * `--before` names a folder with `tapdisk` and `tap-ctl` of a version to compare with, such as one without
 * traces. The ways take turns, each round in another order, so that noise affects all of them equally. The
 * table has medians, and ratios to the disk that is not traced, of each round and then the median of those.
 *
 * @module
 */
import { Command, InvalidArgumentError } from "commander";
import { binaryPath, needs, runOk } from "../support/tools.ts";
import { type Figures, measure, median, printColumns, type Workload } from "./measure.ts";

const SIZE_BYTES = 512 << 20;
/** A new process runs without machine code for a while. */
const WARM_UP_SECONDS = 3;

const WAYS = ["before", "not traced", "traced"] as const;
type Way = (typeof WAYS)[number];

interface Options {
  readonly rounds: number;
  readonly seconds: number;
  readonly before?: string;
}

/** A disk of one version. */
interface Disk {
  readonly folder: string;
  readonly env: Record<string, string>;
  readonly pid: number;
  readonly uri: string;
}

function workload(rw: "randread" | "randwrite"): Workload {
  return {
    name: rw,
    direction: rw === "randread" ? "read" : "write",
    blockBytes: 4096,
    options: [`rw=${rw}`, "bs=4k", "iodepth=32", "randrepeat=0", "norandommap"],
  };
}

const LOADS = [workload("randread"), workload("randwrite")];

function number(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("It must be a whole number above 0.");
}

async function serve(programs: string, folder: string, image: string): Promise<Disk> {
  const env = { BLKTAP_CONTROL_DIR: folder, BLKTAP_DEVICE: "none" };
  await runOk(`${programs}/tap-ctl`, ["create", "-a", `aio:${image}`], { env });
  const list = await runOk(`${programs}/tap-ctl`, ["list"], { env });
  const pid = Number(/^pid=(\d+)/.exec(list)?.[1]);
  return { folder: programs, env, pid, uri: `nbd+unix:///?socket=${folder}/nbd${pid}.0` };
}

async function stop({ folder, env, pid }: Disk): Promise<void> {
  await runOk(`${folder}/tap-ctl`, ["destroy", "-p", `${pid}`, "-m", "0"], { env });
}

/** Records while `work` runs; returns what it returned, and how many records were lost. */
async function traced<T>(
  { folder, env, pid }: Disk,
  file: string,
  work: () => Promise<T>,
): Promise<[T, { requests: number; lost_records: number }]> {
  const args = ["trace", "-p", `${pid}`, "-m", "0", "-o", file];
  const child = new Deno.Command(`${folder}/tap-ctl`, { args, env, stderr: "null" }).spawn();
  // Its file has another name until it is whole.
  const at = file.slice(0, file.lastIndexOf("/"));
  while (!Deno.readDirSync(at).some(({ name }) => `${at}/${name}`.startsWith(`${file}.`))) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const result = await work();
  child.kill("SIGINT");
  await child.status;
  const told = endOf(file);
  Deno.removeSync(file);
  return [result, told];
}

/** The counts at the end of a trace, which is long. */
function endOf(path: string): { requests: number; lost_records: number } {
  using file = Deno.openSync(path);
  const sizeBytes = file.statSync().size;
  file.seekSync(Math.max(0, sizeBytes - 1024), Deno.SeekMode.Start);
  const bytes = new Uint8Array(1024);
  const text = new TextDecoder().decode(bytes.subarray(0, file.readSync(bytes) ?? 0));
  return JSON.parse(`{${text.slice(text.indexOf('"otherData"'))}`).otherData;
}

async function main(): Promise<void> {
  const { rounds, seconds, before } = new Command("bench:trace")
    .option("--rounds <count>", "rounds", number, 8)
    .option("--seconds <seconds>", "length of each run", number, 2)
    .option("--before <folder>", "programs of another version")
    .parse(Deno.args, { from: "user" })
    .opts<Options>();
  const programs = binaryPath("blktap").replace(/\/[^/]*$/, "");
  const folder = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "blktap-bench-" });
  const disks: Disk[] = [];
  try {
    const image = (name: string): string => {
      Deno.createSync(`${folder}/${name}`).close();
      Deno.truncateSync(`${folder}/${name}`, SIZE_BYTES);
      return `${folder}/${name}`;
    };
    const disk = await serve(programs, `${folder}/now`, image("now.raw"));
    disks.push(disk);
    const other = before === undefined
      ? null
      : await serve(before, `${folder}/before`, image("before.raw"));
    if (other !== null) disks.push(other);
    const served = (each: Disk) => ({
      pid: each.pid,
      uri: each.uri,
      sizeBytes: SIZE_BYTES,
      stop: () => Promise.resolve(),
    });
    for (const each of disks) {
      for (const load of LOADS) await measure(served(each), load, WARM_UP_SECONDS);
    }
    const ways = WAYS.filter((way) => way !== "before" || other !== null);
    for (const load of LOADS) {
      const samples = new Map<Way, Figures[]>(ways.map((way) => [way, []]));
      let lost = 0;
      let requests = 0;
      for (let round = 0; round < rounds; round++) {
        for (let i = 0; i < ways.length; i++) {
          const way = ways[(i + round) % ways.length];
          const on = way === "before" && other !== null ? other : disk;
          const run = (): Promise<Figures> => measure(served(on), load, seconds);
          if (way !== "traced") samples.get(way)?.push(await run());
          else {
            const [figures, told] = await traced(disk, `${folder}/trace.json`, run);
            samples.get(way)?.push(figures);
            lost += told.lost_records;
            requests += told.requests;
          }
        }
      }
      report(load.name, samples, { lost, requests });
    }
  } finally {
    for (const each of disks) await stop(each);
    Deno.removeSync(folder, { recursive: true });
  }
}

function report(
  load: string,
  samples: ReadonlyMap<Way, readonly Figures[]>,
  { lost, requests }: { lost: number; requests: number },
): void {
  const plain = samples.get("not traced") ?? [];
  const rows = [[load, "IOPS", "ratio", "µs CPU/IO", "ratio"]];
  for (const [way, figures] of samples) {
    const ratio = (of: (figure: Figures) => number): string =>
      median(figures.map((figure, round) => of(figure) / of(plain[round]))).toFixed(3);
    rows.push([
      way,
      median(figures.map(({ iops }) => iops)).toFixed(0),
      ratio(({ iops }) => iops),
      median(figures.map(({ cpuMicrosecondsPerIo }) => cpuMicrosecondsPerIo)).toFixed(2),
      ratio(({ cpuMicrosecondsPerIo }) => cpuMicrosecondsPerIo),
    ]);
  }
  printColumns(rows);
  console.log(`traced: ${requests} requests, ${lost} records lost\n`);
}

const { ignore, suffix } = needs("dist/blktap", "fio");
if (ignore) console.error(`bench:trace${suffix}`);
else await main();
