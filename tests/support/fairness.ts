/**
 * What a disk under full load does to the latency of another.
 *
 * @module
 */
import { fio } from "./fio.ts";
import { createVhd, type Disk, withTapdisks } from "./served.ts";

const IMAGE_MIB = 64;

/** Loads of the other disk: fio's options by name. */
const LOADS: Readonly<Record<string, readonly string[]>> = {
  "4 KiB reads, 32 deep": ["rw=randread", "bs=4k", "iodepth=32"],
  "128 KiB writes, 32 deep": ["rw=randwrite", "bs=128k", "iodepth=32"],
};

/** Latencies of 4 KiB reads at depth 1. */
export interface Fairness {
  readonly aloneUs: number;
  readonly beside: readonly { readonly load: string; readonly p99Us: number }[];
}

async function p99Us({ uri }: Disk, seconds: number): Promise<number> {
  const [{ read }] = await fio(uri, [
    ...["rw=randread", "bs=4k", "iodepth=1", `size=${IMAGE_MIB}M`],
    ...["time_based", `runtime=${seconds}`, "ramp_time=1"],
  ]);
  return read.clat_ns.percentile["99.000000"] / 1000;
}

/**
 * Measures a disk alone, and beside another under load.
 *
 * @param together Whether one tapdisk serves both.
 */
export async function measureFairness(
  folder: string,
  { seconds, together }: { seconds: number; together: boolean },
): Promise<Fairness> {
  let fairness: Fairness | undefined;
  await withTapdisks(async (tapdisks, images) => {
    const quiet = await tapdisks.serve(`vhd:${await createVhd(`${images}/quiet.vhd`, IMAGE_MIB)}`);
    const pid = together ? quiet.pid : await tapdisks.spawn();
    const busy = await tapdisks.serve(`vhd:${await createVhd(`${images}/busy.vhd`, IMAGE_MIB)}`, {
      pid,
    });
    for (const disk of [quiet, busy]) {
      await fio(disk.uri, ["rw=write", "bs=1M", `size=${IMAGE_MIB}M`, "iodepth=4"]);
    }
    // A tapdisk that has just started runs without machine code.
    await p99Us(quiet, 2);
    const aloneUs = await p99Us(quiet, seconds);
    const beside: { load: string; p99Us: number }[] = [];
    for (const [load, options] of Object.entries(LOADS)) {
      const running = fio(busy.uri, [
        ...options,
        ...[`size=${IMAGE_MIB}M`, "time_based", `runtime=${seconds + 3}`],
      ]);
      await new Promise((resolve) => setTimeout(resolve, 500));
      beside.push({ load, p99Us: await p99Us(quiet, seconds) });
      await running;
    }
    fairness = { aloneUs, beside };
    await tapdisks.stop(busy);
    await tapdisks.stop(quiet);
  }, { parent: folder });
  if (fairness === undefined) throw new Error("Nothing was measured");
  return fairness;
}
