/**
 * Measures disks over TCP with TLS: tapdisk and nbdkit as servers of the same file, and the `nbds:`
 * driver of another tapdisk as their client.
 *
 *     deno task bench:tls [--rounds 3] [--seconds 3] [--size 512] [--only plain,tapdisk,nbdkit]
 *
 * The content is a raw file of random data on tmpfs. fio loads the client's disk: 4 KiB random at
 * depths 1 and 32, 128 KiB sequential at depth 8. The servers alternate within each workload of each
 * round. The table has medians: IOPS, and the processor time for an I/O of the server and of the
 * client. `plain` is tapdisk without TLS.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { fio } from "../support/fio.ts";
import { makePki } from "../support/pki.ts";
import { Tapdisks } from "../support/served.ts";
import { findTool, runOk } from "../support/tools.ts";
import { median, type Workload } from "./measure.ts";
import { WORKLOADS } from "./nbd.ts";
import { cpuSeconds } from "./processor_time.ts";

const MIB = 1 << 20;

/** A server under load. */
interface Served {
  readonly pid: number;
  /** Its export, as an image. */
  readonly image: string;
  stop(): Promise<void>;
}

interface Place {
  readonly folder: string;
  readonly pki: string;
  readonly file: string;
}

async function tapdisk({ folder, pki, file }: Place, isPlain: boolean): Promise<Served> {
  const tapdisks = new Tapdisks(`${folder}/server`);
  const { pid, minor } = await tapdisks.serve(`aio:${file}`);
  const options = isPlain ? [] : ["--tls-certificates", pki];
  const device = ["-p", `${pid}`, "-m", `${minor}`];
  const where = await tapdisks.tapCtlOk("serve", ...device, "--listen", "127.0.0.1:0", ...options);
  const port = where.split(":")[1];
  const image = isPlain
    ? `nbd:127.0.0.1:${port}`
    : `nbds://localhost:${port}/?tls-certificates=${pki}`;
  return { pid, image, stop: () => tapdisks.finish() };
}

function freePort(): number {
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const { port } = listener.addr as Deno.NetAddr;
  listener.close();
  return port;
}

async function nbdkit({ pki, file }: Place): Promise<Served> {
  const port = freePort();
  const child = new Deno.Command(findTool("nbdkit") ?? "nbdkit", {
    args: [
      ...["--foreground", "-i", "127.0.0.1", "-p", `${port}`],
      ...["--tls=require", `--tls-certificates=${pki}`, "file", file],
    ],
    stdin: "null",
    stdout: "null",
    stderr: "inherit",
  }).spawn();
  await untilListens(port);
  return {
    pid: child.pid,
    image: `nbds://localhost:${port}/?tls-certificates=${pki}`,
    async stop(): Promise<void> {
      child.kill("SIGTERM");
      await child.status;
    },
  };
}

async function untilListens(port: number): Promise<void> {
  for (let i = 0;; i++) {
    try {
      return (await Deno.connect({ hostname: "127.0.0.1", port })).close();
    } catch (error) {
      if (i === 200) throw error;
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }
}

const SERVERS: Readonly<Record<string, (place: Place) => Promise<Served>>> = {
  plain: (place) => tapdisk(place, true),
  tapdisk: (place) => tapdisk(place, false),
  nbdkit,
};

interface Sample {
  readonly iops: number;
  /** Processor time for an I/O, microseconds. */
  readonly server: number;
  readonly client: number;
}

async function measure(
  served: Served,
  folder: string,
  { options, direction }: Workload,
  length: readonly string[],
): Promise<Sample> {
  const clients = new Tapdisks(`${folder}/client`);
  const { pid, uri } = await clients.serve(served.image);
  const pids = [served.pid, pid];
  const before = pids.map(cpuSeconds);
  const [job] = await fio(uri, [...options, ...length]);
  const { iops, total_ios } = job[direction];
  const [server, client] = pids.map((each, i) => (cpuSeconds(each) - before[i]) / total_ios * 1e6);
  await clients.finish();
  return { iops, server, client };
}

function printRow(workload: string, name: string, samples: readonly Sample[]): void {
  const iops = Math.round(median(samples.map((sample) => sample.iops)));
  const [server, client] = (["server", "client"] as const)
    .map((side) => median(samples.map((sample) => sample[side])).toFixed(1));
  const head = `${workload.padEnd(13)} ${name.padEnd(8)} ${String(iops).padStart(7)} IOPS`;
  console.log(`${head}, server ${server.padStart(6)} µs, client ${client.padStart(6)} µs an I/O`);
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      rounds: { type: "string", default: "3" },
      seconds: { type: "string", default: "3" },
      size: { type: "string", default: "512" },
      only: { type: "string", default: Object.keys(SERVERS).join(",") },
    },
  });
  const sizeMib = Number(values.size);
  const names = values.only.split(",").filter((name) => name in SERVERS);
  const length = ["time_based", `runtime=${values.seconds}`, `size=${sizeMib}M`];
  const folder = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "blktap-bench-" });
  try {
    for (const part of ["server", "client"]) Deno.mkdirSync(`${folder}/${part}`);
    const pki = await makePki(`${folder}/pki`);
    const file = `${folder}/disk.raw`;
    const random = ["if=/dev/urandom", `of=${file}`, `bs=${MIB}`, `count=${sizeMib}`];
    await runOk("dd", random, { timeoutMs: 300_000 });
    for (const workload of WORKLOADS) {
      const samples = new Map<string, Sample[]>(names.map((name) => [name, []]));
      for (let round = 0; round < Number(values.rounds); round++) {
        for (const [name, taken] of samples) {
          const served = await SERVERS[name]({ folder, pki, file });
          taken.push(await measure(served, folder, workload, length));
          await served.stop();
        }
      }
      for (const [name, taken] of samples) printRow(workload.name, name, taken);
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

if (import.meta.main) await main();
