import { fio } from "../support/fio.ts";
import { cpuSeconds } from "./processor_time.ts";

/** A load of fio. */
export interface Workload {
  readonly name: string;
  readonly direction: "read" | "write";
  readonly blockBytes: number;
  readonly options: readonly string[];
}

/** A running server. */
export interface Served {
  readonly pid: number;
  readonly uri: string;
  readonly sizeBytes: number;
  stop(): Promise<void>;
}

/** What a run of fio against a server showed. */
export interface Figures {
  readonly iops: number;
  readonly bytesPerSecond: number;
  /** utime and stime of all threads of the server. */
  readonly cpuMicrosecondsPerIo: number;
}

/** Runs fio against a server for some seconds. */
export async function measure(
  served: Served,
  { options, direction, blockBytes }: Workload,
  seconds: number,
): Promise<Figures> {
  const before = cpuSeconds(served.pid);
  const length = ["time_based", `runtime=${seconds}`, `size=${served.sizeBytes}`];
  const [job] = await fio(served.uri, [...options, ...length]);
  const cpu = cpuSeconds(served.pid) - before;
  const { iops, total_ios } = job[direction];
  return {
    iops,
    bytesPerSecond: iops * blockBytes,
    cpuMicrosecondsPerIo: (cpu / Math.max(1, total_ios)) * 1e6,
  };
}

/** The median of some numbers; NaN without numbers. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  if (sorted.length % 2 === 1) return sorted[middle];
  return (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Prints a table: the first column is text, the others are numbers. */
export function printColumns(rows: readonly (readonly string[])[]): void {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  for (const row of rows) {
    const cells = row.map((cell, column) =>
      column === 0 ? cell.padEnd(widths[column]) : cell.padStart(widths[column])
    );
    console.log(cells.join("  "));
  }
}
