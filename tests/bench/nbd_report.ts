import { median, printColumns } from "./measure.ts";
import type { Sample } from "./nbd.ts";
import { type ServerName, SERVERS } from "./nbd_servers.ts";

/** A measured value of a sample. */
type Figure = "iops" | "cpuMicrosecondsPerIo";

/** A target of the project, on tmpfs, by medians of one run. */
interface Target {
  readonly workload: string;
  readonly figure: Figure;
  readonly peer: ServerName;
  /** Our VHD's value divided by the peer's: a minimum; for processor time a maximum. */
  readonly ratio: number;
}

const TARGETS: readonly Target[] = [
  { workload: "randread-32", figure: "iops", peer: "nbdkit-raw", ratio: 1.2 },
  { workload: "randwrite-32", figure: "iops", peer: "nbdkit-raw", ratio: 1 },
  { workload: "randread-32", figure: "iops", peer: "qemu-vhd", ratio: 1.5 },
  { workload: "randwrite-32", figure: "iops", peer: "qemu-vhd", ratio: 5 },
  { workload: "randread-32", figure: "cpuMicrosecondsPerIo", peer: "nbdkit-raw", ratio: 0.75 },
  { workload: "randwrite-32", figure: "cpuMicrosecondsPerIo", peer: "nbdkit-raw", ratio: 0.75 },
  { workload: "read-8", figure: "iops", peer: "nbdkit-raw", ratio: 1 },
  { workload: "write-8", figure: "iops", peer: "nbdkit-raw", ratio: 1 },
  { workload: "randread-1", figure: "iops", peer: "nbdkit-raw", ratio: 1 },
  { workload: "randwrite-1", figure: "iops", peer: "nbdkit-raw", ratio: 1 },
];
const MEMORY_TARGET_MIB = 6;

/** Medians of the samples, by place, workload and server. */
class Medians {
  readonly #samples: readonly Sample[];

  constructor(samples: readonly Sample[]) {
    this.#samples = samples;
  }

  of(where: string, workload: string, server: ServerName, figure: Figure): number {
    const mine = this.#samples.filter((sample) =>
      sample.where === where && sample.workload === workload && sample.server === server
    );
    return median(mine.map((sample) => sample[figure]));
  }
}

/** A number for a table; empty without a run. */
function shown(value: number, digits: number, unit = ""): string {
  return Number.isFinite(value) ? `${value.toFixed(digits)}${unit}` : "-";
}

function printPlace(where: string, samples: readonly Sample[], medians: Medians): void {
  const here = samples.filter((sample) => sample.where === where);
  const workloads = [...new Set(here.map(({ workload }) => workload))];
  const servers = [...new Set(here.map(({ server }) => server))];
  const rows = [["", "IOPS", "MB/s", "µs CPU/IO", "× nbdkit raw", "× qemu VHD", "CPU × nbdkit"]];
  for (const workload of workloads) {
    for (const server of servers) {
      const of = (name: ServerName, figure: Figure): number =>
        medians.of(where, workload, name, figure);
      const iops = of(server, "iops");
      const cpu = of(server, "cpuMicrosecondsPerIo");
      const bytes = here.filter((sample) =>
        sample.workload === workload && sample.server === server
      )
        .map(({ bytesPerSecond }) => bytesPerSecond);
      rows.push([
        `${workload.padEnd(13)}${SERVERS[server].title}`,
        shown(iops, 0),
        shown(median(bytes) / 1e6, 0),
        shown(cpu, 1),
        shown(iops / of("nbdkit-raw", "iops"), 2),
        shown(iops / of("qemu-vhd", "iops"), 2),
        shown(cpu / of("nbdkit-raw", "cpuMicrosecondsPerIo"), 2),
      ]);
    }
  }
  console.log(`\nMedians on ${where}`);
  printColumns(rows);
}

function printTargets(medians: Medians, memoryMib: number | undefined): void {
  const rows = [["Targets, VHD on tmpfs", "wanted", "found", ""]];
  for (const { workload, figure, peer, ratio } of TARGETS) {
    const of = (server: ServerName): number => medians.of("tmpfs", workload, server, figure);
    const found = of("vhd") / of(peer);
    if (!Number.isFinite(found)) continue;
    const isCpu = figure === "cpuMicrosecondsPerIo";
    const isMet = isCpu ? found <= ratio : found >= ratio;
    rows.push([
      `${workload}, ${isCpu ? "CPU per I/O" : "IOPS"} over ${SERVERS[peer].title}`,
      `${isCpu ? "≤" : "≥"} ${ratio.toFixed(2)}`,
      found.toFixed(2),
      isMet ? "met" : "MISSED",
    ]);
  }
  if (memoryMib !== undefined) {
    const isMet = memoryMib <= MEMORY_TARGET_MIB;
    rows.push([
      "memory of each further disk, MiB",
      `≤ ${MEMORY_TARGET_MIB.toFixed(2)}`,
      memoryMib.toFixed(2),
      isMet ? "met" : "MISSED",
    ]);
  }
  console.log("");
  printColumns(rows);
}

/** Prints the medians of each place, and the targets. */
export function printReport(
  samples: readonly Sample[],
  { memoryMib }: { memoryMib: number | undefined },
): void {
  const medians = new Medians(samples);
  for (const where of new Set(samples.map((sample) => sample.where))) {
    printPlace(where, samples, medians);
  }
  printTargets(medians, memoryMib);
}
