import { fio } from "../support/fio.ts";
import { createVhd, Tapdisks } from "../support/served.ts";

const DISKS = 10;
const DISK_MIB = 256;
/** The work on each disk: queue depth and block sizes of a typical guest. */
const WORK = ["rw=randrw", "bssplit=4k/70:64k/30", "iodepth=32", "io_size=32M", "size=128M"];

/** Proportional memory (PSS) of a process, MiB. */
function proportionalMib(pid: number): number {
  const rollup = Deno.readTextFileSync(`/proc/${pid}/smaps_rollup`);
  return Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1]) / 1024;
}

/**
 * The memory of each further disk in a tapdisk after some work, MiB: the mean of ten disks after a
 * first one that is not counted.
 */
export async function measureMemory(): Promise<number> {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-bench-" });
  const tapdisks = new Tapdisks(folder);
  try {
    const pid = await tapdisks.spawn();
    let firstMib = 0;
    for (let i = 0; i <= DISKS; i++) {
      const image = await createVhd(`${folder}/${i}.vhd`, DISK_MIB);
      const { uri } = await tapdisks.serve(`vhd:${image}`, { pid });
      await fio(uri, WORK);
      if (i === 0) firstMib = proportionalMib(pid);
    }
    const perDiskMib = (proportionalMib(pid) - firstMib) / DISKS;
    await tapdisks.finish();
    return perDiskMib;
  } finally {
    tapdisks.abandon();
    Deno.removeSync(folder, { recursive: true });
  }
}
