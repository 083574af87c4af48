/**
 * fio with its NBD engine, and its report.
 *
 * @module
 */
import { run } from "./tools.ts";

/** fio's results for one direction of a job. */
export interface FioDirection {
  readonly io_bytes: number;
  readonly total_ios: number;
  readonly iops: number;
  readonly bw_bytes: number;
  readonly runtime: number;
  /** Latencies by percentile, such as `99.000000`. */
  readonly clat_ns: { readonly percentile: Readonly<Record<string, number>> };
}

/** fio's results for a job. */
export interface FioJob {
  readonly jobname: string;
  readonly error: number;
  readonly read: FioDirection;
  readonly write: FioDirection;
  readonly trim: FioDirection;
}

/**
 * Runs fio against an export. `options` are options of fio without the dashes: `rw=randread`.
 * `jobs` are further jobs, each a list of options that begins with its name; `options` apply to all
 * of them. A run may take four minutes by default: machines for tests have slow moments.
 *
 * @throws {Error} With the output of fio besides its report, when fio finds wrong data or fails.
 */
export async function fio(
  uri: string,
  options: readonly string[],
  { jobs = [["name=job"]], timeoutMs = 240_000, signal }: {
    jobs?: readonly (readonly string[])[];
    timeoutMs?: number;
    signal?: AbortSignal;
  } = {},
): Promise<FioJob[]> {
  const common = ["ioengine=nbd", `uri=${uri}`, ...options];
  // Options before the first name are fio's defaults for all jobs.
  const args = [...common, ...jobs.flat()].map((option) => `--${option}`);
  const folder = Deno.makeTempDirSync({ prefix: "fio-" });
  try {
    // fio stores the state of a verification in its working folder.
    const options = { cwd: folder, timeoutMs, signal };
    const { code, stdout, stderr } = await run("fio", ["--output-format=json", ...args], options);
    // The engine prints a line before the report.
    const start = stdout.search(/^\{/m);
    if (code !== 0 || start < 0) {
      const before = start < 0 ? stdout : stdout.slice(0, start);
      throw new Error(`fio ${args.join(" ")} ended with status ${code}\n${before}${stderr}`);
    }
    const report: { jobs: FioJob[] } = JSON.parse(stdout.slice(start));
    return report.jobs;
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}
