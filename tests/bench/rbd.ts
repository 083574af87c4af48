/**
 * Measures the speed of a served image on a Ceph cluster, and compares it with qemu-nbd on the same
 * image. (nbdkit has no plugin for such images in Debian.)
 *
 *     deno task bench:rbd [--rounds 3] [--seconds 3] [--size 128] [--loads randwrite-32,…]
 *
 * The cluster is that of the tests: a monitor and an OSD in memory on this machine, so most of the time
 * is the OSD's. The image holds data everywhere. fio's nbd engine generates the load; the servers take
 * turns within each load of each round. qemu-nbd runs with its default, a cache in librbd (`writeback`),
 * and without that (`none`), as tapdisk does. The table has medians.
 *
 * @module
 */
import { Command } from "commander";
import { CephCluster, needsCeph } from "../support/ceph.ts";
import { Tapdisks } from "../support/served.ts";
import { runOk } from "../support/tools.ts";
import { type Figures, measure, median, printColumns, type Served } from "./measure.ts";
import { WORKLOADS } from "./nbd.ts";
import { startForeground } from "./nbd_servers.ts";

const MIB = 1 << 20;
const SERVERS = ["tapdisk", "qemu-nbd writeback", "qemu-nbd none"] as const;
type Server = (typeof SERVERS)[number];
const LOADS = WORKLOADS.filter(({ name }) => !name.endsWith("-1"));

interface Sample extends Figures {
  readonly load: string;
  readonly server: Server;
}

async function startServer(
  server: Server,
  { cluster, folder, sizeBytes }: { cluster: CephCluster; folder: string; sizeBytes: number },
): Promise<Served> {
  if (server === "tapdisk") {
    const tapdisks = new Tapdisks(folder);
    const { pid, uri } = await tapdisks.serve(cluster.image("bench"));
    return { pid, uri, sizeBytes, stop: () => tapdisks.finish() };
  }
  const socket = `${folder}/q.sock`;
  const [, cache] = server.split(" ");
  const image = `rbd:rbd/bench:conf=${cluster.conf}`;
  const args = ["-t", "-f", "raw", "-k", socket, `--cache=${cache}`, image];
  return await startForeground("qemu-nbd", args, { socket, sizeBytes });
}

async function bench(
  { rounds, seconds, size, loads }: {
    rounds: number;
    seconds: number;
    size: number;
    loads: readonly string[];
  },
): Promise<Sample[]> {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-bench-" });
  const cluster = await CephCluster.start();
  const samples: Sample[] = [];
  try {
    await cluster.rbd("create", "--size", `${size}M`, "rbd/bench");
    const fill = ["--io-type", "write", "--io-size", "4M", "--io-total", `${size}M`];
    await cluster.rbd("bench", ...fill, "rbd/bench");
    for (let round = 1; round <= rounds; round++) {
      for (const load of LOADS.filter(({ name }) => loads.includes(name))) {
        for (const server of SERVERS) {
          const served = await startServer(server, { cluster, folder, sizeBytes: size * MIB });
          // Programs that have just started are slow.
          await measure(served, load, 1);
          const figures = await measure(served, load, seconds);
          await served.stop();
          samples.push({ load: load.name, server, ...figures });
          const { iops, cpuMicrosecondsPerIo: cpu } = figures;
          console.error(`${load.name}, ${server}: ${iops.toFixed(0)} IOPS, ${cpu.toFixed(1)} µs`);
        }
      }
    }
  } finally {
    await cluster.stop();
    await runOk("rm", ["-rf", folder]);
  }
  return samples;
}

function printTable(samples: readonly Sample[]): void {
  const rows = [["An image on Ceph", "IOPS", "µs CPU/IO", "ours ×", "our CPU ×"]];
  for (const { name } of LOADS) {
    const of = (server: Server, figure: "iops" | "cpuMicrosecondsPerIo"): number =>
      median(
        samples.filter((sample) => sample.load === name && sample.server === server)
          .map((sample) => sample[figure]),
      );
    for (const server of SERVERS) {
      if (!samples.some(({ load }) => load === name)) continue;
      const [iops, cpu] = [of(server, "iops"), of(server, "cpuMicrosecondsPerIo")];
      rows.push([
        `${name.padEnd(14)}${server}`,
        iops.toFixed(0),
        cpu.toFixed(1),
        (of("tapdisk", "iops") / iops).toFixed(2),
        (of("tapdisk", "cpuMicrosecondsPerIo") / cpu).toFixed(2),
      ]);
    }
  }
  console.log("");
  printColumns(rows);
}

if (import.meta.main) {
  const { ignore, suffix } = needsCeph("fio", "qemu-nbd");
  if (ignore) {
    console.error(`Nothing is measured${suffix}`);
    Deno.exit(1);
  }
  const program = new Command()
    .option("--rounds <count>", "rounds of all loads", Number, 3)
    .option("--seconds <count>", "seconds of each run", Number, 3)
    .option("--size <mib>", "MiB of the image", Number, 128)
    .option(
      "--loads <names>",
      "which loads",
      (names: string) => names.split(","),
      LOADS.map(({ name }) => name),
    );
  program.parse(Deno.args, { from: "user" });
  printTable(await bench(program.opts()));
}
