/**
 * What a scrape of many disks takes, and what it does to a disk under load: tapdisks with 200 disks, which have all
 * had some requests, `blktap exporter` on localhost, and fio on one of them.
 *
 *     deno task bench:scrape [--disks 200] [--per-process 50] [--scrapes 50] [--rounds 5] [--seconds 5]
 *
 * Scrapes come a second after each other, as a server of Prometheus would not be faster. The time of a scrape is
 * from the connection to the last byte. fio takes turns with and without a scrape each second; the ratio is of each
 * round, and then the median.
 *
 * @module
 */
import { Command, InvalidArgumentError } from "commander";
import { fio } from "../support/fio.ts";
import { ManyDisks, type OpenedDisk } from "../support/many_disks.ts";
import { binaryPath, needs, withTempDir } from "../support/tools.ts";
import { measure, median, printColumns, type Workload } from "./measure.ts";
import { cpuSeconds } from "./processor_time.ts";

/** A scrape takes no longer than this, milliseconds. */
const AIM_MS = 50;
const SIZE_BYTES = 64 << 20;
const WARM_UP_SCRAPES = 3;

interface Options {
  readonly disks: number;
  readonly perProcess: number;
  readonly scrapes: number;
  readonly rounds: number;
  readonly seconds: number;
}

function number(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("It must be a whole number above 0.");
}

function options(): Options {
  return new Command("bench:scrape")
    .option("--disks <count>", "disks", number, 200)
    .option("--per-process <count>", "disks of a tapdisk", number, 50)
    .option("--scrapes <count>", "scrapes that are timed", number, 50)
    .option("--rounds <count>", "runs of fio with and without scrapes", number, 5)
    .option("--seconds <seconds>", "length of each run of fio", number, 5)
    .parse(Deno.args, { from: "user" })
    .opts<Options>();
}

/** `blktap exporter` in a process of its own. */
interface Exporter {
  readonly pid: number;
  readonly url: string;
  stop(): Promise<void>;
}

async function startExporter(control: string): Promise<Exporter> {
  const child = new Deno.Command(binaryPath("blktap"), {
    args: ["exporter", "--listen", "127.0.0.1:0"],
    env: { BLKTAP_CONTROL_DIR: control },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const reader = child.stderr.pipeThrough(new TextDecoderStream()).getReader();
  let log = "";
  const stop = async (): Promise<void> => {
    child.kill("SIGTERM");
    while (!(await reader.read()).done);
    await child.status;
  };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error(`blktap exporter ended: ${log}`);
    log += value;
    const [, place] = /Serves metrics at (\S+)\n/.exec(log) ?? [];
    if (place !== undefined) return { pid: child.pid, url: `http://${place}/metrics`, stop };
  }
}

interface Scrape {
  readonly ms: number;
  readonly bytes: number;
  /** How long the exporter waited for tapdisks. */
  readonly gatherMs: number;
}

async function scrape(url: string): Promise<Scrape> {
  const startMs = performance.now();
  const answer = await fetch(url);
  const text = await answer.text();
  const ms = performance.now() - startMs;
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${text}`);
  const [, seconds] = /^blktap_gather_duration_seconds (\S+)$/m.exec(text) ?? [];
  return { ms, bytes: text.length, gatherMs: Number(seconds) * 1000 };
}

/** The time between two scrapes. */
function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 1000));
}

async function timeScrapes({ pid, url }: Exporter, { scrapes, disks }: Options): Promise<void> {
  for (let i = 0; i < WARM_UP_SCRAPES; i++) await scrape(url);
  const before = cpuSeconds(pid);
  const all: Scrape[] = [];
  for (let i = 0; i < scrapes; i++) {
    await pause();
    all.push(await scrape(url));
  }
  const cpuMs = (cpuSeconds(pid) - before) * 1000 / scrapes;
  const times = all.map(({ ms }) => ms).sort((a, b) => a - b);
  const bytes = median(all.map((each) => each.bytes));
  const ninth = times[Math.ceil(times.length * 0.9) - 1];
  console.log(
    `a scrape of ${disks} disks: ${median(times).toFixed(1)} ms (aim: ${AIM_MS}), ` +
      `9 of 10 below ${ninth.toFixed(1)} ms, the slowest ${(times.at(-1) ?? 0).toFixed(1)} ms`,
  );
  console.log(
    `of these, tapdisks were asked for ${
      median(all.map(({ gatherMs }) => gatherMs)).toFixed(1)
    } ms; ` +
      `${cpuMs.toFixed(1)} ms of processor time of the exporter; ${(bytes / 1e6).toFixed(2)} MB`,
  );
}

const LOAD: Workload = {
  name: "randrw",
  direction: "read",
  blockBytes: 4096,
  options: ["rw=randrw", "bs=4k", "iodepth=16", "randrepeat=0", "norandommap"],
};

function uriOf({ pid, minor }: OpenedDisk, control: string): string {
  return `nbd+unix:///?socket=${control}/nbd${pid}.${minor}`;
}

/** IOPS of a disk while it is scraped each second, and while it is not. */
async function timeLoad(
  disk: OpenedDisk,
  { control, url, rounds, seconds }: Options & { control: string; url: string },
): Promise<void> {
  const served = {
    pid: disk.pid,
    uri: uriOf(disk, control),
    sizeBytes: SIZE_BYTES,
    stop: () => Promise.resolve(),
  };
  const iops = async (): Promise<number> => (await measure(served, LOAD, seconds)).iops;
  const scraped = async (): Promise<number> => {
    let isOver = false;
    const scraping = (async () => {
      while (!isOver) {
        await scrape(url);
        await pause();
      }
    })();
    try {
      return await iops();
    } finally {
      isOver = true;
      await scraping;
    }
  };
  await iops();
  const [without, beside]: [number[], number[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    // Turns in another order each round, so that noise affects both equally.
    if (round % 2 === 0) without.push(await iops());
    beside.push(await scraped());
    if (round % 2 === 1) without.push(await iops());
  }
  const ratio = median(beside.map((figure, round) => figure / without[round]));
  printColumns([
    ["reads of randrw", "IOPS", "ratio"],
    ["no scrapes", median(without).toFixed(0), "1.000"],
    ["a scrape each second", median(beside).toFixed(0), ratio.toFixed(3)],
  ]);
}

/** Some requests to each disk, so that their histograms are no zeros. */
async function fill(disks: readonly OpenedDisk[], control: string): Promise<void> {
  for (const disk of disks) {
    await fio(uriOf(disk, control), ["rw=randrw", "bs=4k", "iodepth=8", "size=1m"]);
  }
}

async function main(): Promise<void> {
  const chosen = options();
  await withTempDir(async (folder) => {
    const many = new ManyDisks(folder, chosen.perProcess);
    try {
      await many.open(await many.images(chosen.disks));
      await fill(many.disks, many.control);
      const exporter = await startExporter(many.control);
      try {
        await timeScrapes(exporter, chosen);
        await timeLoad(many.disks[0], { ...chosen, control: many.control, url: exporter.url });
      } finally {
        await exporter.stop();
      }
      await many.close();
    } finally {
      many.killAll();
    }
  });
}

const { ignore, suffix } = needs("dist/blktap", "fio");
if (ignore) console.error(`bench:scrape${suffix}`);
else await main();
