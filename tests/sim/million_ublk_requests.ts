/**
 * Sends requests through the queues of a ublk device, by a simulated kernel that allocates nothing.
 * Prints as JSON the size of the heap before and after. Run with
 * `--v8-flags=--expose-gc,--trace-gc` and the number of requests.
 *
 * @module
 */
import { driverOfType } from "../../src/driver/registry.ts";
import {
  UBLK_IO_F_FUA,
  UBLK_IO_OP_FLUSH,
  UBLK_IO_OP_READ,
  UBLK_IO_OP_WRITE,
  UBLK_IO_OP_WRITE_ZEROES,
} from "../../ffi/ublk.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { DEPTH, PlayedUblk, QUEUES } from "../support/played_ublk.ts";
import { Simulation } from "../support/sim.ts";

const DISK_SECTORS = 32 * 2048;
const WARM_UP = 200_000;
const REQUESTS = Number(Deno.args[0]);
const TAGS = QUEUES * DEPTH;

const simulation = new Simulation({ seed: 1, driverOf: driverOfType });
const storage = simulation.disk;
createDynamic("/disk.vhd", { storage, sizeBytes: DISK_SECTORS * 512 });
const kernel = new PlayedUblk(simulation.open("vhd:/disk.vhd"));

// Each tag has the same request each time, because a new descriptor would allocate here.
for (let tag = 0; tag < TAGS; tag++) {
  const sector = tag * (DISK_SECTORS / TAGS);
  if (tag % 16 === 0) kernel.describe(tag, UBLK_IO_OP_FLUSH, 0, 0);
  else if (tag % 16 === 1) kernel.describe(tag, UBLK_IO_OP_WRITE_ZEROES, sector, 64);
  else if (tag % 16 === 2) kernel.describe(tag, UBLK_IO_OP_WRITE | UBLK_IO_F_FUA, sector, 8);
  else kernel.describe(tag, tag % 2 === 0 ? UBLK_IO_OP_READ : UBLK_IO_OP_WRITE, sector, 8 + tag);
}

function run(total: number): void {
  const end = kernel.answered + total;
  while (kernel.answered < end) {
    for (let tag = 0; tag < TAGS; tag++) if (kernel.holds(tag)) kernel.deliver(tag);
    simulation.scheduler.turn();
    kernel.take();
  }
}

const collect = (globalThis as unknown as { gc?: () => void }).gc;
if (collect === undefined) throw new Error("Run with --v8-flags=--expose-gc");

run(WARM_UP);
collect();
const before = Deno.memoryUsage().heapUsed;
run(REQUESTS);
const after = Deno.memoryUsage().heapUsed;
const { answered: ended, failed } = kernel;
console.log(JSON.stringify({ ended, failed, before, after }));
