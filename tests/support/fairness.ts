/**
 * What a disk under full load does to the latency of another.
 *
 * @module
 */
import { fio } from "./fio.ts";
import { createVhd, type Disk, withTapdisks } from "./served.ts";
import { runOk } from "./tools.ts";

const IMAGE_MIB = 64;

/** Loads of the other disk: fio's options by name. */
const LOADS: Readonly<Record<string, readonly string[]>> = {
  "4 KiB reads, 32 deep": ["rw=randread", "bs=4k", "iodepth=32"],
  "128 KiB writes, 32 deep": ["rw=randwrite", "bs=128k", "iodepth=32"],
};

/**
 * Where programs run when tapdisks have a processor for themselves: the client that is measured goes ahead of
 * the other on the second one.
 */
const TAPDISKS_CPU = "0";
const MEASURED = ["cpus_allowed=1", "nice=-20"];
const OTHER = ["cpus_allowed=1", "nice=19"];

/** Latencies of 4 KiB reads at depth 1. */
export interface Fairness {
  readonly aloneUs: number;
  readonly beside: readonly { readonly load: string; readonly p99Us: number }[];
}

async function p99Us(
  { uri }: Disk,
  seconds: number,
  more: readonly string[] = [],
): Promise<number> {
  const [{ read }] = await fio(uri, [
    ...more,
    ...["rw=randread", "bs=4k", "iodepth=1", `size=${IMAGE_MIB}M`],
    ...["time_based", `runtime=${seconds}`, "ramp_time=1"],
  ]);
  return read.clat_ns.percentile["99.000000"] / 1000;
}

/**
 * Measures a disk alone, and beside another under load.
 *
 * @param together Whether one tapdisk serves both.
 * @param apart Whether tapdisks have a processor for themselves. Otherwise three programs that work all the
 * time may share two processors, and the kernel lets one of them wait for milliseconds.
 */
export async function measureFairness(
  folder: string,
  { seconds, together, apart }: { seconds: number; together: boolean; apart: boolean },
): Promise<Fairness> {
  let fairness: Fairness | undefined;
  await withTapdisks(async (tapdisks, images) => {
    const quiet = await tapdisks.serve(`vhd:${await createVhd(`${images}/quiet.vhd`, IMAGE_MIB)}`);
    const pid = together ? quiet.pid : await tapdisks.spawn();
    const busy = await tapdisks.serve(`vhd:${await createVhd(`${images}/busy.vhd`, IMAGE_MIB)}`, {
      pid,
    });
    const [measured, other] = apart ? [MEASURED, OTHER] : [[], []];
    for (const disk of [quiet, busy]) {
      if (apart) await runOk("taskset", ["-a", "-c", "-p", TAPDISKS_CPU, `${disk.pid}`]);
      await fio(disk.uri, ["rw=write", "bs=1M", `size=${IMAGE_MIB}M`, "iodepth=4"]);
    }
    // A tapdisk that has just started runs without machine code.
    await p99Us(quiet, 2);
    const aloneUs = await p99Us(quiet, seconds, measured);
    const beside: { load: string; p99Us: number }[] = [];
    for (const [load, options] of Object.entries(LOADS)) {
      const running = fio(busy.uri, [
        ...options,
        ...other,
        ...[`size=${IMAGE_MIB}M`, "time_based", `runtime=${seconds + 3}`],
      ]);
      await new Promise((resolve) => setTimeout(resolve, 500));
      beside.push({ load, p99Us: await p99Us(quiet, seconds, measured) });
      await running;
    }
    fairness = { aloneUs, beside };
    await tapdisks.stop(busy);
    await tapdisks.stop(quiet);
  }, { parent: folder });
  if (fairness === undefined) throw new Error("Nothing was measured");
  return fairness;
}
