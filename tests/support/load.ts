/**
 * A load test: many disks in one tapdisk, some of them under fio with verification. It measures
 * operations, memory and descriptors.
 *
 * @module
 */
import { fio } from "./fio.ts";
import {
  createVhd,
  type Disk,
  openDescriptors,
  privateMemoryKib,
  settledDescriptors,
  vhdUtilOk,
  withTapdisks,
} from "./served.ts";

const IMAGE_MIB = 64;
const SAMPLE_MS = 1000;

export interface LoadOptions {
  readonly disks: number;
  readonly clients: number;
  readonly seconds: number;
  readonly folder?: string;
}

export interface LoadFigures {
  /** Operations that ended at fio's clients, including the reads of the verification. */
  readonly operations: number;
  readonly bytes: number;
  /** Processor time of tapdisk under load, seconds. */
  readonly processorSeconds: number;
  /**
   * Its private memory: with one disk, with all disks, after a fifth of the load, at the end of the
   * load.
   */
  readonly memoryKib: { one: number; all: number; early: number; end: number; emptied: number };
  /** Its descriptors: with one disk, with all disks under load, with one disk again. */
  readonly descriptors: { one: number; all: number; emptied: number };
}

/**
 * Serves `disks` images in one tapdisk. fio writes to `clients` of them and verifies for `seconds`.
 * Then all disks are closed except one, which keeps the process alive.
 *
 * @throws {Error} When fio finds wrong data, a request fails, or an image does not check clean.
 */
export async function holdLoad(options: LoadOptions): Promise<LoadFigures> {
  let figures: LoadFigures | undefined;
  await withTapdisks(async (tapdisks, folder) => {
    const pid = await tapdisks.spawn();
    const keeper = await tapdisks.serve(`vhd:${await createVhd(`${folder}/keeper.vhd`, 1)}`, {
      pid,
    });
    const one = [privateMemoryKib(pid), await settledDescriptors(pid)];
    const paths: string[] = [];
    const served: Disk[] = [];
    for (let i = 0; i < options.disks; i++) {
      paths.push(await createVhd(`${folder}/${i}.vhd`, IMAGE_MIB));
      served.push(await tapdisks.serve(`vhd:${paths[i]}`, { pid }));
    }
    const all = privateMemoryKib(pid);
    const load = await runLoad(pid, served.slice(0, options.clients), options);
    for (const disk of served) await tapdisks.stop(disk);
    const emptied = [privateMemoryKib(pid), await settledDescriptors(pid)];
    for (const path of paths) await vhdUtilOk("check", "-n", path);
    await tapdisks.stop(keeper);
    const { operations, bytes, processorSeconds, early, end } = load;
    figures = {
      ...{ operations, bytes, processorSeconds },
      memoryKib: { one: one[0], all, early, end, emptied: emptied[0] },
      descriptors: { one: one[1], all: load.descriptors, emptied: emptied[1] },
    };
  }, { parent: options.folder });
  if (figures === undefined) throw new Error("The load was never held");
  return figures;
}

/** Runs fio on these disks at once; each client is a job with its own process. */
async function runLoad(pid: number, disks: readonly Disk[], { seconds }: LoadOptions) {
  const startSeconds = processorSeconds(pid);
  const sampling = sampleMemory(pid, seconds);
  const jobs = await Promise.all([
    fio(disks[0].uri, [
      ...["rw=randwrite", "bssplit=4k/70:16k/20:64k/10", "iodepth=4", `size=${IMAGE_MIB}M`],
      ...["verify=crc32c", "verify_backlog=512", "verify_fatal=1", "verify_interval=4k"],
      ...["time_based", `runtime=${seconds}`, "randrepeat=0", "fsync=256"],
    ], {
      jobs: disks.map(({ uri }, i) => [`name=client${i}`, `uri=${uri}`]),
      timeoutMs: (seconds + 120) * 1000,
    }),
    sampling,
  ]);
  const [clients, samples] = jobs;
  const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
  return {
    operations: sum(clients.map(({ read, write }) => read.total_ios + write.total_ios)),
    bytes: sum(clients.map(({ read, write }) => read.io_bytes + write.io_bytes)),
    processorSeconds: processorSeconds(pid) - startSeconds,
    ...samples,
  };
}

async function sampleMemory(
  pid: number,
  seconds: number,
): Promise<{ early: number; end: number; descriptors: number }> {
  const samples: number[] = [];
  const endMs = performance.now() + seconds * 1000;
  while (performance.now() < endMs - SAMPLE_MS) {
    await new Promise((resolve) => setTimeout(resolve, SAMPLE_MS));
    samples.push(privateMemoryKib(pid));
  }
  const fifth = Math.max(1, Math.floor(samples.length / 5));
  return {
    early: median(samples.slice(fifth, 2 * fifth + 1)),
    end: median(samples.slice(-fifth)),
    descriptors: openDescriptors(pid),
  };
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

/** Processor time of a process in seconds. */
function processorSeconds(pid: number): number {
  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  // utime and stime, in ticks of 10 ms.
  return (Number(fields[11]) + Number(fields[12])) / 100;
}
