/**
 * Measures the speed of served disks and compares it with other NBD servers.
 *
 *     deno task bench [--rounds 3] [--seconds 3] [--where tmpfs,disk] [--only vhd,nbdkit-raw]
 *                     [--queue auto,libaio,io_uring] [--workloads randread-32,…] [--size 1024]
 *                     [--no-memory] [--no-qcow2] [--json FILE]
 *
 * Every server serves the same content, 1 GiB of random data: tapdisk as VHD and raw, qemu-nbd as
 * VHD, nbdkit's file plugin raw; from tmpfs (/dev/shm) and from disk (/var/tmp). fio's nbd engine
 * generates the load: 4 KiB random at depths 1 and 32, 128 KiB sequential at depth 8. The servers
 * alternate within each workload of each round, so that noise affects all of them equally. The
 * table has medians. Besides IOPS, it has the processor time that a server uses for an I/O (utime
 * and stime of all its threads); fio uses the rest of the machine. `--queue` serves the tapdisk
 * images once on each of the given queues.
 *
 * At the end the program prints which of the project's targets the run has met on tmpfs, and the
 * memory of each further disk in a process, and then runs the benchmark of QCOW2 images
 * (`qcow2.ts`). `--json` writes all samples to a file. The machine
 * should be idle; single runs still vary by a tenth or more.
 *
 * @module
 */
import { Command, InvalidArgumentError } from "commander";
import { needsServed } from "../support/served.ts";
import { type Figures, measure, type Served, type Workload } from "./measure.ts";
import { measureMemory } from "./nbd_memory.ts";
import { printReport } from "./nbd_report.ts";
import {
  makeContent,
  type QueueName,
  queueNames,
  type ServerName,
  serverNames,
  SERVERS,
  serversOn,
} from "./nbd_servers.ts";
import { benchQcow2, QCOW2_LOADS } from "./qcow2.ts";

/** One run of fio against one server. */
export interface Sample extends Figures {
  readonly where: string;
  readonly workload: string;
  readonly server: ServerName;
  readonly round: number;
}

const KIB = 1024;

function workload(rw: string, blockKib: number, depth: number): Workload {
  const direction = rw.endsWith("read") ? "read" : "write";
  const options = [
    `rw=${rw}`,
    `bs=${blockKib}k`,
    `iodepth=${depth}`,
    "randrepeat=0",
    "norandommap",
  ];
  return { name: `${rw}-${depth}`, direction, blockBytes: blockKib * KIB, options };
}

/** All workloads, in the order of their runs. */
export const WORKLOADS: readonly Workload[] = [
  workload("randread", 4, 1),
  workload("randwrite", 4, 1),
  workload("randread", 4, 32),
  workload("randwrite", 4, 32),
  workload("read", 128, 8),
  workload("write", 128, 8),
];

const PLACES: Readonly<Record<string, string>> = { tmpfs: "/dev/shm", disk: "/var/tmp" };

interface Options {
  readonly rounds: number;
  readonly seconds: number;
  readonly where: string[];
  readonly only: (typeof serverNames)[number][];
  readonly queue: QueueName[];
  readonly workloads: string[];
  readonly size: number;
  readonly memory: boolean;
  readonly qcow2: boolean;
  readonly json?: string;
}

function number(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("It must be a whole number above 0.");
}

function choice<T extends string>(allowed: readonly T[]): (text: string) => T[] {
  return (text) =>
    text.split(",").map((word) => {
      const found = allowed.find((candidate) => candidate === word);
      if (found === undefined) throw new InvalidArgumentError(`One of ${allowed.join(", ")}.`);
      return found;
    });
}

function parse(): Options {
  const places = Object.keys(PLACES);
  const names = WORKLOADS.map(({ name }) => name);
  return new Command("bench")
    .option("--rounds <count>", "rounds", number, 3)
    .option("--seconds <seconds>", "length of each run", number, 3)
    .option("--where <places>", places.join(","), choice(places), places)
    .option("--only <servers>", serverNames.join(","), choice(serverNames), [...serverNames])
    .option("--queue <queues>", queueNames.join(","), choice(queueNames), ["auto"])
    .option("--workloads <names>", names.join(","), choice(names), names)
    .option("--size <mebibytes>", "size of the disk", number, 1024)
    .option("--no-memory", "do not measure memory")
    .option("--no-qcow2", "do not measure QCOW2 images")
    .option("--json <file>", "write all samples to a file")
    .parse(Deno.args, { from: "user" })
    .opts<Options>();
}

/** Runs all rounds in one place; prints each sample to standard error at once. */
async function runIn(where: string, options: Options, samples: Sample[]): Promise<void> {
  const folder = Deno.makeTempDirSync({ dir: PLACES[where], prefix: "blktap-bench-" });
  const served: [ServerName, Served][] = [];
  const servers = options.only.flatMap((name) => serversOn(options.queue, name));
  try {
    const content = await makeContent(folder, { sizeMib: options.size, servers });
    for (const name of servers) {
      served.push([name, await SERVERS[name].start(folder, content)]);
    }
    for (let round = 1; round <= options.rounds; round++) {
      for (const workload of WORKLOADS) {
        if (!options.workloads.includes(workload.name)) continue;
        for (const [server, each] of served) {
          const figures = await measure(each, workload, options.seconds);
          samples.push({ where, workload: workload.name, server, round, ...figures });
          console.error(
            `${where} round ${round} ${workload.name} ${server}: ${
              Math.round(figures.iops)
            } IOPS, ` +
              `${figures.cpuMicrosecondsPerIo.toFixed(1)} µs`,
          );
        }
      }
    }
  } finally {
    // All servers are stopped, also when the stop of one fails.
    await Promise.allSettled(served.map(([, each]) => each.stop()));
    Deno.removeSync(folder, { recursive: true });
  }
}

async function main(): Promise<void> {
  const options = parse();
  const { ignore, suffix } = needsServed("fio", "qemu-nbd", "qemu-img", "nbdkit");
  if (ignore) {
    console.error(`Cannot run the benchmark${suffix}`);
    Deno.exit(1);
  }
  const samples: Sample[] = [];
  for (const where of options.where) await runIn(where, options, samples);
  const memoryMib = options.memory ? await measureMemory() : undefined;
  printReport(samples, { memoryMib });
  const { rounds, seconds, size } = options;
  if (options.qcow2) await benchQcow2({ rounds, seconds, size, loads: QCOW2_LOADS });
  if (options.json !== undefined) {
    Deno.writeTextFileSync(options.json, JSON.stringify({ samples, memoryMib }, null, 2));
  }
}

if (import.meta.main) await main();
