/**
 * Measures the speed of a blktap2 ring. This process simulates the kernel's side; the tapdisk's
 * side runs in another process, on a dynamic VHD in memory. The machine needs two idle processors.
 *
 *     deno run -A tests/bench/blktap2.ts [SECONDS-A-ROW]
 *
 * @module
 */
import { createDynamic } from "../../src/vhd/create.ts";
import { osStorage } from "../../src/files/storage.ts";
import { PlayedKernel } from "../support/blktap2/played_kernel.ts";
import { RingLoad } from "../support/blktap2/ring_disk.ts";

const DISK_SECTORS = 128 * 2048;
const SECONDS = Number(Deno.args[0] ?? 3);

interface Row {
  readonly title: string;
  readonly writes: number;
  readonly wholePages: number;
  readonly depth: number;
}

const rows: Row[] = [
  { title: "4K randwrite d32", writes: 1, wholePages: 1, depth: 32 },
  { title: "4K randread d32", writes: 0, wholePages: 1, depth: 32 },
  { title: "4K randread d1", writes: 0, wholePages: 1, depth: 1 },
  { title: "44K write d8", writes: 1, wholePages: 11, depth: 8 },
  { title: "44K read d8", writes: 0, wholePages: 11, depth: 8 },
];

/** Processor time of a process in clock ticks of 10 ms. */
function processorTicks(pid: number): number {
  const [, fields] = Deno.readTextFileSync(`/proc/${pid}/stat`).split(") ");
  const [user, system] = fields.split(" ").slice(11, 13).map(Number);
  return user + system;
}

async function measure(kernel: PlayedKernel, row: Row): Promise<void> {
  const options = { sectors: DISK_SECTORS, seed: 1, verify: false, ...row };
  const beforeTicks = processorTicks(kernel.pid);
  const startMs = performance.now();
  let requests = 0;
  while (performance.now() < startMs + SECONDS * 1000) {
    await new RingLoad(kernel, { ...options, seed: requests, requests: 20_000 }).run();
    requests += 20_000;
  }
  const seconds = (performance.now() - startMs) / 1000;
  const microseconds = (processorTicks(kernel.pid) - beforeTicks) * 10_000 / requests;
  const iops = Math.round(requests / seconds).toLocaleString("en");
  const megabytes = Math.round(requests * row.wholePages * 4096 / seconds / 1e6);
  console.log(
    `${row.title.padEnd(18)} ${iops.padStart(9)} IOPS ${String(megabytes).padStart(6)} MB/s ` +
      `${microseconds.toFixed(1).padStart(6)} µs of the tapdisk's processor each`,
  );
}

const folder = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "blktap-bench-" });
try {
  const path = `${folder}/disk.vhd`;
  createDynamic(path, { storage: osStorage, sizeBytes: DISK_SECTORS * 512 });
  const kernel = await PlayedKernel.start(folder, `vhd:${path}`);
  const fill = { title: "", writes: 1, wholePages: 11, depth: 32, sectors: DISK_SECTORS };
  await new RingLoad(kernel, { ...fill, seed: 7, requests: 100_000, verify: false }).run();
  for (const row of rows) await measure(kernel, row);
  await kernel.close();
} finally {
  Deno.removeSync(folder, { recursive: true });
}
